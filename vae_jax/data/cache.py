"""The prepared arrays on disk: written whole or not at all, checked when read, memory-mapped."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax import storage
from vae_jax.errors import VaeJaxError


def root(data_dir: str | Path | None) -> Path:
    """The data folder; None takes VAE_JAX_DATA_DIR, TFDS_DATA_DIR or ~/tensorflow_datasets."""
    chosen = data_dir or os.environ.get("VAE_JAX_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return storage.from_home(chosen or "~/tensorflow_datasets")


def folder(data_dir: Path, name: str) -> Path:
    """The folder of the cached arrays of the data set `name`, beside its TFDS files."""
    return data_dir / name / "vae_jax"


def make(arrays: Path, target: Path, about: Mapping[str, object]) -> None:
    """Turn a folder of {name}.npy files into a cache, in one rename.

    Args:
        arrays: the folder, which is gone afterwards.
        target: the folder to make; the caller ensures that no other process is making it.
        about: further entries of the manifest, as JSON.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    files = storage.manifest_of(arrays)
    storage.write_stamp(arrays, files)
    (arrays / storage.MANIFEST).write_text(json.dumps({**about, "files": files}, indent=2))
    storage.publish(arrays, target)


def read(
    name: str, source: Path, wholly: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map the arrays of a prepared data set into memory.

    Args:
        name: the data set, for messages.
        source: the folder that `make` made.
        wholly: whether every byte is checked, even in files that seem untouched.

    Returns:
        Read-only memory maps by array name, and the manifest: "files", and "class_names" and
        "skipped" (files without an image), lists of strings or None.

    Raises:
        VaeJaxError: a file is missing, or has other content than was written.
    """
    try:
        manifest = {"class_names": None, "skipped": None}
        manifest |= storage.read_json(source / storage.MANIFEST)
        match manifest:
            case {
                "files": {"train_images.npy": dict()},
                "class_names": list() | None,
                "skipped": list() | None,
            }:
                damage = storage.damage_since(source, manifest["files"], wholly)
            case _:
                damage = f"{storage.MANIFEST} lacks an entry"
    except storage.DamagedError as error:
        manifest, damage = {}, str(error).rstrip(".")
    if damage is not None:
        raise VaeJaxError(
            f"The prepared data of {name} at {source} are damaged ({damage}): move that folder "
            "away, and they are prepared again."
        )
    arrays = {Path(f).stem: np.load(source / f, mmap_mode="r") for f in manifest["files"]}
    return arrays, manifest


def remembered(
    source: Path, files: Mapping[str, object], what: str, compute: Callable[[], str]
) -> str:
    """The result of a computation on cached arrays, made once by one process and kept with them.

    Args:
        source: the folder that `make` made.
        files: its manifest's "files", as they were read.
        what: the name of the computation, which differs wherever the result may differ.
        compute: the computation.

    Returns:
        The result of `compute`.
    """
    path = source / ".fingerprints.json"
    key = hashlib.sha256(json.dumps([files, what], sort_keys=True).encode()).hexdigest()

    def known() -> dict[str, Any]:
        with contextlib.suppress(storage.DamagedError):
            return storage.read_json(path)
        return {}

    if isinstance(found := known().get(key), str):
        return found
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(VaeJaxError):  # nothing can be written, as on a full disk
            stack.enter_context(storage.lock(path.with_name(f"{path.name}.lock")))
        if isinstance(found := known().get(key), str):
            return found
        computed = compute()
        with contextlib.suppress(VaeJaxError):
            storage.write_json(path, known() | {key: computed})
        return computed
