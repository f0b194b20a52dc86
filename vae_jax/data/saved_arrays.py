"""Data given as arrays, kept in the run folder, so that the folder alone restores the run."""

import json
from pathlib import Path

import numpy as np

from vae_jax import storage
from vae_jax.data.datasets import Data
from vae_jax.data.pipeline import SplitName
from vae_jax.errors import VaeJaxError

KEPT_BYTES = 2**28
_SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


def keep(data: Data, folder: Path) -> None:
    """Write the arrays of `data` into a new `folder`, unless they can be reloaded or are large.

    Raises:
        VaeJaxError: the folder cannot be written.
    """
    splits = {split: data[split] for split in _SPLITS}
    size = sum(split.images.nbytes for split in splits.values())
    if data.source is not None or size > KEPT_BYTES or folder.exists():
        return
    with storage.writing(folder), storage.whole_folder(folder) as made:
        for name, split in splits.items():
            np.save(made / f"{name}_images.npy", split.images)
            if split.labels is not None:
                np.save(made / f"{name}_labels.npy", split.labels)
        about = {
            "name": data.name,
            "protocol": data.protocol.name,
            "split_rule": data.split_rule,
            "class_names": data.class_names,
            "files": storage.manifest_of(made),
        }
        (made / storage.MANIFEST).write_text(json.dumps(about, indent=2), encoding="utf-8")


def kept(folder: Path) -> Data | None:
    """The data that `keep` wrote to `folder`, mapped from the disk; None if it wrote none.

    Raises:
        VaeJaxError: the data are damaged.
    """
    if not folder.exists():
        return None
    try:
        about = storage.read_json(folder / storage.MANIFEST)
        damage = storage.damage_since(folder, about["files"])
        names = [name for name in about["files"] if name.endswith(".npy")]
        if damage is None:
            arrays = {Path(name).stem: np.load(folder / name, mmap_mode="r") for name in names}
            labels: dict[SplitName, np.ndarray] = {}
            labels |= {s: arrays[f"{s}_labels"] for s in _SPLITS if f"{s}_labels" in arrays}
            return Data.from_arrays(
                about["name"],
                *(arrays[f"{split}_images"] for split in _SPLITS),
                protocol=about["protocol"],
                labels=labels,
                class_names=about["class_names"],
                split_rule=about["split_rule"],
            )
    except storage.DamagedError as error:
        damage = str(error).rstrip(".")
    except (KeyError, TypeError, AttributeError, ValueError):
        damage = f"{storage.MANIFEST} is unreadable"
    raise VaeJaxError(
        f"The data of this run in {folder} are damaged ({damage}): put a good copy back, or give "
        "load_run the experiment."
    )
