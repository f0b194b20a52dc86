"""Preparing a data set: images decoded once, part by part, by separate processes.

`run` starts a module in a child process and shows its progress. In that child, `working_folder`
gives a folder for plan.json and a file for each decoded part, so that a preparation that was killed
resumes with the missing parts. No process ever holds more than a part or two in memory.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from vae_jax import storage
from vae_jax.data.pipeline import SplitName
from vae_jax.errors import VaeJaxError
from vae_jax.progress import Counter

PART_BYTES = 2**22
Job = TypeVar("Job")


def run(module: str, arguments: Sequence[str], what: str) -> None:
    """Run `python -m MODULE ARGUMENTS...`, away from this process's memory and main module.

    The module prints `progress DONE ALL` on its stdout. All other output of it and its libraries is
    hidden; if it exits with 1, its last line is the error.

    Args:
        module: the module's name; the current folder is not searched for it.
        arguments: its command line.
        what: the name and location of the data, for messages.

    Raises:
        VaeJaxError: the module failed.
    """
    settings = {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONSAFEPATH": "1",  # or a queue.py beside the pictures would be run
        "PYTHONUTF8": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    last = ""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        Counter(f"Preparing {what}") as counter,
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            match line.split():
                case ["progress", done, total]:
                    counter.update(int(done), int(total))
                case [_, *_]:
                    last = line.strip()
        code = child.wait()
        errors.seek(0)
        said = (errors.read().strip() or "no message").splitlines()[-1]
    if code == 1 and last:
        raise VaeJaxError(last)
    if code:
        raise VaeJaxError(
            f"Preparing {what} broke off with exit code {code} ({said}): run it again, and it goes "
            "on from there."
        )


class Piece(NamedTuple):
    """The images of one job.

    Attributes:
        rows: int64 [n], the images' positions in the whole data set.
        images: uint8 [n, H, W, C].
        labels: int32 [n], or None.
        skipped: a line for each file that gave no image.
    """

    rows: np.ndarray
    images: np.ndarray
    labels: np.ndarray | None
    skipped: list[str]


def divide_rows(num_images: int, image_bytes: int) -> list[range]:
    """Divide rows 0 to `num_images` - 1 into ranges of `PART_BYTES`, of `image_bytes` per image."""
    step = max(1, PART_BYTES // image_bytes)
    return [range(a, min(a + step, num_images)) for a in range(0, num_images, step)]


@contextlib.contextmanager
def working_folder(target: Path) -> Generator[Path | None]:
    """Let one process at a time make the cache `target`; others wait.

    Yields:
        The working folder, which stays if the preparation is killed and is deleted if the disk is
        full; None if the cache already exists.
    """
    storage.make_folder(target.parent)
    work = target.with_suffix(".partial")
    with storage.lock(target.with_suffix(".lock")):
        if target.exists():
            yield None
            return
        try:
            yield work
        except OSError as error:
            if error.errno in storage.DISK_FULL:
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def decode_parts(
    work: Path,
    plan: Mapping[str, object],
    jobs: Sequence[Job],
    decode: Callable[[Job], Piece],
    processes: int,
) -> list[Path]:
    """Decode the missing parts, and print the progress on stdout.

    Args:
        work: the working folder.
        plan: everything that the parts depend on, as JSON; parts of another plan are deleted.
        jobs: one for each part.
        decode: a function from a job to its part; picklable if there are several processes.
        processes: the number of processes to start; with 1, none is started.

    Returns:
        The parts' files, in the order of the jobs.
    """
    if _read_plan(work) != plan:
        shutil.rmtree(work, ignore_errors=True)
        with storage.whole_file(work / "plan.json") as partial:
            partial.write_text(json.dumps(dict(plan), indent=2))
    storage.sweep(work, age=0)
    files = [work / f"{index:06d}.npz" for index in range(len(jobs))]
    missing = [(file, job) for file, job in zip(files, jobs, strict=True) if not file.exists()]
    done = len(files) - len(missing)
    print(f"progress {done} {len(files)}", flush=True)
    for _ in _each(functools.partial(_write, decode), missing, processes):
        done += 1
        print(f"progress {done} {len(files)}", flush=True)
    return files


def _read_plan(work: Path) -> dict[str, object] | None:
    try:
        return storage.read_json(work / "plan.json")
    except storage.DamagedError:
        return None


def _each(
    write: Callable[[Path, Job], None], missing: Sequence[tuple[Path, Job]], processes: int
) -> Iterator[None]:
    if processes == 1:
        for file, job in missing:
            yield write(file, job)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=_leave_with_parent) as pool:
        futures = [pool.submit(write, file, job) for file, job in missing]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _leave_with_parent() -> None:
    """End this process when its parent is killed, which a pool's processes do not notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write(decode: Callable[[Job], Piece], file: Path, job: Job) -> None:
    part = decode(job)
    arrays = {"rows": part.rows, "images": part.images, "labels": part.labels}
    written = {name: array for name, array in arrays.items() if array is not None}
    with storage.whole_file(file) as partial:
        np.savez(partial, skipped=np.array(json.dumps(part.skipped)), **written)


def write_in_place(
    work: Path,
    plan: Mapping[str, object],
    arrays: Mapping[str, tuple[tuple[int, ...], type[np.generic]]],
    jobs: Sequence[Job],
    write: Callable[[Path, Job], None],
    processes: int,
) -> Path:
    """Let several processes write parts of the same arrays, which are on the disk only once.

    Args:
        work: the working folder.
        plan: everything that the parts depend on, as JSON; parts of another plan are deleted.
        arrays: shapes and types by name.
        jobs: one for each part.
        write: a function that writes a job's part of {name}.npy in a folder; picklable if there are
            several processes.
        processes: the number of processes to start; with 1, none is started.

    Returns:
        The folder of the arrays, in the working folder.
    """
    whole, done = work / "whole", work / "done"
    if _read_plan(work) != plan:
        shutil.rmtree(work, ignore_errors=True)
        whole.mkdir(parents=True)
        done.mkdir()
        for name, (shape, kind) in arrays.items():
            np.lib.format.open_memmap(whole / f"{name}.npy", "w+", kind, shape).flush()
        with storage.whole_file(work / "plan.json") as partial:
            partial.write_text(json.dumps(dict(plan), indent=2))
    marks = [done / str(index) for index in range(len(jobs))]
    missing = [(mark, job) for mark, job in zip(marks, jobs, strict=True) if not mark.exists()]
    count = len(jobs) - len(missing)
    print(f"progress {count} {len(jobs)}", flush=True)
    for _ in _each(functools.partial(_mark, write, whole), missing, processes):
        count += 1
        print(f"progress {count} {len(jobs)}", flush=True)
    return whole


def _mark(write: Callable[[Path, Job], None], whole: Path, mark: Path, job: Job) -> None:
    write(whole, job)
    mark.touch()


def usable_rows(files: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
    """The rows that have an image in the parts' `files`, and a line for each file without one."""
    rows, skipped = [], []
    for file in files:
        with np.load(file) as part:
            rows.append(part["rows"])
            skipped += json.loads(str(part["skipped"]))
    return np.sort(np.concatenate(rows)), skipped


def assemble_splits(
    work: Path, files: Sequence[Path], splits: Mapping[SplitName, np.ndarray]
) -> Path:
    """Write {split}_images.npy and, if there are labels, {split}_labels.npy.

    Args:
        work: the working folder.
        files: the files of the parts.
        splits: the rows of each split, in its order; together a partition of `usable_rows`.

    Returns:
        The folder of the arrays, in the working folder.
    """
    whole = work / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    size = 1 + max(int(rows.max(initial=0)) for rows in splits.values())
    split_of, position = np.empty((2, size), np.int64)
    for index, rows in enumerate(splits.values()):
        split_of[rows], position[rows] = index, np.arange(len(rows))

    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    for file in files:
        with np.load(file) as part:
            arrays = dict(part)
        for index, (split, rows) in enumerate(splits.items()):
            if split not in images:
                path, shape = whole / f"{split}_images.npy", arrays["images"].shape[1:]
                images[split] = np.lib.format.open_memmap(path, "w+", np.uint8, (len(rows), *shape))
                if "labels" in arrays:
                    labels[split] = np.empty(len(rows), np.int32)
            own = split_of[arrays["rows"]] == index
            where = position[arrays["rows"][own]]
            images[split][where] = arrays["images"][own]
            if "labels" in arrays:
                labels[split][where] = arrays["labels"][own]
    for split, values in labels.items():
        np.save(whole / f"{split}_labels.npy", values)
    return whole
