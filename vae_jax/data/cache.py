"""The prepared arrays on disk: written whole or not at all, checked when read, memory-mapped."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.errors import VaeJaxError

_MANIFEST = "manifest.json"


def root(data_dir: str | Path | None) -> Path:
    """Returns DATA_DIR, where None is VAE_JAX_DATA_DIR, TFDS_DATA_DIR or ~/tensorflow_datasets."""
    chosen = data_dir or os.environ.get("VAE_JAX_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return Path(chosen or "~/tensorflow_datasets").expanduser().absolute()


def folder(data_dir: Path, name: str) -> Path:
    """Returns where the cached arrays of a data set are, beside its TFDS files."""
    return data_dir / name / "vae_jax"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(arrays: Path, target: Path, about: Mapping[str, Any]) -> None:
    """Turns a folder of {name}.npy files into a cache, in one rename.

    Args:
        arrays: the folder, which is gone afterwards.
        target: the folder to make; the caller sees that nobody else is making it.
        about: what else the manifest shall say, as JSON.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    files = {path.name: {"sha256": _sha256(path)} for path in sorted(arrays.glob("*.npy"))}
    (arrays / _MANIFEST).write_text(json.dumps({**about, "files": files}, indent=2))
    arrays.rename(target)


def read(name: str, source: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Maps the arrays of a prepared data set into memory.

    Args:
        name: the data set, for the message.
        source: the folder that `publish` made.

    Returns:
        Read-only memory maps by array name, and the manifest.

    Raises:
        VaeJaxError: a file is missing, or is not the one that was written.
    """

    def corrupted(what: str) -> VaeJaxError:
        return VaeJaxError(
            f"The cached data of {name} at {source} is corrupted ({what}): delete that folder, and "
            "it is made anew."
        )

    try:
        manifest: dict[str, Any] = json.loads((source / _MANIFEST).read_text())
        for file, entry in manifest["files"].items():
            if _sha256(source / file) != entry["sha256"]:
                raise corrupted(f"sha256 of {file} differs")
    except FileNotFoundError as error:
        raise corrupted(f"{Path(error.filename).name} is missing") from None
    except (ValueError, KeyError):
        raise corrupted(f"{_MANIFEST} is unreadable") from None
    arrays = {Path(f).stem: np.load(source / f, mmap_mode="r") for f in manifest["files"]}
    return arrays, manifest
