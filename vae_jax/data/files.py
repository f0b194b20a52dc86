"""The user's own data set, by its path: arrays in a file, or a folder of pictures."""

import os
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from vae_jax import storage
from vae_jax.data.datasets import Data
from vae_jax.data.folder import SPLITS_NAMED, load_folder
from vae_jax.data.hugging_face import is_saved, load_saved
from vae_jax.data.pipeline import SplitName
from vae_jax.errors import VaeJaxError

SHAPE = re.compile(r"(\d+)x(\d+)x([13])")
IMAGES, LABELS = ("images", "x", "imgs", "arr_0"), ("labels", "y")
"""The names of arrays in an .npz file without splits; `imgs` is that of dSprites."""


def is_path(name: str) -> bool:
    """Whether the `name` of a data set is a path."""
    bare, _ = _divided(name)
    path = Path(bare)
    return bare != "" and (
        path.suffix in (".npy", ".npz")
        or os.sep in bare
        or path.is_dir()
        or (path.suffix != "" and path.exists())
    )


def _divided(path: str) -> tuple[str, str]:
    """The path, and the shape after its last @, unless the @ is part of a file's name."""
    bare, at, shape = path.rpartition("@")
    if not at or os.sep in shape or storage.from_home(path).exists():
        return path, ""
    return bare, shape


def load_path(
    path: str, protocol: str | None = None, *, data_dir: str | Path | None = None
) -> Data:
    """Load the user's own images.

    Args:
        path: an .npy file of images `[N, H, W, C]` or `[N, H, W]`, bytes or floats from 0 to 1,
            which become bytes; an .npz file of such arrays, named `images` (and `labels`), or
            `train_images`, `test_images`, ... or `x_train`, `x_test`, ...; a folder of pictures, or
            one that Hugging Face's `datasets` has written with `save_to_disk`, which
            `FOLDER@32x32x3` reads in this shape instead of 64x64x3. Images without splits are split
            into 80, 10 and 10 %, in an order that is always the same.
        protocol: a name in `PROTOCOLS`; None takes "dynamic" for grey images and "grey" for RGB.
        data_dir: the folder for decoded pictures of a folder, as for `load`.

    Returns:
        The data.

    Raises:
        VaeJaxError: the path holds no images of these forms.
    """
    name, behind = _divided(path)
    bare, shape = storage.from_home(name), SHAPE.fullmatch(behind)
    if behind and (shape is None or bare.suffix in (".npy", ".npz")):
        raise VaeJaxError(
            f"{path} ends in @{behind}: after a folder of pictures give a shape such as @32x32x3 "
            "(height, width, and 1 or 3 channels), after a file of arrays none."
        )
    if bare.suffix in (".npy", ".npz"):
        return _of_arrays(bare, protocol).loaded_by(partial(load_path, str(bare), protocol))
    height, width, channels = map(int, shape.groups()) if shape else (64, 64, 3)
    load_pictures = load_saved if is_saved(bare) else load_folder
    return load_pictures(
        bare,
        (height, width),
        channels=1 if channels == 1 else 3,
        protocol=protocol or ("dynamic" if channels == 1 else "grey"),
        data_dir=data_dir,
    )


def _of_arrays(path: Path, protocol: str | None) -> Data:
    arrays = _read(path)
    images = _by_split(arrays, "{}", "{}_images", "x_{}")
    labels = _by_split(arrays, "{}_labels", "y_{}")
    rule = "the file's own splits"
    if "train" not in images:
        rule = "80, 10 and 10 % of the file, shuffled"
        whole = next((arrays[name] for name in IMAGES if name in arrays), None)
        if whole is None:
            raise VaeJaxError(
                f"{path} has the arrays {', '.join(arrays) or 'none'}: name one images, or several "
                "train_images, valid_images and test_images."
            )
        images = _shuffled(_bytes(path, whole))
        classes = [arrays[name] for name in LABELS if name in arrays]
        labels = _shuffled(classes[0]) if classes else {}
    elif "valid" not in images:
        rule = "the file's own splits; validation is the last tenth of training"
        for arrays in (images, labels):
            if "train" in arrays:
                cut = len(arrays["train"]) - max(1, len(arrays["train"]) // 10)
                arrays["train"], arrays["valid"] = np.split(arrays["train"], [cut])
    as_bytes = {split: _bytes(path, array) for split, array in images.items()}
    for split, array in labels.items():
        labels[split] = array[:, 0] if array.shape[1:] == (1,) else array  # as MedMNIST has them
    names = None
    if any(array.dtype.kind not in "iu" for array in labels.values()):  # labels are strings
        names = np.unique(np.concatenate([*labels.values()]))
        for split, array in labels.items():
            labels[split] = np.searchsorted(names, array)
    return Data.from_arrays(
        path.stem,
        as_bytes["train"],
        as_bytes.get("valid"),
        as_bytes.get("test"),
        protocol=protocol or ("dynamic" if as_bytes["train"].shape[-1] == 1 else "grey"),
        labels=labels,
        class_names=None if names is None else list(map(str, names)),
        split_rule=rule,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file by name; that of an .npy file is `images`."""
    try:
        content = np.load(path, allow_pickle=False)
        return {"images": content} if isinstance(content, np.ndarray) else {**content}
    except FileNotFoundError as error:
        raise VaeJaxError(f"The images {path} do not exist: name a file that does.") from error
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise VaeJaxError(f"{path} holds no arrays ({error}): write it with numpy.save.") from error


def _by_split(arrays: Mapping[str, np.ndarray], *names: str) -> dict[SplitName, np.ndarray]:
    return {
        split: arrays[name.format(alias)]
        for alias, split in SPLITS_NAMED.items()
        for name in names
        if name.format(alias) in arrays
    }


def _shuffled(whole: np.ndarray) -> dict[SplitName, np.ndarray]:
    """The splits of an array, 80, 10 and 10 %, in an order that depends on its length alone."""
    order = np.random.default_rng(0).permutation(len(whole))
    tenth = max(1, len(whole) // 10) if len(whole) > 2 else 0
    parts = np.split(whole[order], [len(whole) - 2 * tenth, len(whole) - tenth])
    names: tuple[SplitName, ...] = ("train", "valid", "test")
    return {split: part for split, part in zip(names, parts, strict=True) if len(part)}


def _bytes(path: Path, images: np.ndarray) -> np.ndarray:
    """Images as bytes `[N, H, W, C]`; floats v in [0, 1] become round(255 v).

    Raises:
        VaeJaxError: the images have another shape or range.
    """
    is_one = images.ndim == 3 and images.shape[-1] in (1, 3)
    images = images[..., None] if images.ndim == 3 and not is_one else images
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        way = "give [N, H, W, 1] or [N, H, W, 3]"
        if images.ndim == 4 and images.shape[1] in (1, 3):
            way = "its channels come first: save x.transpose(0, 2, 3, 1)"
        if is_one:
            way = "of one picture save x[None]"
        raise VaeJaxError(f"The images of {path} have the shape {images.shape}: {way}.")
    if images.dtype == bool:
        return images.astype(np.uint8) * np.uint8(255)
    if not images.size:
        raise VaeJaxError(f"{path} has no images: save bytes, or floats from 0 to 1.")
    most = 1 if images.dtype.kind == "f" else 255
    if images.dtype.kind not in "iuf":
        raise VaeJaxError(
            f"The images of {path} are {images.dtype}: save bytes, or floats from 0 to 1."
        )
    low, high = images.min(), images.max()
    if not 0 <= low <= high <= most:  # nan too
        raise VaeJaxError(
            f"The images of {path} are {images.dtype} from {low:g} to {high:g}: save bytes, or "
            "floats from 0 to 1."
        )
    scaled = images if most == 255 else np.rint(255 * images)
    return scaled.astype(np.uint8)
