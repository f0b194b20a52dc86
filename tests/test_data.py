"""Data: protocols against their probabilities, data sets against their official files, errors."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vae_jax import random, storage
from vae_jax.data import (
    PROTOCOLS,
    SOURCES,
    Data,
    batch_indices,
    cache,
    datasets,
    list_datasets,
    load,
    prepare,
)
from vae_jax.data.pipeline import SplitName
from vae_jax.errors import VaeJaxError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)  # every byte once


@pytest.fixture
def manual_dir() -> Path:
    """The developer's folder of official files."""
    folder = os.environ.get("VAE_JAX_MANUAL_DIR")
    if not folder:
        pytest.skip("VAE_JAX_MANUAL_DIR, the folder of the official files, is not set")
    return Path(folder)


def draws(protocol: str, num_draws: int) -> np.ndarray:
    keys = random.image_keys("train", jnp.arange(num_draws))
    images = jnp.broadcast_to(RAMP, (num_draws, *RAMP.shape))
    return np.asarray(PROTOCOLS[protocol].apply(images, keys))


# Protocols


@pytest.mark.parametrize("protocol", ["dynamic", "fixed"])
def test_bernoulli_protocols_have_the_pixel_as_their_mean(protocol: str) -> None:
    num_draws = 4000
    x = draws(protocol, num_draws)
    p = RAMP / 255
    standard_error = np.sqrt(p * (1 - p) / num_draws)
    assert x.dtype == np.float32
    assert set(np.unique(x)) == {0.0, 1.0}
    # 256 pixels: a correct sampler leaves 4.5 standard errors once in 600 runs, and this seed is
    # fixed. Pixels 0 and 255 have a standard error of 0, so they are exact.
    np.testing.assert_array_less(np.abs(x.mean(0) - p), 4.5 * standard_error + 1e-9)


def test_threshold_is_on_above_127() -> None:
    np.testing.assert_array_equal(draws("threshold", 1)[0], RAMP > 127)


def test_grey_is_the_grid_of_255ths() -> None:
    x = draws("grey", 1)[0]
    assert x[0, 0, 0] == 0
    assert x[-1, -1, 0] == 1
    np.testing.assert_allclose(x, RAMP / 255, rtol=1e-7)  # XLA multiplies by a rounded 1/255


def test_dequantize_stays_inside_its_cell_and_is_uniform_there() -> None:
    x = draws("dequantize", 4000)
    assert x.min() > 0
    assert x.max() < 1
    np.testing.assert_array_equal(np.floor(x * 256), np.broadcast_to(RAMP, x.shape))
    u = (x * 256 - RAMP).ravel()
    assert abs(u.mean() - 1 / 2) < 5 * np.sqrt(1 / 12 / u.size)
    assert abs((u**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / u.size)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_noise_does_not_depend_on_the_batch(protocol: str) -> None:
    images = jnp.broadcast_to(RAMP, (8, *RAMP.shape))
    keys = random.image_keys("test", jnp.arange(8), 3)
    apply = PROTOCOLS[protocol].apply
    parts = [apply(images[part], keys[part]) for part in (slice(0, 3), slice(3, 8))]
    np.testing.assert_array_equal(apply(images, keys), jnp.concatenate(parts))
    np.testing.assert_array_equal(apply(images, keys), jax.jit(apply)(images, keys))


def test_image_keys_differ_by_seed_split_and_index_alone() -> None:
    splits: tuple[SplitName, ...] = ("train", "valid", "test")
    rows = [
        jax.random.key_data(random.image_keys(split, jnp.arange(50), seed))
        for seed in (random.DATA_SEED, 1)
        for split in splits
    ]
    assert len(np.unique(np.concatenate(rows), axis=0)) == 300
    some = jnp.array([7, 49, 7])
    np.testing.assert_array_equal(
        jax.random.key_data(random.image_keys("train", some)), rows[0][some]
    )


# The order of training


def test_batches_walk_through_one_permutation_per_epoch() -> None:
    rows = batch_indices(seed=1, first_step=0, num_steps=30, num_images=50, batch_size=15)
    assert rows.dtype == np.int32
    assert rows.shape == (30, 15)
    epochs = rows.reshape(9, 50)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(50), (9, 1)))
    assert len(np.unique(epochs, axis=0)) == 9


@pytest.mark.parametrize("num_images", [7, 20, 64])
def test_any_split_into_calls_gives_the_same_batches(num_images: int) -> None:
    whole = batch_indices(5, 0, 40, num_images, 16)
    for cuts in ([0, 1, 2, 40], [0, 13, 26, 40], [0, 20, 20, 40]):
        parts = [batch_indices(5, a, b - a, num_images, 16) for a, b in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_seeds_give_different_orders() -> None:
    assert not np.array_equal(batch_indices(0, 0, 5, 100, 20), batch_indices(1, 0, 5, 100, 20))


# A user's own arrays


def user_images(n: int, fill: int = 0) -> np.ndarray:
    return np.full((n, 4, 6, 3), fill, np.uint8)


def test_from_arrays_describes_what_it_holds() -> None:
    data = Data.from_arrays(
        "mine", user_images(5), user_images(2), protocol="grey", labels={"train": np.arange(5)}
    )
    assert (len(data.train), len(data.valid), len(data.test)) == (5, 2, 0)
    assert data.image_shape == (4, 6, 3)
    assert data.support == "uint8"
    assert data.train.labels is not None
    assert data.train.labels.dtype == np.int32
    assert data.valid.labels is None
    assert data.description == (
        "mine: 5 training, 2 validation and 0 test images (split by the user), protocol grey "
        "(x = v/255, the 256 grey levels; noise seed 0)"
    )


def test_fingerprint_sees_images_labels_and_where_the_splits_are_cut() -> None:
    variants = [
        Data.from_arrays("mine", user_images(5), protocol="grey"),
        Data.from_arrays("mine", user_images(5, fill=1), protocol="grey"),
        Data.from_arrays("mine", user_images(5), protocol="grey", labels={"train": np.arange(5)}),
        Data.from_arrays("mine", user_images(4), user_images(1), protocol="grey"),
        Data.from_arrays("mine", user_images(4), None, user_images(1), protocol="grey"),
        Data.from_arrays("mine", user_images(5).reshape(5, 6, 4, 3), protocol="grey"),
    ]
    assert len({data.fingerprint for data in variants}) == len(variants)
    again = Data.from_arrays("yours", user_images(5), protocol="dynamic")
    assert again.fingerprint == variants[0].fingerprint


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (np.zeros((3, 4, 6, 1), np.float32), "are float32: give uint8 values from 0 to 255"),
        (np.zeros((3, 4, 6, 1), np.int64), "are int64: give uint8"),
        (np.zeros((3, 4, 6), np.uint8), r"has the shape \(3, 4, 6\): give \[N, H, W, C\]"),
        (np.zeros((0, 4, 6, 1), np.uint8), "has no training image"),
    ],
)
def test_from_arrays_refuses(train: np.ndarray, sentence: str) -> None:
    with pytest.raises(VaeJaxError, match=sentence):
        Data.from_arrays("mine", train, protocol="grey")


def test_from_arrays_names_the_first_nan() -> None:
    images = np.zeros((3, 4, 6, 1), np.float32)
    images[1, 2, 3, 0] = images[2, 0, 0, 0] = np.nan
    with pytest.raises(VaeJaxError, match=r"valid images of mine .* index \(1, 2, 3, 0\)"):
        Data.from_arrays("mine", user_images(5), images, protocol="grey")


def test_from_arrays_refuses_unlike_shapes_and_too_few_labels() -> None:
    with pytest.raises(VaeJaxError, match="the same image shape"):
        Data.from_arrays("mine", user_images(5), np.zeros((1, 4, 4, 3), np.uint8), protocol="grey")
    with pytest.raises(VaeJaxError, match="give 5 integers"):
        Data.from_arrays(
            "mine", user_images(5), protocol="grey", labels={"train": np.zeros(4, np.int32)}
        )


# Data sets by name


def test_mnist_5k_is_balanced_disjoint_and_memory_mapped(data_dir: Path) -> None:
    data = load("mnist_5k", data_dir=data_dir)
    assert data.protocol.name == "dynamic"
    assert data.image_shape == (28, 28, 1)
    seen = set()
    for split, per_class in ((data.train, 400), (data.valid, 50), (data.test, 50)):
        assert isinstance(split.images, np.memmap)
        assert split.images.dtype == np.uint8
        assert split.images.max() == 255
        assert split.labels is not None
        np.testing.assert_array_equal(np.bincount(split.labels), np.full(10, per_class))
        seen |= {image.tobytes() for image in split.images}
    assert len(seen) == 5000


def test_training_process_never_imports_tensorflow(data_dir: Path) -> None:
    program = (
        "import sys; from vae_jax.data import list_datasets, load; "
        f"load('mnist_5k', data_dir={str(data_dir)!r}).train.images[0]; list_datasets(); "
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_list_datasets_knows_what_is_prepared(data_dir: Path) -> None:
    listings = {listing.source.name: listing for listing in list_datasets(data_dir)}
    assert listings.keys() == SOURCES.keys()
    assert listings["mnist_5k"].prepared
    assert not listings["frey_faces"].prepared
    assert listings["frey_faces"].source.manual_files == ("frey_rawface.mat",)
    assert listings["mnist"].sizes == {"train": 50_000, "valid": 10_000, "test": 10_000}


def idx_gz(path: Path) -> np.ndarray:
    """The IDX format of LeCun's page: 4 bytes of type and rank, big-endian sizes, bytes."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first_label"),
    [("mnist", 5), ("fashion_mnist", 9)],
)
def test_mnist_is_the_official_files_in_their_order(
    name: str, first_label: int, tmp_path: Path, manual_dir: Path
) -> None:
    data = load(name, valid=5000, data_dir=tmp_path)
    files = manual_dir / name
    images = idx_gz(files / "train-images-idx3-ubyte.gz")[..., None]
    labels = idx_gz(files / "train-labels-idx1-ubyte.gz")
    assert labels[0] == first_label
    np.testing.assert_array_equal(data.train.images, images[:55_000])
    np.testing.assert_array_equal(data.valid.images, images[55_000:])
    np.testing.assert_array_equal(data.train.labels, labels[:55_000])
    np.testing.assert_array_equal(data.valid.labels, labels[55_000:])
    np.testing.assert_array_equal(
        data.test.images, idx_gz(files / "t10k-images-idx3-ubyte.gz")[..., None]
    )
    assert "the last 5,000 of the 60,000 official training images" in data.description
    assert len(load(name, data_dir=tmp_path).valid) == 10_000
    assert len(load(name, valid=0, data_dir=tmp_path).valid) == 0
    with pytest.raises(VaeJaxError, match=f"valid=60000 is out of range for {name}"):
        load(name, valid=60_000, data_dir=tmp_path)


@pytest.mark.slow
def test_binarized_mnist_is_the_official_files(tmp_path: Path, manual_dir: Path) -> None:
    data = load("binarized_mnist", data_dir=tmp_path)
    for part, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        path = manual_dir / "binarized_mnist" / f"binarized_mnist_{part}.amat"
        digits = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 2 * 784)[:, ::2] - ord("0")
        np.testing.assert_array_equal(split.images, 255 * digits.reshape(-1, 28, 28, 1))
    assert data.train.labels is None


@pytest.mark.slow
def test_frey_faces_are_all_frames_once(tmp_path: Path, manual_dir: Path) -> None:
    data = load("frey_faces", data_dir=tmp_path)
    assert data.support == "uint8"
    splits = (data.train.images, data.valid.images, data.test.images)
    assert [len(images) for images in splits] == [1565, 200, 200]
    path = manual_dir / "frey_faces" / "frey_faces.npz"
    if not path.exists():
        pytest.skip("the manual folder has Frey Faces in another form")
    with np.load(path) as file:
        frames = sorted(frame.tobytes() for frame in file["image"])
    assert sorted(image.tobytes() for images in splits for image in images) == frames


@pytest.mark.slow
def test_caltech101_silhouettes_are_upright_figures_of_ones(
    tmp_path: Path, manual_dir: Path
) -> None:
    data = load("caltech101_silhouettes", data_dir=tmp_path)
    assert [len(data.train), len(data.valid), len(data.test)] == [4100, 2264, 2307]
    assert data.protocol.name == "threshold"
    assert set(np.unique(data.train.images)) == {0, 255}
    assert data.train.labels is not None
    assert set(data.train.labels) == set(range(101))
    # The figures fill a little less than half of the area and the frame's corners are background.
    np.testing.assert_allclose(data.train.images.mean() / 255, 1 - 0.5510546, atol=1e-6)
    assert data.train.images[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean() < 255 / 4
    # Objects are alike left and right rather than above and below: the axes are not swapped.
    figures = data.train.images != 0
    sideways = (figures != figures[:, :, ::-1]).mean()
    assert sideways < 0.9 * (figures != figures[:, ::-1]).mean()


@pytest.mark.slow
def test_cifar10_4k_is_the_files_images_in_their_order(tmp_path: Path, manual_dir: Path) -> None:
    path = manual_dir / "cifar10_4k" / "cifar10_train_first4000.npz"
    if not path.exists():
        pytest.skip("the manual folder has no first 4,000 images of CIFAR-10")
    data = load("cifar10_4k", data_dir=tmp_path)
    assert (data.support, data.image_shape) == ("uint8", (32, 32, 3))
    splits = (data.train, data.valid, data.test)
    assert [len(split) for split in splits] == [3200, 400, 400]
    with np.load(path) as file:
        np.testing.assert_array_equal(np.concatenate([s.images for s in splits]), file["image"])
        labels = [split.labels for split in splits if split.labels is not None]
        np.testing.assert_array_equal(np.concatenate(labels), file["label"])
    assert data.class_names is not None
    assert data.class_names[::9] == ("airplane", "truck")


@pytest.mark.slow
def test_cifar10_jpeg_has_its_classes_in_turns(tmp_path: Path) -> None:
    """Nearly the exact images of `cifar10_4k`, class by class; each stretch has every class."""
    manual_dir = Path(os.environ.get("VAE_JAX_MANUAL_DIR", ""))
    if not (manual_dir / "cifar10_jpeg" / "train.tar.xz").exists():
        pytest.skip("the files of cifar10_jpeg are not in VAE_JAX_MANUAL_DIR")
    data = load("cifar10_jpeg", data_dir=tmp_path, manual_dir=manual_dir)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [45_000, 5_000, 10_000]
    for split in (data.train, data.valid, data.test):
        assert split.labels is not None
        np.testing.assert_array_equal(split.labels, np.arange(len(split)) % 10)
    with np.load(manual_dir / "cifar10_4k" / "cifar10_train_first4000.npz") as exact:
        for label in range(10):
            images = exact["image"][exact["label"] == label]
            ours = data.train.images[label::10][: len(images)]
            error = np.abs(images.astype(int) - ours).mean((1, 2, 3))
            assert np.median(error) < 10
            assert (error < 25).mean() > 0.99


@pytest.mark.slow
def test_emoji_styles_are_split_by_subject(tmp_path: Path, manual_dir: Path) -> None:
    """Every picture of the archive once, a subject's three in one split, one after the other."""
    path = manual_dir / "emoji_styles" / "emoji_styles.tar.xz"
    if not path.exists():
        pytest.skip("the file of emoji_styles is not in VAE_JAX_MANUAL_DIR")
    data = load("emoji_styles", data_dir=tmp_path)
    assert data.class_names == ("openmoji", "twemoji", "fluent")
    splits = (data.train, data.valid, data.test)
    assert [len(split) for split in splits] == [3 * 1274, 3 * 160, 3 * 160]
    for split in splits:
        assert split.labels is not None
        np.testing.assert_array_equal(split.labels, np.arange(len(split)) % 3)
    assert data.class_names is not None
    expected: dict[str, list[bytes]] = {}
    with tarfile.open(path) as archive:
        for style in data.class_names:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if folder.rpartition("/")[2] == style and (file := archive.extractfile(member)):
                    with Image.open(file) as image:
                        expected.setdefault(name, []).append(image.convert("RGB").tobytes())
    trios = [
        tuple(each.tobytes() for each in split.images[row : row + 3])
        for split in splits
        for row in range(0, len(split), 3)
    ]
    assert sorted(trios) == sorted(map(tuple, expected.values()))


# Errors: one sentence each


def test_unknown_names_are_listed() -> None:
    with pytest.raises(VaeJaxError, match=r"no data set 'mnits': choose one of mnist, fashion_"):
        load("mnits")
    with pytest.raises(VaeJaxError, match=r"no protocol 'grau': choose one of dynamic, fixed"):
        load("mnist", "grau")


def test_a_binary_data_set_takes_threshold_alone() -> None:
    with pytest.raises(VaeJaxError, match="is binary already, so the protocol 'dynamic'"):
        load("binarized_mnist", "dynamic")


def test_an_official_validation_split_is_not_recut(data_dir: Path) -> None:
    with pytest.raises(VaeJaxError, match="an official validation split of 500 images"):
        load("mnist_5k", valid=100, data_dir=data_dir)
    assert len(load("mnist_5k", valid=500, data_dir=data_dir).valid) == 500


def test_a_manual_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(VaeJaxError, match=r"manual folder .*/nowhere does not exist"):
        prepare("mnist", tmp_path, tmp_path / "nowhere")


@pytest.mark.slow
def test_no_internet_and_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAE_JAX_MANUAL_DIR", raising=False)
    for scheme in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(VaeJaxError, match=r"put train-images-idx3-ubyte.gz, .* VAE_JAX_MANUAL_DIR"):
        prepare("mnist", tmp_path)


@pytest.mark.slow
def test_files_that_only_a_person_can_fetch(tmp_path: Path) -> None:
    with pytest.raises(VaeJaxError, match=rf"put frey_rawface.mat from .* into {tmp_path}"):
        prepare("frey_faces", tmp_path / "data", tmp_path)


@pytest.mark.parametrize("name", ["mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_altered_official_files(name: str, tmp_path: Path) -> None:
    for file in SOURCES[name].manual_files:
        (tmp_path / file).write_bytes(b"cut short")
    with pytest.raises(VaeJaxError, match=rf"{tmp_path}/\S+\.gz is not the official file"):
        prepare(name, tmp_path / "data", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("frey_faces", "frey_rawface.mat"),
        ("caltech101_silhouettes", "caltech101_silhouettes_28_split1.mat"),
        ("cifar10_4k", "cifar10_train_first4000.npz"),
        ("cifar10_jpeg", "train.tar.xz"),
        ("emoji_styles", "emoji_styles.tar.xz"),
    ],
)
def test_altered_manual_files(name: str, file: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "test.tar.xz").touch()  # which cifar10_jpeg needs too
    (tmp_path / name / file).write_bytes(b"cut short")
    with pytest.raises(VaeJaxError, match=rf"{tmp_path}/{name}/{file} is not the .*(file|styles)"):
        prepare(name, tmp_path / "data", tmp_path)


def test_tensorflow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorflow.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'tensorflow'\", name='tensorflow')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        VaeJaxError, match=r"needs tensorflow, .* `pip install 'vae_jax\[prepare\]'"
    ):
        prepare("mnist_5k", tmp_path)


def test_a_data_dir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # the tests may run as root, whom permissions do not stop
    with pytest.raises(VaeJaxError, match="see that this folder can be written"):
        prepare("mnist_5k", tmp_path / "file" / "data")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [200_000, 3_000_000], ids=["TFDS", "cache"])
def test_the_disk_refuses_to_take_more(limit: int, tmp_path: Path) -> None:
    # Files over the limit fail in write(2), as on a full disk: of mnist_5k's, the compressed
    # training records have 1 MB, the cached training images 3.1 MB.
    program = (
        "import resource; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        f"from vae_jax.data import prepare; prepare('mnist_5k', {str(tmp_path)!r})"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.returncode == 1
    assert "choose another with --data-dir or VAE_JAX_DATA_DIR" in child.stderr.splitlines()[-1]
    left = {path.name for path in (tmp_path / "mnist_5k").iterdir()}
    assert left <= {"vae_jax.lock", "1.0.0"}  # the second is TFDS's own and complete


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files and arrays that are hashed."""
    sizes: list[int] = []
    entry, fingerprint = storage._entry, datasets._fingerprint

    def of_file(path: Path) -> Any:
        sizes.append(path.stat().st_size)
        return entry(path)

    def of_arrays(splits: Any) -> str:
        sizes.append(sum(split.images.nbytes for split in splits.values()))
        return fingerprint(splits)

    monkeypatch.setattr(storage, "_entry", of_file)
    monkeypatch.setattr(datasets, "_fingerprint", of_arrays)
    return sizes


def test_bytes_are_hashed_once_until_they_are_touched(
    hashed: list[int], data_dir: Path, tmp_path: Path
) -> None:
    """What one process has verified, no other hashes; a touched file, a flag and a cut do."""
    cached = tmp_path / "mnist_5k" / "vae_jax"
    shutil.copytree(data_dir / "mnist_5k" / "vae_jax", cached)
    for note in cached.glob(".*"):
        note.unlink()
    whole = sum(file.stat().st_size for file in cached.glob("*.npy"))
    images = 5000 * 28 * 28
    first = load("mnist_5k", data_dir=tmp_path).fingerprint
    assert sum(hashed) == whole + images
    hashed.clear()
    assert load("mnist_5k", data_dir=tmp_path).fingerprint == first
    program = (
        "import hashlib, sys; from vae_jax.data import load; "
        "hashlib.file_digest = None; "  # nobody calls it
        f"print(load('mnist_5k', data_dir={str(tmp_path)!r}).fingerprint)"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert child.stdout.strip() == first, child.stderr
    assert not hashed
    prepare("mnist_5k", tmp_path, verify=True)
    assert sum(hashed) == whole
    hashed.clear()
    os.utime(cached / "test_images.npy")
    assert load("mnist_5k", data_dir=tmp_path).fingerprint == first
    assert sum(hashed) == whole
    manifest = json.loads((cached / "manifest.json").read_text())
    manifest["files"]["test_labels.npy"]["sha256"] = "0" * 64
    (cached / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VaeJaxError, match=r"test_labels\.npy is not the file that was written"):
        load("mnist_5k", data_dir=tmp_path)


def test_every_byte_is_checked_on_request(data_dir: Path, tmp_path: Path) -> None:
    """A disk that changes a byte leaves size and time as they were."""
    cached = tmp_path / "mnist_5k" / "vae_jax"
    shutil.copytree(data_dir / "mnist_5k" / "vae_jax", cached)
    load("mnist_5k", data_dir=tmp_path)
    file = cached / "train_images.npy"
    status, content = file.stat(), bytearray(file.read_bytes())
    content[100_000] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    load("mnist_5k", data_dir=tmp_path)
    with pytest.raises(VaeJaxError, match=r"train_images\.npy is not the file that was written"):
        prepare("mnist_5k", tmp_path, verify=True)


def test_fingerprints_that_are_remembered_are_of_the_cut(tmp_path: Path) -> None:
    assert cache.remembered(tmp_path, {"x": 1}, "one", lambda: "a") == "a"
    assert cache.remembered(tmp_path, {"x": 1}, "one", lambda: "b") == "a"
    assert cache.remembered(tmp_path, {"x": 1}, "two", lambda: "c") == "c"
    assert cache.remembered(tmp_path, {"x": 2}, "one", lambda: "d") == "d"
    (tmp_path / ".fingerprints.json").write_text("{")
    assert cache.remembered(tmp_path, {"x": 1}, "one", lambda: "e") == "e"


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ("flip", "train_images.npy is not the file that was written"),
        ("remove", "valid_labels.npy is missing"),
    ],
)
def test_a_damaged_cache_is_refused(damage: str, what: str, data_dir: Path, tmp_path: Path) -> None:
    cached = tmp_path / "mnist_5k" / "vae_jax"
    shutil.copytree(data_dir / "mnist_5k" / "vae_jax", cached)
    if damage == "flip":
        with (cached / "train_images.npy").open("r+b") as file:
            file.seek(100_000)
            byte = file.read(1)[0]
            file.seek(100_000)
            file.write(bytes([byte ^ 1]))
    else:
        (cached / "valid_labels.npy").unlink()
    expected = rf"at {cached} are damaged \({what}\): move that folder away"
    with pytest.raises(VaeJaxError, match=expected):
        load("mnist_5k", data_dir=tmp_path)


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(tmp_path: Path) -> None:
    program = f"from vae_jax.data import prepare; prepare('mnist_5k', {str(tmp_path)!r})"
    children = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert len(load("mnist_5k", data_dir=tmp_path).train) == 4000
