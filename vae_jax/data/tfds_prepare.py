"""Prepare one data set: `python -m vae_jax.data.tfds_prepare NAME DATA_DIR [MANUAL_FOLDER]`.

`vae_jax.data.prepare` starts it (`preparation.run`). TensorFlow is imported here and in
`tfds_name_prepare` alone. TFDS generates in this one process; several decode the results.
"""

import functools
import importlib
import math
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing, registered
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from vae_jax import storage
from vae_jax.data import cache, preparation
from vae_jax.data.builders import MissingFileError  # and registers our builders with TFDS
from vae_jax.data.catalog import SOURCES, Source
from vae_jax.errors import VaeJaxError

_DISK_FULL = tuple(os.strerror(code) for code in storage.DISK_FULL)
# A process takes seconds to start, in which another decodes thousands of small images.
IMAGES_PER_PROCESS = 10_000
_TFDS_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def build(name: str, data_dir: Path, manual_folder: Path | None) -> tfds.core.DatasetBuilder:
    """The builder of a data set, which TFDS generates unless that is done.

    Args:
        name: the TFDS name.
        data_dir: the data folder.
        manual_folder: a folder of files downloaded by hand, or None.
    """
    downloader.MAX_RETRIES = 4  # TFDS's 10 keep a machine without internet waiting for 200 s
    tfds.disable_progress_bar()
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        importlib.import_module("tensorflow")  # else TFDS fails halfway through
        # TFDS names extracted files by file name alone: in its usual shared folder it takes
        # MNIST's images for Fashion-MNIST's, whose files are named alike.
        storage.make_folder(data_dir / builder.name)
        with tempfile.TemporaryDirectory(dir=data_dir / builder.name) as extract_dir:
            config = tfds.download.DownloadConfig(
                extract_dir=extract_dir, manual_dir=manual_folder, try_download_gcs=False
            )
            builder.download_and_prepare(download_config=config, file_format="array_record")
    return builder


@functools.cache  # in each process
def _builder(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    return tfds.builder(name, data_dir=data_dir)


class Records(NamedTuple):
    """A stretch of one split as TFDS has written it, and the rows of its images."""

    split: str
    start: int
    rows: np.ndarray


def stretch_of(
    builder: tfds.core.DatasetBuilder, split: str, start: int, stop: int
) -> list[dict[str, Any]]:
    """Examples of a split as TFDS has written it.

    Args:
        builder: the builder of the data set.
        split: the split.
        start: the first example.
        stop: the end of the examples.
    """
    if builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
        return builder.as_data_source(split).__getitems__(range(start, stop))  # pyright: ignore[reportCallIssue]
    # Prepared earlier by the user, in TFDS's default format.
    stretch = tfds.core.ReadInstruction(split, from_=start, to=stop, unit="abs")
    return list(tfds.as_numpy(builder.as_dataset(stretch)))  # pyright: ignore[reportCallIssue]


def _decode(source: Source, data_dir: Path, records: Records) -> preparation.Piece:
    builder, (split, start, rows) = _builder(source.name, data_dir), records
    stop = start + len(rows)
    decoded = stretch_of(builder, split, start, stop)
    columns = {key: np.stack([example[key] for example in decoded]) for key in decoded[0]}
    images = columns["image"]
    # TFDS's binarized MNIST holds 0 and 1; the protocols take bytes.
    images = np.uint8(255) * (images > 0) if source.protocol == "threshold" else images
    labels = columns["label"].astype(np.int32) if "label" in columns else None
    return preparation.Piece(rows, images, labels, [])


def _plan(source: Source, builder: tfds.core.DatasetBuilder) -> list[Records]:
    """Divide all splits, whose images are numbered in the order their builder generates them."""
    plan, first = [], 0
    for split in source.sizes:
        name = _TFDS_SPLITS[split]
        # TFDS writes examples sorted by the hash of their key, which here is their index.
        size = builder.info.splits[name].num_examples
        written = sorted(range(size), key=hashing.Hasher(name).hash_key)
        for part in preparation.divide_rows(size, math.prod(source.image_shape)):
            rows = first + np.array(written[part.start : part.stop])
            plan.append(Records(name, part.start, rows))
        first += size
    return plan


def _prepare(source: Source, data_dir: Path, manual_folder: Path | None) -> None:
    """Make the cache of a data set, unless another process makes it first."""
    target = cache.folder(data_dir, source.name)
    with preparation.working_folder(target) as work:
        if work is None:
            return
        builder = build(source.name, data_dir, manual_folder)
        jobs = _plan(source, builder)
        total = sum(len(job.rows) for job in jobs)
        plan = {"version": str(builder.version), "parts": len(jobs), "images": total}
        processes = max(1, min(os.cpu_count() or 1, total // IMAGES_PER_PROCESS))
        decode = functools.partial(_decode, source, data_dir)
        files = preparation.decode_parts(work, plan, jobs, decode, processes)
        ends = np.cumsum([builder.info.splits[_TFDS_SPLITS[s]].num_examples for s in source.sizes])
        rows = dict(zip(source.sizes, np.split(np.arange(total), ends[:-1]), strict=True))
        features: Any = builder.info.features
        about = {"tfds_version": str(builder.version)}
        if "label" in features:
            about["class_names"] = features["label"].names
        cache.make(preparation.assemble_splits(work, files, rows), target, about)


def explain(error: Exception, name: str, data_dir: Path, missing: str) -> str:
    """The sentence for an error of TFDS: the fault, its location and the remedy.

    Args:
        error: the error.
        name: the TFDS name.
        data_dir: the data folder.
        missing: whether files are missing.
    """
    wrong_file = re.search(r"downloaded to (.*), has wrong checksum", str(error))
    match error:
        case VaeJaxError():
            return str(error)
        case NonMatchingChecksumError() if wrong_file:
            return (
                f"{wrong_file[1]} is not the official file of {name} (its sha256 differs): "
                "fetch it again, and put that in its place."
            )
        case ModuleNotFoundError():
            return (
                f"Preparing {name} needs {error.name}, which is not installed: run "
                "`pip install 'vae_jax[prepare]'`."
            )
        case requests.RequestException() | tfds.download.DownloadError() | MissingFileError():
            return missing
        case registered.DatasetNotFoundError():
            return (
                f"TFDS has no data set {name}: choose one of "
                "https://www.tensorflow.org/datasets/catalog."
            )
        case _ if isinstance(error, OSError) or any(text in str(error) for text in _DISK_FULL):
            return (
                f"Preparing {name} in {data_dir} failed ({error}): see that this folder can "
                "be written and has room, or choose another with --data-dir or VAE_JAX_DATA_DIR."
            )
    return (
        f"Preparing {name} in {data_dir} failed ({type(error).__name__}: {error}): mend "
        "that and run it again."
    )


def main(name: str, data_dir: str, manual_folder: str | None = None) -> int:
    """Prepare a data set; on failure print one sentence.

    Args:
        name: the TFDS name.
        data_dir: the data folder.
        manual_folder: a folder of files downloaded by hand, if any.

    Returns:
        The exit code, 1 after a failure.
    """
    source = SOURCES[name]
    where = manual_folder or "a folder that --manual-dir or VAE_JAX_MANUAL_DIR names"
    missing = (
        f"The files of {name} are not at hand and could not be downloaded: put "
        f"{', '.join(source.manual_files)} from {source.origin} into {where}."
    )
    try:
        _prepare(source, Path(data_dir), Path(manual_folder) if manual_folder else None)
    except Exception as error:
        print("\n" + " ".join(explain(error, name, Path(data_dir), missing).split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
