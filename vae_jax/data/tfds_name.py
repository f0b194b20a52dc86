"""Any image data set of TFDS by its name, `tfds:NAME` or `tfds:NAME/CONFIG`, at any size."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vae_jax.data import cache, preparation
from vae_jax.data.datasets import Data, find_protocol
from vae_jax.errors import VaeJaxError

PREFIX = "tfds:"
SIZE = 64
_NAME = re.compile(r"tfds:[A-Za-z][A-Za-z0-9_]*(/[A-Za-z0-9_.-]+)?")
# The share of training images, cut from their end if the data set has no validation images.
_VALID, _MOST_VALID = 0.1, 10_000


def folder_of(name: str, size: int, data_dir: Path) -> Path:
    """The folder for the arrays of a data set at a size.

    Args:
        name: tfds:NAME, or tfds:NAME/CONFIG.
        size: the side of the square images.
        data_dir: the data folder.
    """
    return cache.folder(data_dir, f"tfds/{name.removeprefix(PREFIX).replace('/', '-')}-{size}")


def prepare_tfds(
    name: str, size: int | None, root: Path, manual_folder: Path | None, *, verify: bool = False
) -> Path:
    """Prepare a data set of TFDS in a subprocess, unless it is already in the cache.

    Args:
        name: tfds:NAME, or tfds:NAME/CONFIG.
        size: the side of the square images; None takes the only one that is prepared, else 64.
        root: the folder of TFDS and the cache.
        manual_folder: a folder of files downloaded by hand.
        verify: whether every byte already in the cache is checked.

    Returns:
        The folder of the arrays.

    Raises:
        VaeJaxError: TFDS has no such data set or cannot make it, or its images are not bytes.
    """
    if _NAME.fullmatch(name) is None:
        raise VaeJaxError(
            f"{name} is no name of TFDS: give tfds:NAME or tfds:NAME/CONFIG, such as tfds:cifar100."
        )
    if size is None:
        every = folder_of(name, 0, root).parent
        found = [path for path in every.parent.glob(f"{every.name[:-1]}*") if _size_of(path)]
        size = _size_of(found[0]) if len(found) == 1 else SIZE
    if size < 1:
        raise VaeJaxError(f"size is {size}: images have at least one pixel.")
    target = folder_of(name, size, root)
    if not target.exists():
        arguments = [name.removeprefix(PREFIX), str(size), str(root), str(manual_folder or "")]
        what = f"{name} with TFDS in {root}"
        preparation.run("vae_jax.data.tfds_name_prepare", arguments, what)
    elif verify:
        cache.read(name, target, wholly=True)
    return target


def _size_of(folder: Path) -> int:
    """The size in the name of a folder of arrays; 0 if there are none."""
    size = folder.name.rpartition("-")[2]
    return int(size) if size.isdecimal() and (folder / "vae_jax").exists() else 0


def load_tfds(
    name: str, protocol: str, valid: int | None, target: Path, again: "partial[Data]"
) -> Data:
    """Load the arrays of a data set of TFDS as memory maps.

    Args:
        name: tfds:NAME, or tfds:NAME/CONFIG.
        protocol: as for `load`.
        valid: as for `load`.
        target: the folder of the arrays.
        again: the call that reloads the data.

    Returns:
        The data.

    Raises:
        VaeJaxError: an argument is out of range, or the arrays are damaged.
    """
    find_protocol(protocol)
    arrays, manifest = cache.read(name, target)
    train = arrays["train_images"]
    rule = "the data set's own splits"
    if "valid_images" in arrays:
        if valid not in (None, len(arrays["valid_images"])):
            raise VaeJaxError(
                f"{name} has validation images of its own, so valid={valid} does not apply: leave "
                "it out."
            )
    else:
        count = min(_MOST_VALID, int(_VALID * len(train))) if valid is None else valid
        if not 0 <= count < len(train):
            raise VaeJaxError(
                f"valid={count} is out of range for {name}: cut 0 to {len(train) - 1:,} of its "
                "training images."
            )
        for kind in ("images", "labels"):
            if (whole := arrays.get(f"train_{kind}")) is not None:
                kept = len(train) - count
                arrays[f"train_{kind}"], arrays[f"valid_{kind}"] = whole[:kept], whole[kept:]
        rule = f"validation is the last {count:,} of its {len(train):,} training images"
    splits = "train", "valid", "test"
    data = Data.from_arrays(
        name,
        arrays["train_images"],
        arrays["valid_images"],
        arrays.get("test_images"),
        protocol=protocol,
        labels={s: arrays[f"{s}_labels"] for s in splits if f"{s}_labels" in arrays},
        class_names=manifest["class_names"],
        split_rule=rule,
    )
    remembered: Callable[[str, Callable[[], str]], str]
    remembered = partial(cache.remembered, target, manifest["files"])
    return data.loaded_by(again, remembered)
