"""A data set written to a folder of pictures, which is read as any user's folder is."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny
from running import script

from vae_jax import Data, VaeJaxError, load_folder

EXPORT = script("export_folder")
BARS = dataclasses.replace(
    tiny.data("grey"), class_names=("a", "b/b", "c c", "3", "4", "5", "6", "7")
)


def test_a_folder_read_again_has_the_bytes_the_groups_and_the_splits(tmp_path: Path):
    """Classes that no group names are left out; in a group pictures keep their order."""
    count = EXPORT.export(BARS, tmp_path / "bars", ("upper=c c,a", "lower=7"))
    found = load_folder(tmp_path / "bars", 4, channels=1, data_dir=tmp_path / "data")
    assert found.class_names == ("lower", "upper")
    assert count == sum(len(split) for split in (found.train, found.valid, found.test))
    for split in ("train", "valid", "test"):
        images, labels = getattr(BARS, split).images, getattr(BARS, split).labels
        groups = [images[labels == 7], images[(labels == 0) | (labels == 2)]]
        np.testing.assert_array_equal(getattr(found, split).images, np.concatenate(groups))
        expected = np.repeat([0, 1], [len(group) for group in groups])
        np.testing.assert_array_equal(getattr(found, split).labels, expected)


def test_each_class_has_its_own_folder(tmp_path: Path):
    """With a slash in its name too."""
    assert EXPORT.export(BARS, tmp_path / "bars") == 90 + 21 + 21
    folders = {path.name for path in (tmp_path / "bars" / "train").iterdir()}
    assert folders == {"a", "b-b", "c c", "3", "4", "5", "6", "7"}


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (("one=a,bird",), "'bird' is no class of bars: write .* each of a, b/b, c c, 3"),
        (("one=a", "two=3,a"), "'a' is in two groups"),
        (("a",), "'' is no class"),
    ],
)
def test_groups_that_are_not_of_the_classes_are_refused(
    groups: tuple[str, ...], said: str, tmp_path: Path
):
    with pytest.raises(VaeJaxError, match=said):
        EXPORT.export(BARS, tmp_path / "bars", groups)
    assert not list(tmp_path.iterdir())


def test_pictures_are_not_mixed_with_others(tmp_path: Path):
    with pytest.raises(VaeJaxError, match="exists: name a folder that does not"):
        EXPORT.export(BARS, tmp_path)
    plain = Data.from_arrays("plain", tiny.images(3, 0), protocol="grey")
    with pytest.raises(VaeJaxError, match="plain has no classes"):
        EXPORT.export(plain, tmp_path / "new")
