"""Images decoded part by part in parallel processes, and put together on the disk.

The working folder holds plan.json and a file for each part that is done, so that a preparation that
was killed goes on with the parts it lacks. No process ever holds more than a part or two in memory.
Runs in the process that `vae_jax.data.preparing` starts.
"""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vae_jax.data.pipeline import SplitName

PART_BYTES = 2**22
# What a full disk says; the C++ writers under TFDS say its text in a RuntimeError.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Job = TypeVar("Job")


class Part(NamedTuple):
    """What became of one job.

    Attributes:
        rows: int64 [n], the images' places in the whole data set.
        images: uint8 [n, H, W, C].
        labels: int32 [n], or None.
        skipped: a line for each file that gave no image.
    """

    rows: np.ndarray
    images: np.ndarray
    labels: np.ndarray | None
    skipped: list[str]


def rows_of_parts(num_images: int, image_bytes: int) -> list[range]:
    """Divides the rows 0..N-1 into parts of `PART_BYTES` of images."""
    step = max(1, PART_BYTES // image_bytes)
    return [range(a, min(a + step, num_images)) for a in range(0, num_images, step)]


@contextlib.contextmanager
def preparing(target: Path) -> Iterator[Path | None]:
    """Has a cache to itself while it is made.

    Yields:
        The working folder, which a killed preparation leaves as it is and a full disk empties; None
        where the cache is there already.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_suffix(".partial")
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        try:
            yield work
        except OSError as error:
            if error.errno in DISK_FULL:
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def make(
    work: Path,
    plan: Mapping[str, Any],
    jobs: Sequence[Job],
    decode: Callable[[Job], Part],
    processes: int,
) -> list[Path]:
    """Makes the parts that are not there yet, and says on stdout how many are.

    Args:
        work: the working folder.
        plan: what the parts depend on, as JSON; those of another plan are thrown away.
        jobs: one for each part.
        decode: from a job to its part; picklable where there are several processes.
        processes: how many to start; where it is 1, none.

    Returns:
        The parts' files, in the order of the jobs.
    """
    written = json.dumps(dict(plan), sort_keys=True)
    plan_file = work / "plan.json"
    if not plan_file.exists() or plan_file.read_text() != written:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        plan_file.write_text(written)
    files = [work / f"{index:06d}.npz" for index in range(len(jobs))]
    missing = [(file, job) for file, job in zip(files, jobs, strict=True) if not file.exists()]
    done = len(files) - len(missing)
    print(f"progress {done} {len(files)}", flush=True)
    for _ in _each_written(decode, missing, processes):
        done += 1
        print(f"progress {done} {len(files)}", flush=True)
    return files


def _each_written(
    decode: Callable[[Job], Part], missing: Sequence[tuple[Path, Job]], processes: int
) -> Iterator[None]:
    if processes == 1:
        for file, job in missing:
            yield _write(decode, file, job)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=_leave_with_parent) as pool:
        futures = [pool.submit(_write, decode, file, job) for file, job in missing]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _leave_with_parent() -> None:
    """Ends this process when its parent is killed, of which a pool's processes take no note."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write(decode: Callable[[Job], Part], file: Path, job: Job) -> None:
    part = decode(job)
    skipped = np.array(json.dumps(part.skipped))
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as output:
        if part.labels is None:
            np.savez(output, rows=part.rows, images=part.images, skipped=skipped)
        else:
            np.savez(
                output, rows=part.rows, images=part.images, skipped=skipped, labels=part.labels
            )
    temporary.rename(file)


def found(files: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
    """The rows that have an image, in order, and a line for each file that gave none."""
    rows, skipped = [], []
    for file in files:
        with np.load(file) as part:
            rows.append(part["rows"])
            skipped += json.loads(str(part["skipped"]))
    return np.sort(np.concatenate(rows)), skipped


def assemble(work: Path, files: Sequence[Path], splits: Mapping[SplitName, np.ndarray]) -> Path:
    """Writes {split}_images.npy and, if there are labels, {split}_labels.npy.

    Args:
        work: the working folder.
        files: of the parts.
        splits: the rows of each split, in its order; together a partition of `found`.

    Returns:
        The folder of the arrays, in the working folder.
    """
    whole = work / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    size = 1 + max(int(rows.max(initial=0)) for rows in splits.values())
    split_of, place = np.empty((2, size), np.int64)
    for index, rows in enumerate(splits.values()):
        split_of[rows], place[rows] = index, np.arange(len(rows))

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
            where = place[arrays["rows"][own]]
            images[split][where] = arrays["images"][own]
            if "labels" in arrays:
                labels[split][where] = arrays["labels"][own]
    for split, values in labels.items():
        np.save(whole / f"{split}_labels.npy", values)
    return whole
