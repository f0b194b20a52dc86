"""Preparing in parts: killed and resumed to the same bytes, in bounded memory, by any processes."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import finish, has_ended, start, wait_until

from vae_jax import VaeJaxError, storage
from vae_jax.data import cache, preparation

SHAPE = (16, 16, 3)


def pixels(rows: np.ndarray) -> np.ndarray:
    """An image that tells its row, uint8 `[n, 16, 16, 3]`."""
    images = np.zeros((len(rows), *SHAPE), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = rows % 256, rows // 256
    return images


def decode(job: range, broken: int | None = None) -> preparation.Piece:
    """All rows but every tenth; interrupted at one row if asked to be."""
    if broken in job:
        raise KeyboardInterrupt
    rows = np.array([row for row in job if row % 10], np.int64)
    skipped = [f"{row}: a tenth" for row in job if row % 10 == 0]
    return preparation.Piece(rows, pixels(rows), (rows % 7).astype(np.int32), skipped)


def prepare(target: Path, decoder: Any = decode, processes: int = 1, count: int = 1000) -> None:
    jobs = [range(a, min(a + 60, count)) for a in range(0, count, 60)]
    with preparation.working_folder(target) as work:
        if work is None:
            return
        files = preparation.decode_parts(work, {"count": count}, jobs, decoder, processes)
        rows, skipped = preparation.usable_rows(files)
        order = np.random.default_rng(0).permutation(rows)
        whole = preparation.assemble_splits(work, files, {"train": order[50:], "test": order[:50]})
        cache.make(whole, target, {"skipped": skipped})


def content(folder: Path) -> dict[str, bytes]:
    """All but the stamp, which has the files' times."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def test_parts_are_put_together_in_the_order_asked_for(tmp_path: Path) -> None:
    prepare(tmp_path / "arrays")
    arrays, manifest = cache.read("mine", tmp_path / "arrays")
    rows = np.array([row for row in range(1000) if row % 10])
    order = np.random.default_rng(0).permutation(rows)
    np.testing.assert_array_equal(arrays["train_images"], pixels(order[50:]))
    np.testing.assert_array_equal(arrays["test_images"], pixels(order[:50]))
    np.testing.assert_array_equal(arrays["train_labels"], order[50:] % 7)
    assert manifest["skipped"] == [f"{row}: a tenth" for row in range(0, 1000, 10)]
    assert {path.name for path in tmp_path.iterdir()} == {"arrays", "arrays.lock"}


def test_an_interrupted_preparation_goes_on_with_the_parts_it_lacks(tmp_path: Path) -> None:
    prepare(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "broken", partial(decode, broken=500))
    (tmp_path / "broken.partial" / f".partial-{8:016x}.npz").write_bytes(
        b"killed while it was written"
    )
    decoded = []

    def noted(job: range) -> preparation.Piece:
        decoded.append(job.start)
        return decode(job)

    prepare(tmp_path / "broken", noted)
    assert decoded == list(range(480, 1000, 60))
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_parts_of_another_plan_are_not_used(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "arrays", partial(decode, broken=500))
    prepare(tmp_path / "arrays", count=700)
    prepare(tmp_path / "fresh", count=700)
    assert content(tmp_path / "arrays") == content(tmp_path / "fresh")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def full(job: range) -> preparation.Piece:
        raise OSError(storage.DISK_FULL[0], "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        prepare(tmp_path / "arrays", full)
    assert {path.name for path in tmp_path.iterdir()} == {"arrays.lock"}


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """The peak of what Python and NumPy allocate; the arrays themselves lie on the disk."""

    def peak(count: int) -> int:
        tracemalloc.start()
        prepare(tmp_path / str(count), count=count)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(120)  # what is imported at the first call
    small, large = peak(2_000), peak(10_000)
    added = 8_000 * 0.9 * np.prod(SHAPE)
    assert (tmp_path / "10000" / "train_images.npy").stat().st_size > added
    assert large - small < added / 4  # rows, labels and lines of text, and no images


# The whole of it, as users meet it: a process that starts processes.

LOAD = (
    "-c",
    "import sys; from vae_jax.data import load_folder; "
    "data = load_folder(sys.argv[1], 64, data_dir=sys.argv[2]); print(data.fingerprint)",
)


@pytest.fixture
def two_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that Python processes know of, so that the parts come one after the other."""
    (tmp_path / "sitecustomize.py").write_text("import os; os.cpu_count = lambda: 2")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def pictures(root: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    for i in range(count):
        (root / str(i % 3)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(generator.integers(256, size=(8, 8, 3)).astype(np.uint8))
        image.resize((96, 80)).save(root / str(i % 3) / f"{i}.png", compress_level=0)
    return root


@pytest.mark.slow
def test_a_killed_preparation_ends_in_the_same_bytes(tmp_path: Path, two_cores: None) -> None:
    """SIGKILL to all its processes after the second part; then again, against one never killed."""
    folder = pictures(tmp_path / "pictures", 1700)  # 5 parts
    process = subprocess.Popen(
        [sys.executable, *LOAD, str(folder), str(tmp_path / "killed")],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len([*(tmp_path / "killed").rglob("*.npz")]) >= 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = [*(tmp_path / "killed").rglob("*.npz")]
    assert 2 <= len(kept) < 5
    first = {path: path.stat().st_ino for path in kept}

    runs = [start(LOAD, folder, tmp_path / "killed"), start(LOAD, folder, tmp_path / "whole")]
    wait_until(lambda: len([*(tmp_path / "killed").rglob("*.npz")]) > len(kept), runs[0])
    reused = [p.stat().st_ino == inode for p, inode in first.items() if p.exists()]
    assert all(reused)
    done = [finish(run) for run in runs]
    assert [run.returncode for run in done] == [0, 0], done
    assert done[0].stdout == done[1].stdout != ""
    killed, whole = (content(next((tmp_path / n).rglob("vae_jax"))) for n in ("killed", "whole"))
    assert killed == whole
    assert not [*tmp_path.rglob("*.npz")]


def test_processes_leave_when_the_one_that_started_them_is_killed(
    tmp_path: Path, two_cores: None
) -> None:
    """SIGKILL to the preparing process alone: its workers notice, and hold nothing up."""
    folder = pictures(tmp_path / "pictures", 600)
    arguments = [str(folder), "64", "64", "3", str(tmp_path / "data")]
    process = start(("-m", "vae_jax.data.folder_prepare"), *arguments)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not list a process's children")
    wait_until(lambda: [*(tmp_path / "data").rglob("plan.json")], process)
    wait_until(lambda: len(children.read_text().split()) >= 2, process)
    workers = children.read_text().split()
    process.kill()
    process.communicate()  # returns only when every worker has closed the pipes, a moment before
    wait_until(lambda: all(map(has_ended, workers)))


def test_what_breaks_off_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text("print('progress 1 2'); raise SystemExit(7)")
    (tmp_path / "refuses.py").write_text(
        "print('progress 1 2'); print('Why.'); raise SystemExit(1)"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(VaeJaxError, match=r"Preparing it broke off with exit code 7 .* again"):
            preparation.run("breaks", [], "it")
        with pytest.raises(VaeJaxError, match=r"^Why\.$"):
            preparation.run("refuses", [], "it")


@pytest.mark.slow
def test_python_files_beside_the_pictures_are_not_run(tmp_path: Path, two_cores: None) -> None:
    """By none of the processes, though Python would look in the current folder for a module."""
    folder = pictures(tmp_path / "pictures", 420)
    for name in ("queue", "json", "multiprocessing", "PIL"):
        (folder / f"{name}.py").write_text("from pathlib import Path; Path('was_run').touch()")
    program = (
        "import sys; from vae_jax.data import load_folder; "  # with safe paths, as `vae-jax` has
        "load_folder('.', 64, data_dir=sys.argv[1])"
    )
    done = finish(start(("-P", "-c", program), tmp_path / "data", cwd=folder))
    assert done.returncode == 0, done.stderr
    assert not (folder / "was_run").exists()


@pytest.mark.slow
def test_a_tfds_data_set_is_the_same_from_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mnist_5k in small parts by two processes, killed in between, against the usual way."""
    program = (
        "import sys; from vae_jax.data import preparation, tfds_prepare; "
        "tfds_prepare.IMAGES_PER_PROCESS, preparation.PART_BYTES = 100, 200_000; "
        "sys.exit(tfds_prepare.main('mnist_5k', sys.argv[1]))"
    )
    script = tmp_path / "small_parts.py"
    script.write_text(f"if __name__ == '__main__':\n    {program}")
    process = start((str(script),), tmp_path / "killed")
    wait_until(lambda: [*(tmp_path / "killed").rglob("000003.npz")], process)
    process.kill()
    process.communicate()
    whole = start(("-m", "vae_jax.data.tfds_prepare"), "mnist_5k", tmp_path / "whole")
    done = [finish(p) for p in (start((str(script),), tmp_path / "killed"), whole)]
    assert [run.returncode for run in done] == [0, 0], done
    folders = [cache.folder(tmp_path / name, "mnist_5k") for name in ("killed", "whole")]
    assert content(folders[0]) == content(folders[1])
    manifest = json.loads((folders[0] / "manifest.json").read_text())
    assert manifest["class_names"] == [str(digit) for digit in range(10)]
