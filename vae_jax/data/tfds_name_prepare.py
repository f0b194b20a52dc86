"""Prepare any data set of TFDS: `python -m vae_jax.data.tfds_name_prepare NAME SIZE DATA_DIR ...`.

`vae_jax.data.prepare` starts it (`preparation.run`). Several processes decode; each writes its
stretch of a split straight into the arrays, which are on the disk only once.
"""

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from vae_jax.data import cache, preparation
from vae_jax.data.pipeline import SplitName
from vae_jax.data.tfds_name import PREFIX, folder_of
from vae_jax.data.tfds_prepare import IMAGES_PER_PROCESS, build, explain, stretch_of
from vae_jax.errors import VaeJaxError

_SPLITS: Mapping[SplitName, str] = {"train": "train", "valid": "validation", "test": "test"}


class Stretch(NamedTuple):
    """Images `start` to `stop` of a split."""

    split: SplitName
    start: int
    stop: int


class Features(NamedTuple):
    """The features of an example that are used.

    Attributes:
        image: the name of its image.
        channels: 1 for grey images, 3 for RGB.
        label: the name of its label, or None.
        classes: the names of the classes.
    """

    image: str
    channels: int
    label: str | None
    classes: list[str]


def features_of(builder: tfds.core.DatasetBuilder) -> Features:
    """The features to use of the examples of a `builder`.

    Raises:
        VaeJaxError: the image is missing or ambiguous, or not of bytes, grey or RGB.
    """
    features: Any = builder.info.features
    every = dict(features.items())
    images = [name for name, feature in every.items() if isinstance(feature, tfds.features.Image)]
    name = images[0] if len(images) == 1 else "image"
    if name not in images:
        raise VaeJaxError(
            f"{builder.info.full_name} has {len(images)} images in each example: choose a data set "
            "of one, or write its arrays with Data.from_arrays."
        )
    shape, dtype = every[name].shape, every[name].np_dtype
    if dtype != np.uint8 or shape[-1] not in (1, 3, 4, None):
        raise VaeJaxError(
            f"The images of {builder.info.full_name} are {np.dtype(dtype)} of {shape[-1]} "
            "channels: choose a data set of bytes, grey or RGB."
        )
    classes = [key for key, each in every.items() if isinstance(each, tfds.features.ClassLabel)]
    label = "label" if "label" in classes else classes[0] if len(classes) == 1 else None
    names = [] if label is None else every[label].names
    return Features(name, 1 if shape[-1] == 1 else 3, label, names)


def resized(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """An image cropped to a square around its centre and resized.

    Args:
        image: uint8 `[H, W, C]`.
        size: the side of the square.
        channels: C.

    Returns:
        uint8 `[size, size, C]`.
    """
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    pixels = pixels.convert("RGB" if channels == 3 else "L")
    if pixels.size != (size, size):
        pixels = ImageOps.fit(pixels, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(pixels).reshape(size, size, channels)


def _write(name: str, data_dir: Path, size: int, whole: Path, stretch: Stretch) -> None:
    builder = tfds.builder(name, data_dir=data_dir)
    image, channels, label, _ = features_of(builder)
    split, start, stop = stretch
    examples = stretch_of(builder, _SPLITS[split], start, stop)
    images = np.load(whole / f"{split}_images.npy", mmap_mode="r+")
    images[start:stop] = [resized(example[image], size, channels) for example in examples]
    images.flush()
    if label is not None:
        labels = np.load(whole / f"{split}_labels.npy", mmap_mode="r+")
        labels[start:stop] = [example[label] for example in examples]
        labels.flush()


def _prepare(name: str, size: int, data_dir: Path, manual_folder: Path | None) -> None:
    target = folder_of(name, size, data_dir)
    with preparation.working_folder(target) as work:
        if work is None:
            return
        builder = build(name, data_dir, manual_folder)
        _, channels, label, classes = features_of(builder)
        shape = size, size, channels
        counts: dict[SplitName, int] = {
            split: builder.info.splits[own].num_examples
            for split, own in _SPLITS.items()
            if own in builder.info.splits
        }
        if "train" not in counts:
            raise VaeJaxError(f"{PREFIX}{name} has no split `train`: choose another data set.")
        arrays = {f"{split}_images": ((n, *shape), np.uint8) for split, n in counts.items()}
        if label is not None:
            arrays |= {f"{split}_labels": ((n,), np.int32) for split, n in counts.items()}
        jobs = [
            Stretch(split, part.start, part.stop)
            for split, count in counts.items()
            for part in preparation.divide_rows(count, size * size * channels)
        ]
        plan = {"version": str(builder.version), "jobs": len(jobs), "images": counts}
        processes = max(1, min(os.cpu_count() or 1, sum(counts.values()) // IMAGES_PER_PROCESS))
        write = functools.partial(_write, name, data_dir, size)
        whole = preparation.write_in_place(work, plan, arrays, jobs, write, processes)
        about: dict[str, object] = {"tfds_version": str(builder.version)}
        if label is not None:
            about["class_names"] = classes
        cache.make(whole, target, about)


def main(name: str, size: str, data_dir: str, manual: str) -> int:
    """Prepare a data set; on failure print one sentence.

    Args:
        name: tfds:NAME, or tfds:NAME/CONFIG.
        size: the side of the square images.
        data_dir: the data folder.
        manual: a folder of files downloaded by hand, if any.

    Returns:
        The exit code, 1 after a failure.
    """
    where = manual or "a folder that --manual-dir names"
    missing = (
        f"The files of {PREFIX}{name} are not at hand and could not be downloaded: put them into "
        f"{where}, or prepare them where there is internet and copy {Path(data_dir) / name}."
    )
    try:
        _prepare(name, int(size), Path(data_dir), Path(manual) if manual else None)
    except Exception as error:
        print("\n" + " ".join(explain(error, PREFIX + name, Path(data_dir), missing).split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
