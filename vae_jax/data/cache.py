"""The prepared arrays on disk: written whole or not at all, checked when read, memory-mapped."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from vae_jax.errors import VaeJaxError

_MANIFEST = "manifest.json"


def folder(data_dir: Path, name: str) -> Path:
    """Returns where the cached arrays of a data set are, beside its TFDS files."""
    return data_dir / name / "vae_jax"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(target: Path, arrays: dict[str, np.ndarray], version: str) -> None:
    """Writes arrays as TARGET/{name}.npy with a manifest, in one rename.

    Args:
        target: the folder to make; the caller sees that nobody else is making it.
        arrays: what to write.
        version: the TFDS version of the data set, for the record.

    Raises:
        OSError: the disk is full or the folder not writable; nothing is left behind.
    """
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed process's
    partial.mkdir()
    try:
        files = {}
        for name, array in arrays.items():
            path = partial / f"{name}.npy"
            np.save(path, array)
            files[path.name] = {"sha256": _sha256(path), "shape": array.shape}
        manifest = {"tfds_version": version, "files": files}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read(name: str, source: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of a prepared data set into memory.

    Args:
        name: the data set, for the message.
        source: the folder that `write` made.

    Returns:
        Read-only memory maps by array name.

    Raises:
        VaeJaxError: a file is missing, or is not the one that was written.
    """

    def corrupted(what: str) -> VaeJaxError:
        return VaeJaxError(
            f"The cached data of {name} at {source} is corrupted ({what}): delete that folder and "
            f"run `vae-jax data prepare {name}`."
        )

    try:
        files: dict[str, dict] = json.loads((source / _MANIFEST).read_text())["files"]
        for file, entry in files.items():
            if _sha256(source / file) != entry["sha256"]:
                raise corrupted(f"sha256 of {file} differs")
    except FileNotFoundError as error:
        raise corrupted(f"{Path(error.filename).name} is missing") from None
    except (ValueError, KeyError):
        raise corrupted(f"{_MANIFEST} is unreadable") from None
    return {Path(file).stem: np.load(source / file, mmap_mode="r") for file in files}
