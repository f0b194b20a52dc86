"""Prepare one data set: `python -m vae_jax.data.tfds_prepare NAME DATA_DIR [MANUAL_FOLDER]`.

The only process that imports TensorFlow. `vae_jax.data.prepare` starts it, hides what TensorFlow
and TFDS print, and where it exits with 1 takes the last line of its stdout for the error.
"""

import errno
import fcntl
import importlib
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from vae_jax.data import cache
from vae_jax.data.builders import MissingFileError  # and registers our builders with TFDS
from vae_jax.data.catalog import SOURCES, Source
from vae_jax.errors import VaeJaxError

# What the C++ writers under TFDS say in a RuntimeError rather than an OSError.
_DISK_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_TFDS_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def _build(source: Source, data_dir: Path, manual_folder: Path | None) -> tfds.core.DatasetBuilder:
    downloader.MAX_RETRIES = 4  # TFDS's 10 keep a machine without internet waiting for 200 s
    tfds.disable_progress_bar()
    builder = tfds.builder(source.name, data_dir=data_dir)
    if not builder.is_prepared():
        importlib.import_module("tensorflow")  # TFDS would miss it only halfway through
        # TFDS names what it extracts by file name alone: in its usual shared folder it takes
        # MNIST's images for Fashion-MNIST's, whose files are named alike.
        with tempfile.TemporaryDirectory(dir=data_dir / source.name) as extract_dir:
            config = tfds.download.DownloadConfig(
                extract_dir=extract_dir, manual_dir=manual_folder, try_download_gcs=False
            )
            builder.download_and_prepare(download_config=config, file_format="array_record")
    return builder


def _read(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, np.ndarray]:
    """Decodes a split, in the order in which its builder generates it."""
    if builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
        records = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
        decoded = records.__getitems__(range(len(records)))
        columns = {key: np.stack([example[key] for example in decoded]) for key in decoded[0]}
    else:  # prepared earlier by the user, in TFDS's default format
        dataset = builder.as_dataset(split, batch_size=-1)  # pyright: ignore[reportCallIssue]
        columns = tfds.as_numpy(dataset)
    # TFDS writes examples sorted by the hash of their key, which here is their index.
    size = builder.info.splits[split].num_examples
    written = sorted(range(size), key=hashing.Hasher(split).hash_key)
    return {key: column[np.argsort(written)] for key, column in columns.items()}


def _prepare(source: Source, data_dir: Path, manual_folder: Path | None) -> None:
    """Makes the cache of a data set, unless another process makes it first."""
    folder = data_dir / source.name
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "vae_jax.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends
    if cache.folder(data_dir, source.name).exists():
        return
    builder = _build(source, data_dir, manual_folder)
    arrays = {}
    for split in source.sizes:
        columns = _read(builder, _TFDS_SPLITS[split])
        images = columns["image"]
        # TFDS's binarized MNIST holds 0 and 1; the protocols take bytes.
        arrays[f"{split}_images"] = images * np.uint8(255) if images.max() == 1 else images
        if "label" in columns:
            arrays[f"{split}_labels"] = columns["label"].astype(np.int32)
    cache.write(cache.folder(data_dir, source.name), arrays, str(builder.version))


def _explain(error: Exception, source: Source, data_dir: Path, manual_folder: Path | None) -> str:
    """Returns one sentence that says what is wrong, where, and what to do."""
    wrong_file = re.search(r"downloaded to (.*), has wrong checksum", str(error))
    match error:
        case VaeJaxError():
            return str(error)
        case NonMatchingChecksumError() if wrong_file:
            return (
                f"{wrong_file[1]} is not the official file of {source.name} (its sha256 differs): "
                "delete it and fetch it again."
            )
        case ModuleNotFoundError():
            return (
                f"Preparing {source.name} needs {error.name}, which is not installed: run "
                "`pip install 'vae_jax[prepare]'`."
            )
        case requests.RequestException() | tfds.download.DownloadError() | MissingFileError():
            where = manual_folder or "a folder that --manual-dir or VAE_JAX_MANUAL_DIR names"
            return (
                f"The files of {source.name} are not at hand and could not be downloaded: put "
                f"{', '.join(source.manual_files)} from {source.origin} into {where}."
            )
        case _ if isinstance(error, OSError) or any(text in str(error) for text in _DISK_FULL):
            return (
                f"Preparing {source.name} in {data_dir} failed ({error}): see that this folder can "
                "be written and has room, or choose another with --data-dir or VAE_JAX_DATA_DIR."
            )
    return (
        f"Preparing {source.name} in {data_dir} failed ({type(error).__name__}: {error}): mend "
        "that and run it again."
    )


def main(name: str, data_dir: str, manual_folder: str | None = None) -> int:
    """Prepares a data set; on failure prints one sentence and returns 1."""
    arguments = SOURCES[name], Path(data_dir), Path(manual_folder) if manual_folder else None
    try:
        _prepare(*arguments)
    except Exception as error:
        print("\n" + " ".join(_explain(error, *arguments).split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
