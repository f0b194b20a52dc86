"""Any image data set of TFDS by its name: cut, resized, labelled, and on the disk once."""

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import finish, start

from vae_jax import VaeJaxError
from vae_jax.data import load, preparation, prepare
from vae_jax.data.tfds_name import folder_of

# A builder of pictures of many shapes, some grey among RGB, in two configurations.
BUILDER = '''
import sys
from pathlib import Path
import numpy as np
import tensorflow_datasets as tfds

class Bars(tfds.core.GeneratorBasedBuilder):
    """Pictures of three shapes: their left half black, their right half of the label's shade."""
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("plain", "no_images")]

    def _info(self):
        image = {"picture": tfds.features.Image(shape=(None, None, 3))}
        if self.builder_config.name == "no_images":
            image = {}
        names = tfds.features.ClassLabel(names=["dark", "light"])
        features = tfds.features.FeaturesDict(image | {"kind": names, "number": np.int64})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30), "test": self._generate_examples(5)}

    def _generate_examples(self, count):
        for n in range(count):
            height, width = ((8, 8), (16, 24), (40, 20))[n % 3]
            image = np.zeros((height, width, 3), np.uint8)
            image[:, width // 2 :] = 100 + 100 * (n % 2)
            picture = {"picture": image}
            if self.builder_config.name == "no_images":
                picture = {}
            yield n, picture | {"kind": n % 2, "number": n}

if __name__ == "__main__":
    from vae_jax.data.tfds_name_prepare import main
    sys.exit(main(*sys.argv[1:]))
'''


@pytest.fixture
def prepare_bars(tmp_path: Path) -> Any:
    """The child process, in which the builder is at hand."""
    file = tmp_path / "bars.py"
    file.write_text(BUILDER)

    def prepared(name: str, size: int) -> Any:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        return finish(start((str(file),), name, size, folder, "", cuda_visible_devices=""))

    return prepared


@pytest.mark.slow
def test_pictures_of_any_shape_with_labels(prepare_bars: Any, tmp_path: Path) -> None:
    done = prepare_bars("bars/plain", 8)
    assert done.returncode == 0, done
    data = load("tfds:bars/plain", data_dir=tmp_path / "data")
    assert [len(split) for split in (data.train, data.valid, data.test)] == [27, 3, 5]
    assert data.image_shape == (8, 8, 3)
    assert data.class_names == ("dark", "light")
    for split in (data.train, data.valid, data.test):
        assert split.labels is not None
        right = split.images[:, :, 6:].astype(int)
        np.testing.assert_allclose(
            right, np.full_like(right, 100) + 100 * shade(split.labels), atol=2
        )
        assert (split.images[:, :, :2] <= 2).all()  # a level of Lanczos's third lobe
    whole = load("tfds:bars/plain", valid=0, data_dir=tmp_path / "data")
    assert sorted(np.asarray(whole.train.labels)) == [0] * 15 + [1] * 15
    assert "validation is the last 3 of its 30 training images" in data.description
    assert data.source is not None
    assert data.source().fingerprint == data.fingerprint
    with pytest.raises(VaeJaxError, match="valid=30 is out of range"):
        load("tfds:bars/plain", valid=30, data_dir=tmp_path / "data")


def shade(labels: np.ndarray) -> np.ndarray:
    return labels[:, None, None, None]


@pytest.mark.slow
def test_what_is_no_picture_is_a_sentence(prepare_bars: Any, tmp_path: Path) -> None:
    for name, said in (
        ("bars/no_images", "has 0 images in each example: choose a data set of one"),
        ("no_such_data_set", "TFDS has no data set tfds:no_such_data_set"),
    ):
        done = prepare_bars(name, 8)
        assert done.returncode == 1, done
        assert said in done.stdout.splitlines()[-1]
    assert not list((tmp_path / "data").rglob("*_images.npy"))


def test_a_data_set_at_another_size(data_dir: Path) -> None:
    """mnist_5k by its name in TFDS, each digit as Pillow resizes it, in TFDS's order."""
    assert prepare("tfds:mnist_5k", data_dir, size=16) == folder_of("tfds:mnist_5k", 16, data_dir)
    data, whole = load("tfds:mnist_5k", data_dir=data_dir), load("mnist_5k", data_dir=data_dir)
    assert data.image_shape == (16, 16, 1)
    for split in ("train", "valid", "test"):
        ours, theirs = data[split], whole[split]
        resized = [
            np.asarray(Image.fromarray(image[..., 0]).resize((16, 16), Image.Resampling.LANCZOS))
            for image in theirs.images
        ]
        expected = sorted(
            (image.tobytes(), int(y))
            for image, y in zip(resized, np.asarray(theirs.labels), strict=True)
        )
        found = sorted(
            (image.tobytes(), int(y))
            for image, y in zip(ours.images, np.asarray(ours.labels), strict=True)
        )
        assert found == expected


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("tfds:", None, "is no name of TFDS"),
        ("tfds:../mnist", None, "is no name of TFDS"),
        ("tfds:a/b/c", None, "is no name of TFDS"),
        ("tfds:cifar100", 0, "size is 0: images have at least one pixel"),
        ("mnist_5k", 16, "mnist_5k has a size of its own"),
        ("cifar100", None, "any of TFDS's as tfds:NAME"),
    ],
)
def test_names_and_sizes_that_cannot_be(
    name: str, size: int | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(VaeJaxError, match=said):
        load(name, size=size, data_dir=tmp_path)


def test_arrays_are_on_the_disk_once(tmp_path: Path) -> None:
    """Interrupted and resumed; for several processes see below."""
    arrays = {"images": ((100, 8, 8, 3), np.uint8)}
    jobs, sizes, written = [range(a, a + 10) for a in range(0, 100, 10)], [], []

    def write(whole: Path, job: range) -> None:
        if len(written) == 5 and job.start == 50:
            written.append(None)
            raise KeyboardInterrupt
        images = np.load(whole / "images.npy", mmap_mode="r+")
        images[job.start : job.stop] = np.array(job)[:, None, None, None]
        images.flush()
        written.append(job)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        sizes.append(sum(path.stat().st_size for path in files))

    def run() -> Path:
        return preparation.write_in_place(tmp_path / "work", {"a": 1}, arrays, jobs, write, 1)

    with pytest.raises(KeyboardInterrupt):
        run()
    whole = run()
    assert [job for job in written if job is not None] == jobs  # each once
    assert max(sizes) < 100 * 8 * 8 * 3 + 500
    found = np.load(whole / "images.npy")
    np.testing.assert_array_equal(found[:, 0, 0, 0], np.arange(100))


# Parts by two processes, each of which notes what there is on the disk when it has written one.
BY_TWO = """
import os, sys, time
from functools import partial
from pathlib import Path
import numpy as np
from vae_jax.data import preparation

def write(folder, whole, job):
    images = np.load(whole / "images.npy", mmap_mode="r+")
    images[job.start : job.stop] = np.array(job)[:, None, None, None]
    images.flush()
    size = sum(path.stat().st_size for path in (folder / "work").rglob("*") if path.is_file())
    with (folder / "log").open("a") as log:
        log.write(f"{os.getpid()} {job.start} {size}\\n")
    time.sleep(0.1)

if __name__ == "__main__":
    folder, jobs = Path(sys.argv[1]), [range(a, a + 10) for a in range(0, 100, 10)]
    arrays = {"images": ((100, 32, 32, 3), np.uint8)}
    own = partial(write, folder)
    preparation.write_in_place(folder / "work", {"a": 1}, arrays, jobs, own, processes=2)
"""


@pytest.mark.slow
def test_several_processes_write_arrays_that_are_on_the_disk_once(tmp_path: Path) -> None:
    (tmp_path / "by_two.py").write_text(BY_TWO)
    done = finish(start((str(tmp_path / "by_two.py"),), tmp_path))
    assert done.returncode == 0, done
    log = [list(map(int, line.split())) for line in (tmp_path / "log").read_text().splitlines()]
    processes, starts, sizes = zip(*log, strict=True)
    assert sorted(starts) == list(range(0, 100, 10))  # each once
    assert len(set(processes)) == 2
    assert max(sizes) < 100 * 32 * 32 * 3 + 500
    found = np.load(tmp_path / "work" / "whole" / "images.npy")
    np.testing.assert_array_equal(found, np.arange(100)[:, None, None, None] + 0 * found)


SMALL_PARTS = """
import sys
from vae_jax.data import preparation, tfds_name_prepare

if __name__ == "__main__":
    tfds_name_prepare.IMAGES_PER_PROCESS, preparation.PART_BYTES = 100, 100_000
    sys.exit(tfds_name_prepare.main(*sys.argv[1:]))
"""


def size_of(folder: Path) -> int:
    """The bytes of a folder's files, some of which may vanish meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size


@pytest.mark.slow
def test_preparations_of_one_data_set_at_once_end_in_one(data_dir: Path, tmp_path: Path) -> None:
    """Each by processes of its own; never is there more than the arrays once, beside TFDS's."""
    shutil.copytree(data_dir / "mnist_5k", tmp_path / "data" / "mnist_5k")
    (tmp_path / "small_parts.py").write_text(SMALL_PARTS)
    before, most = size_of(tmp_path / "data"), 0
    arguments = "mnist_5k", 20, tmp_path / "data", ""
    begun = [start((str(tmp_path / "small_parts.py"),), *arguments) for _ in range(2)]
    while any(process.poll() is None for process in begun):
        most = max(most, size_of(tmp_path / "data") - before)
        time.sleep(0.005)
    done = [finish(process) for process in begun]
    assert [process.returncode for process in done] == [0, 0], done
    assert sorted("progress" in process.stdout for process in done) == [False, True]
    target = folder_of("tfds:mnist_5k", 20, tmp_path / "data")
    arrays = sum(path.stat().st_size for path in target.glob("*.npy"))
    assert 5_000 * 20 * 20 < arrays <= most < arrays + 10_000  # the plan, marks and the manifest
    left = {path.name for path in target.parent.iterdir()}
    assert left == {target.name, target.with_suffix(".lock").name}
    assert load("tfds:mnist_5k", data_dir=tmp_path / "data").image_shape == (20, 20, 1)
    assert prepare("tfds:mnist_5k", tmp_path / "data", verify=True) == target
