"""`--data` a folder that Hugging Face's `datasets` has written: pictures, classes and splits."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vae_jax import Data, VaeJaxError, load
from vae_jax.data import hugging_face
from vae_jax.data.pipeline import SplitName
from vae_jax.experiment import load_again
from vae_jax.identity import describe

SIDE = 8


def pictures(count: int, shade: int = 0) -> list[Image.Image]:
    """Grey pictures, their left half 0, their right half the shade and their number above it."""
    levels = np.zeros((count, SIDE, SIDE), np.uint8)
    levels[:, :, SIDE // 2 :] = shade + np.arange(count, dtype=np.uint8)[:, None, None]
    return [Image.fromarray(each) for each in levels]


def right(data: Data, split: SplitName) -> list[int]:
    return data[split].images[:, 0, -1, 0].tolist()


def saved(folder: Path, **splits: Any) -> str:
    """A DatasetDict on the disk, as the name of data in its own shape."""
    library = pytest.importorskip("datasets")
    features = library.Features(
        {"picture": library.Image(), "label": library.ClassLabel(names=["dark", "light"])}
    )
    every = {name: library.Dataset.from_dict(columns, features) for name, columns in splits.items()}
    library.DatasetDict(every).save_to_disk(str(folder))
    return f"{folder}@{SIDE}x{SIDE}x1"


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAE_JAX_DATA_DIR", str(tmp_path / "kept"))


def test_without_the_package_a_sentence_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    monkeypatch.setattr(hugging_face, "find_spec", lambda name: None)
    with pytest.raises(
        VaeJaxError, match=r"data set of Hugging Face's, .*: `pip install datasets`"
    ):
        load(str(tmp_path))


@pytest.mark.slow
def test_splits_classes_and_pictures_are_its_own(tmp_path: Path) -> None:
    name = saved(
        tmp_path / "shades",
        train={"picture": pictures(20, 100), "label": [0, 1] * 10},
        validation={"picture": pictures(3, 150), "label": [1, 1, 0]},
        test={"picture": pictures(2, 200), "label": [-1, -1]},  # kept secret
    )
    data = load(name)
    assert (data.name, data.protocol.name, data.image_shape) == ("shades", "dynamic", (8, 8, 1))
    assert right(data, "train") == [*range(100, 120)]
    assert right(data, "valid") == [150, 151, 152]
    assert right(data, "test") == [200, 201]
    assert not data.train.images[:, :, : SIDE // 2].any()
    assert data.class_names == ("dark", "light")
    np.testing.assert_array_equal(data.train.labels, [0, 1] * 10)
    np.testing.assert_array_equal(data.valid.labels, [1, 1, 0])
    assert data.test.labels is None
    before = sorted(path for path in (tmp_path / "kept").rglob("*.npy"))
    again = load_again(describe(data.source))  # as a run folder does, from what is kept
    assert again.fingerprint == data.fingerprint
    assert sorted(path for path in (tmp_path / "kept").rglob("*.npy")) == before
    assert load(f"{tmp_path / 'shades'}@16x24x3").image_shape == (16, 24, 3)


@pytest.mark.slow
@pytest.mark.parametrize("has_test", [False, True])
def test_what_it_lacks_is_shared_out(tmp_path: Path, has_test: bool) -> None:
    splits = {"train": {"picture": pictures(30), "label": [0] * 30}}
    if has_test:
        splits["test"] = {"picture": pictures(5, 100), "label": [1] * 5}
    data = load(saved(tmp_path / "shades", **splits))
    assert [len(data.train), len(data.valid)] == ([27, 3] if has_test else [24, 3])
    rest = [] if has_test else right(data, "test")
    assert sorted([*right(data, "train"), *right(data, "valid"), *rest]) == [*range(30)]
    if has_test:
        assert right(data, "valid") == [27, 28, 29]


@pytest.mark.slow
def test_one_data_set_with_words_for_labels_and_odd_pictures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A palette, 16 bits and a JPEG by their contents; what is none or damaged is named."""
    library = pytest.importorskip("datasets")
    sixteen = Image.fromarray(np.full((SIDE, SIDE), 257 * 90, np.uint16))
    files: list[dict[str, Any] | None] = []
    for picture, kind in (
        (Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).quantize(4), "PNG"),
        (sixteen, "PNG"),
        (Image.new("L", (SIDE, SIDE), 90), "JPEG"),
    ):
        picture.save(file := io.BytesIO(), kind)
        files.append({"bytes": file.getvalue(), "path": None})
    damaged = {"bytes": b"no picture", "path": None}
    columns = {"image": [*files * 4, damaged, None], "label": ["b", "a"] * 7}
    types = {"image": library.Image(), "label": library.Value("string")}
    whole = library.Dataset.from_dict(columns, library.Features(types))
    whole.with_format("numpy").save_to_disk(str(tmp_path / "odd"))
    data = load(f"{tmp_path / 'odd'}@{SIDE}x{SIDE}x3")
    said = capfd.readouterr().err
    assert "train 12: not a JPEG, PNG, WebP, GIF, BMP or TIFF picture" in said
    assert "train 13: no picture" in said
    splits = data.train, data.valid, data.test
    assert [len(split) for split in splits] == [10, 1, 1]
    assert all((abs(split.images.astype(int) - 90) <= 1).all() for split in splits)
    assert data.class_names == ("a", "b")
    labels = np.concatenate([np.asarray(split.labels) for split in splits])
    np.testing.assert_array_equal(np.bincount(labels), [6, 6])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "split", "said"),
    [
        ({"text": ["a"]}, "train", r"has 0 columns of the kind datasets.Image among text: keep"),
        ({"a": pictures(1), "b": pictures(1)}, "train", "has 2 columns of the kind"),
        ({"image": pictures(1)}, "test", "has the splits test: name the one for training `train`"),
        ({"image": [Image.new("L", (1, 1))]}, "train", r"too small \(1x1 pixels\)"),
    ],
)
def test_what_has_no_pictures_is_refused(
    tmp_path: Path, columns: dict[str, Any], split: str, said: str
) -> None:
    library = pytest.importorskip("datasets")
    made = library.DatasetDict({split: library.Dataset.from_dict(columns)})
    made.save_to_disk(str(tmp_path / "none"))
    with pytest.raises(VaeJaxError, match=said):
        load(str(tmp_path / "none"))
    assert not list((tmp_path / "kept").rglob("*_images.npy"))
