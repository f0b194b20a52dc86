"""`--data PATH`: a user's arrays and pictures, in every experiment."""

import inspect
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from running import ROOT

from vae_jax import Experiment, VaeJaxError, load
from vae_jax.experiment import load_again, read_module
from vae_jax.identity import describe
from vae_jax.step import init_state

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (50, 28, 28, 1), dtype=np.uint8)
RGB = RNG.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


def counts(data: Any) -> tuple[int, ...]:
    return tuple(len(data[split]) for split in ("train", "valid", "test"))


def whole(data: Any) -> np.ndarray:
    images = [data[split].images for split in ("train", "valid", "test")]
    return np.sort(np.concatenate(images).reshape(sum(counts(data)), -1), axis=0)


@pytest.mark.parametrize(
    "saved",
    [GREY, GREY[..., 0], GREY.astype(np.int64), (GREY / 255).astype(np.float32)],
    ids=["bytes", "without a channel", "int64", "floats"],
)
def test_an_npy_file_is_split_once_and_for_all(tmp_path: Path, saved: np.ndarray):
    np.save(tmp_path / "mine.npy", saved)
    data = load(str(tmp_path / "mine.npy"))
    assert (data.name, data.protocol.name) == ("mine", "dynamic")
    assert counts(data) == (40, 5, 5)
    np.testing.assert_array_equal(whole(data), np.sort(GREY.reshape(50, -1), axis=0))
    np.save(tmp_path / "mine.npy", GREY)
    assert load(str(tmp_path / "mine.npy")).fingerprint == data.fingerprint


def test_an_npz_file_has_splits_and_labels(tmp_path: Path):
    path, labels = tmp_path / "mine.npz", np.arange(50) % 3
    np.savez(path, images=GREY, labels=np.array(["cat", "dog", "eel"])[labels])
    data = load(str(path))
    assert data.class_names == ("cat", "dog", "eel")
    for split in (data.train, data.test):
        rows = [int((image == GREY).all((1, 2, 3)).argmax()) for image in split.images]
        np.testing.assert_array_equal(split.labels, labels[rows])
    np.savez(path, x_train=RGB[:30], y_train=labels[:30], x_test=RGB[30:], y_test=labels[:10])
    data = load(str(path))  # as Keras names them
    assert counts(data) == (27, 3, 10)
    np.testing.assert_array_equal(data.valid.images, RGB[27:30])
    np.testing.assert_array_equal(data.valid.labels, labels[27:30])
    assert data.protocol.name == "grey"
    assert data.source is not None
    again = load_again(describe(data.source))  # as a run folder does
    assert again.fingerprint == data.fingerprint


def test_a_folder_has_the_shape_behind_its_name(tmp_path: Path):
    for n, image in enumerate(RGB[:12]):
        Image.fromarray(image).save(tmp_path / f"{n}.png")
    assert load(f"{tmp_path}@28x28x1", data_dir=tmp_path / "kept").image_shape == (28, 28, 1)
    data = load(str(tmp_path), data_dir=tmp_path / "kept")
    assert data.image_shape == (64, 64, 3)
    assert sum(counts(data)) == 12


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"pixels": GREY}, r"has the arrays pixels: name one images"),
        ({"images": RGB.transpose(0, 3, 1, 2)}, r"channels come first: save x.transpose"),
        ({"images": GREY.reshape(50, -1)}, r"have the shape \(50, 784\): give \[N, H, W, 1\]"),
        ({"images": 2.0 * GREY}, r"float64 from 0 to 510: save bytes, or floats from 0 to 1"),
        ({"images": GREY[:0]}, r"save bytes"),
        ({"images": np.array([None])}, r"holds no arrays"),
        ({"images": RGB[0]}, r"have the shape \(32, 32, 3\): of one picture save x\[None\]"),
        ({"images": np.zeros((5, 8, 8, 4), np.uint8)}, r"give \[N, H, W, 1\] or \[N, H, W, 3\]"),
        ({"images": GREY.astype(np.uint16) * 257}, r"uint16 from \d+ to 65535: save bytes"),
        ({"images": GREY * 1j}, r"are complex128: save bytes, or floats from 0 to 1"),
    ],
)
def test_what_are_no_images_is_refused(tmp_path: Path, saved: dict[str, Any], said: str):
    np.savez(tmp_path / "mine.npz", **saved)
    with pytest.raises(VaeJaxError, match=said):
        load(str(tmp_path / "mine.npz"))


def test_the_arrays_of_medmnist_are_its_splits_and_few_images_train(tmp_path: Path):
    """`val_images`, and labels `[N, 1]`; of fewer than three images all."""
    labels = (np.arange(40) % 3).reshape(-1, 1).astype(np.uint8)
    parts = {"train": slice(30), "val": slice(30, 36), "test": slice(36, 40)}
    saved: dict[str, Any] = {f"{name}_images": RGB[rows] for name, rows in parts.items()}
    saved |= {f"{name}_labels": labels[rows] for name, rows in parts.items()}
    np.savez(tmp_path / "pathmnist.npz", **saved)
    data = load(tmp_path / "pathmnist.npz")
    assert counts(data) == (30, 6, 4)
    np.testing.assert_array_equal(data.valid.images, RGB[30:36])
    np.testing.assert_array_equal(data.valid.labels, labels[30:36, 0])
    for count, expected in ((1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1)), (19, (17, 1, 1))):
        np.save(tmp_path / "few.npy", GREY[:count])
        assert counts(load(tmp_path / "few.npy")) == expected


@pytest.mark.parametrize("behind", ["32", "32x32", "32x32x4", "0x", "x"])
def test_a_shape_that_is_none_is_refused(tmp_path: Path, behind: str):
    with pytest.raises(VaeJaxError, match=f"ends in @{behind}: after a folder .* such as @32x32x3"):
        load(f"{tmp_path}@{behind}")


def test_a_name_may_have_an_at_sign(tmp_path: Path):
    (tmp_path / "me@home").mkdir()
    with pytest.raises(VaeJaxError, match="no training picture"):
        load(str(tmp_path / "me@home"))


def test_what_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(VaeJaxError, match=r"mine.npy do not exist: name a file that does"):
        load(str(tmp_path / "mine.npy"))
    (tmp_path / "mine.npz").write_bytes(b"no archive")
    with pytest.raises(VaeJaxError, match="holds no arrays"):
        load(str(tmp_path / "mine.npz"))
    with pytest.raises(VaeJaxError, match=r"mine.npz@28x28x1 ends in @28x28x1: .* arrays none"):
        load(f"{tmp_path / 'mine.npz'}@28x28x1")
    Image.fromarray(RGB[0]).save(tmp_path / "one.png")
    with pytest.raises(VaeJaxError, match=r"one.png is a file: name the folder of pictures"):
        load(str(tmp_path / "one.png"))
    with pytest.raises(VaeJaxError, match=r"no data set 'minst'.*or the path of an \.npy"):
        load("minst")
    with pytest.raises(VaeJaxError, match="no data set ''"):  # none that is here
        load("")
    with pytest.raises(VaeJaxError, match=r"folder of pictures .* does not exist"):
        load(str(tmp_path / "nothing"))


EXPERIMENTS = [
    file for file in sorted((ROOT / "experiments").glob("*.py")) if file.stem != "folder"
]


@pytest.mark.others_slow
@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_takes_a_path(tmp_path: Path, file: Path):
    """Traced as it stands, but for what the shape of the images asks; folder.py has --images."""
    function = read_module(file)[1].experiment
    assert inspect.signature(function).parameters["data"].annotation is str
    colour = file.stem in ("cifar", "founding_example", "tokenizer")
    many = np.concatenate([RGB if colour else GREY] * 40)
    labels = np.arange(len(many)) % 3
    np.savez(tmp_path / "mine.npz", images=many, labels=labels)
    quick: dict[str, Any] = {"quick": True} if file.stem == "tokenizer" else {}
    quick |= {"size": "tiny"} if file.stem == "vdvae" else {}
    experiment = function(data=str(tmp_path / "mine.npz"), **quick)
    assert isinstance(experiment, Experiment)
    assert "mine" in experiment.data.name
    state = jax.eval_shape(lambda: init_state(experiment, 0))
    assert jax.tree.leaves(state.params)
