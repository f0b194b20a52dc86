"""A user's pictures for a trained model: a folder, a file, or an array in a file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae_jax import given, storage
from vae_jax.data.folder import Files
from vae_jax.data.folder_prepare import UnusableError, decode
from vae_jax.errors import VaeJaxError
from vae_jax.progress import say


class Pictures(NamedTuple):
    """Pictures of one shape.

    Attributes:
        images: bytes, or floats in [0, 1], `[n, H, W, C]`.
        names: the path of each below the folder; empty if they come from an array.
        folders: the first folder of each path, "." if there is none.
    """

    images: np.ndarray
    names: list[str]
    folders: list[str]


def read_pictures(path: str | Path, image_shape: tuple[int, int, int]) -> Pictures:
    """Read a folder of pictures, one picture, or an .npy file.

    Pictures are cropped to the shape around their centres and resized, as `load_folder` does;
    unusable files are named on standard error. An array must have the shape.

    Args:
        path: the folder or the file.
        image_shape: (H, W, C) of the model.

    Raises:
        VaeJaxError: the path does not exist, or has no usable picture.
    """
    path = storage.from_home(path)
    if path.suffix == ".npy" and path.is_file():
        return Pictures(_array(path, image_shape), [], [])
    if not path.exists():
        raise VaeJaxError(f"{path} does not exist: name a folder of pictures, or an .npy file.")
    files = Files.of(path) if path.is_dir() else Files(path.parent, [path.name], [""])
    images, names, folders = [], [], []
    for row, name in enumerate(files.names):
        try:
            images.append(decode(files.root / name, *image_shape))
        except UnusableError as error:
            say(f"Not used: {files.root / name} ({error}).")
        else:
            names.append(name)
            folders.append(files.class_of(row))
    if not images:
        raise VaeJaxError(
            f"{path} has no picture that can be used: give JPEG, PNG, WebP, GIF, BMP or TIFF "
            "files, or an array in an .npy file."
        )
    return Pictures(np.stack(images), names, folders)


def _array(path: Path, image_shape: tuple[int, int, int]) -> np.ndarray:
    try:
        images = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise VaeJaxError(f"{path} is no array ({error}): write it with numpy.save.") from error
    return np.asarray(given.laid_out(images, image_shape))
