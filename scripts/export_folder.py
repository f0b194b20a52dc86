"""Writes a data set's images as PNG files, in a sub-folder for each class or group of classes.

    python scripts/export_folder.py cifar10_4k pictures/cifar10_4k \
        --groups animals=bird,cat,deer,dog,frog,horse vehicles=airplane,automobile,ship,truck
    vae-jax train experiments/folder.py --images pictures/cifar10_4k --styles --workdir runs/styles

The data set's splits become the folders `train`, `valid` and `test`, which `load_folder` reads as
splits: no test image is trained on.
"""

from pathlib import Path

import numpy as np
import tyro
from rich.progress import track

from vae_jax import Data, VaeJaxError, load, plots
from vae_jax.data import Split
from vae_jax.data.pipeline import SplitName

SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


def read_groups(data: Data, groups: tuple[str, ...]) -> dict[str, list[int]]:
    """The class numbers of each folder; without groups each class has its own folder.

    Args:
        data: a data set with class labels.
        groups: folders and their classes, such as `animals=bird,cat`; classes in no group are left
            out.

    Raises:
        VaeJaxError: the data set has no classes or lacks one that a group names, or a class is in
            two groups.
    """
    names = data.class_names
    if names is None:
        raise VaeJaxError(
            f"{data.name} has no classes to name sub-folders by: choose another data set."
        )
    if not groups:
        return {name.replace("/", "-"): [label] for label, name in enumerate(names)}
    parts = {folder: wanted.split(",") for folder, _, wanted in (g.partition("=") for g in groups)}
    every = [name for wanted in parts.values() for name in wanted]
    for name in every:
        if name not in names or every.count(name) > 1:
            raise VaeJaxError(
                f"{name!r} is {'in two groups' if name in names else f'no class of {data.name}'}: "
                f"write --groups FOLDER=CLASS,CLASS ... with each of {', '.join(names)} once at "
                "most."
            )
    return {folder: [names.index(name) for name in wanted] for folder, wanted in parts.items()}


def rows_of(split: Split, classes: list[int]) -> np.ndarray:
    """The rows of a labelled split that have these classes."""
    assert split.labels is not None
    return np.flatnonzero(np.isin(split.labels, classes))


def export(data: Data, folder: Path, groups: tuple[str, ...] = ()) -> int:
    """Write the images as SPLIT/GROUP/ROW.png, and return their number.

    Raises:
        VaeJaxError: the groups do not suit the data set, or the folder exists.
    """
    chosen = read_groups(data, groups)
    if folder.exists():
        raise VaeJaxError(f"{folder} exists: name a folder that does not.")
    files = [
        (data[split], row, folder / split / group / f"{row:06}.png")
        for split in SPLITS
        for group, classes in chosen.items()
        for row in rows_of(data[split], classes)
    ]
    for split, row, path in track(files, str(folder)):
        plots.save_images(split.images[row : row + 1] / np.float32(255), path)
    return len(files)


def main(
    data: tyro.conf.Positional[str],
    folder: tyro.conf.Positional[Path],
    groups: tuple[str, ...] = (),
) -> None:
    """Write a data set's images to a folder, a sub-folder for each class or group of them.

    Args:
        data: the name of a data set, as `vae-jax data list` prints it.
        folder: the folder to write, which must not exist.
        groups: folders of several classes, animals=bird,cat,dog vehicles=ship,truck; without them
            each class has its own.
    """
    try:
        print(f"{export(load(data), folder, groups):,} pictures in {folder}")
    except VaeJaxError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    tyro.cli(main)
