"""Decode a Hugging Face data set: `python -m vae_jax.data.hugging_face_prepare FOLDER ...`.

The only process that imports `datasets`. `vae_jax.data.hugging_face` starts it (`preparation.run`).
"""

# pyright: reportAttributeAccessIssue=false
# (Pyright takes datasets.py, beside this file, for the package.)

import functools
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np

from vae_jax.data import cache, preparation
from vae_jax.data.folder import SPLITS_NAMED
from vae_jax.data.folder_prepare import IMAGES_PER_PROCESS, UnusableError, decode, decode_file
from vae_jax.data.hugging_face import SPLITS, cache_of, files_of
from vae_jax.data.pipeline import SplitName
from vae_jax.errors import VaeJaxError

Splits = Mapping[SplitName, datasets.Dataset]


class Columns(NamedTuple):
    """The columns of an example that are used.

    Attributes:
        image: the column of its picture.
        label: the column of its label, or None.
        classes: the name of each class, by the value of its label.
    """

    image: str
    label: str | None
    classes: dict[object, str]


def open_splits(folder: Path) -> Splits:
    """The splits to use of the data set in `folder`, by their names in this package.

    Raises:
        VaeJaxError: there is no training split.
    """
    datasets.disable_caching()  # or its cache files would appear in the folder
    found = datasets.load_from_disk(str(folder))
    every = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    splits: dict[SplitName, datasets.Dataset]
    splits = {SPLITS_NAMED[name]: each for name, each in every.items() if name in SPLITS_NAMED}
    if not len(splits.get("train", ())):
        raise VaeJaxError(
            f"{folder} has the splits {', '.join(every) or 'none'}: name the one for training "
            "`train`, with datasets.DatasetDict, and save it again."
        )
    return splits


def columns_of(folder: Path, splits: Splits) -> Columns:
    """The columns to use of the examples in `splits` of the data set in `folder`.

    Raises:
        VaeJaxError: the column of pictures is missing or ambiguous.
    """
    every = splits["train"].features
    images = [name for name, kind in every.items() if isinstance(kind, datasets.Image)]
    image = images[0] if len(images) == 1 else "image"
    if image not in images:
        raise VaeJaxError(
            f"{folder} has {len(images)} columns of the kind datasets.Image among "
            f"{', '.join(every)}: keep one, or make one with "
            "cast_column(NAME, datasets.Image()), and save it again."
        )
    kinds = datasets.ClassLabel, datasets.Value
    classes = [name for name, kind in every.items() if isinstance(kind, datasets.ClassLabel)]
    named = [name for name in ("label", "labels") if isinstance(every.get(name), kinds)]
    label = (named or (classes if len(classes) == 1 else [None]))[0]
    if label is None:
        return Columns(image, None, {})
    if isinstance(every[label], datasets.ClassLabel):
        return Columns(image, label, dict(enumerate(every[label].names)))
    values = {value for split in splits.values() for value in split.unique(label)} - {None}
    return Columns(image, label, {value: str(value) for value in sorted(values)})


class Stretch(NamedTuple):
    """Examples `start` to `stop` of a split; `row` is the row of the first among all splits."""

    split: SplitName
    start: int
    stop: int
    row: int


def _decode(
    folder: Path, columns: Columns, shape: tuple[int, int, int], job: Stretch
) -> preparation.Piece:
    numbers = {value: number for number, value in enumerate(columns.classes)}
    split = open_splits(folder)[job.split].with_format(None)
    split = split.cast_column(columns.image, datasets.Image(decode=False))
    rows, images, labels, skipped = [], [], [], []
    for n in range(job.start, job.stop):
        example = split[n]
        try:
            images.append(_pixels(example[columns.image], shape))
        except UnusableError as error:
            skipped.append(f"{job.split} {n}: {error}")
            continue
        rows.append(job.row + n - job.start)
        labels.append(-1 if columns.label is None else numbers.get(example[columns.label], -1))
    stacked = np.stack(images) if images else np.empty((0, *shape), np.uint8)
    found = None if columns.label is None else np.array(labels, np.int32)
    return preparation.Piece(np.array(rows, np.int64), stacked, found, skipped)


def _pixels(picture: object, shape: tuple[int, int, int]) -> np.ndarray:
    match picture:
        case {"bytes": bytes(content)}:
            return decode_file(io.BytesIO(content), *shape)
        case {"path": str(path)}:
            return decode(Path(path), *shape)
    raise UnusableError("no picture")


def divided(rows: Mapping[SplitName, np.ndarray]) -> tuple[dict[SplitName, np.ndarray], str]:
    """The rows of all three splits from those of the given ones, and their origin in words."""
    train, none = rows["train"], np.empty(0, np.int64)
    valid, test = rows.get("valid", none), rows.get("test", none)
    rule = "the data set's own splits"
    tenth = max(1, len(train) // 10)
    if not len(valid) + len(test) and len(train) > 2:
        rule = "80, 10 and 10 % of the data set, shuffled"
        order = np.random.default_rng(0).permutation(len(train))
        train, valid, test = np.split(train[order], [-2 * tenth, -tenth])
    elif not len(valid) and len(train) > 1:
        rule += "; validation is the last tenth of training"
        train, valid = np.split(train, [-tenth])
    return {"train": train, "valid": valid, "test": test}, rule


def _prepare(folder: Path, shape: tuple[int, int, int], data_dir: Path) -> None:
    target = cache_of(files_of(folder), *shape, data_dir)
    with preparation.working_folder(target) as work:
        if work is None:
            return
        splits = open_splits(folder)
        columns = columns_of(folder, splits)
        own: list[SplitName] = [split for split in SPLITS if split in splits]
        starts = np.cumsum([0, *(len(splits[split]) for split in own)])
        jobs = [
            Stretch(split, part.start, part.stop, int(start) + part.start)
            for split, start in zip(own, starts, strict=False)
            for part in preparation.divide_rows(len(splits[split]), int(np.prod(shape)))
        ]
        plan = {"target": target.parent.name, "parts": len(jobs)}
        processes = max(1, min(os.cpu_count() or 1, int(starts[-1]) // IMAGES_PER_PROCESS))
        decode_job = functools.partial(_decode, folder, columns, shape)
        made = preparation.decode_parts(work, plan, jobs, decode_job, processes)
        usable, skipped = preparation.usable_rows(made)
        by_name = np.split(usable, np.searchsorted(usable, starts[1:-1]))
        rows = dict(zip(own, by_name, strict=True))
        if not len(rows["train"]):
            raise VaeJaxError(
                f"{folder} has no training picture that can be used ({'; '.join(skipped[:5])}): "
                "save pictures that Pillow opens."
            )
        by_split, rule = divided(rows)
        whole = preparation.assemble_splits(work, made, by_split)
        names: list[str] | None = None
        for split in SPLITS if columns.label is not None else ():
            file = whole / f"{split}_labels.npy"
            if (np.load(file) < 0).any():  # as when the labels of test images are secret
                file.unlink()
            else:
                names = [*columns.classes.values()]
        about = {"class_names": names, "skipped": skipped, "split_rule": rule}
        cache.make(whole, target, about)


def main(folder: str, height: str, width: str, channels: str, data_dir: str) -> int:
    """Prepare a data set; on failure print one sentence.

    Args:
        folder: the folder of the data set.
        height: the height of the images.
        width: their width.
        channels: their channels.
        data_dir: the data folder.

    Returns:
        The exit code, 1 after a failure.
    """
    try:
        _prepare(Path(folder), (int(height), int(width), int(channels)), Path(data_dir))
    except VaeJaxError as error:
        print(f"\n{error}")
        return 1
    except OSError as error:
        print(
            f"\nThe pictures of {folder} cannot be read, or kept in {data_dir} ({error}): see that "
            "both are whole, can be read and written, and have room, or choose another folder with "
            "--data-dir or VAE_JAX_DATA_DIR."
        )
        return 1
    except Exception as error:  # readers raise many kinds of errors
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"\n{folder} cannot be read ({reason}): save it again with save_to_disk.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
