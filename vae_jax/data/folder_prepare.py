"""Decode a folder's pictures: `python -m vae_jax.data.folder_prepare FOLDER H W C DATA_DIR`.

`vae_jax.data.load_folder` starts it (`preparation.run`).
"""

import functools
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vae_jax.data import cache, preparation
from vae_jax.data.folder import Files, cache_of
from vae_jax.errors import VaeJaxError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
LARGEST_ENLARGEMENT = 4
IMAGES_PER_PROCESS = 200  # decoding this many takes about as long as starting a process


class UnusableError(Exception):
    """The reason why a file gives no image."""


def decode(path: Path, height: int, width: int, channels: int) -> np.ndarray:
    """Decode a picture to uint8 `[H, W, C]`.

    Args:
        path: the path of the picture.
        height: H.
        width: W.
        channels: C, 3 for RGB, 1 for grey.

    Raises:
        UnusableError: the file is no still picture, is too small, or is damaged.
    """
    if not path.is_file():
        nowhere = path.is_symlink() and not path.exists()
        raise UnusableError("a link that leads nowhere" if nowhere else "not a readable file")
    return decode_file(path, height, width, channels)


def decode_file(file: Path | IO[bytes], height: int, width: int, channels: int) -> np.ndarray:
    """As `decode`, for an open file.

    Args:
        file: the file.
        height, width, channels: as in `decode`.

    Raises:
        UnusableError: as in `decode`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                return _pixels(image, height, width, channels)
    except UnusableError:
        raise
    except UnidentifiedImageError:
        raise UnusableError("not a JPEG, PNG, WebP, GIF, BMP or TIFF picture") from None
    except PermissionError:
        raise UnusableError("not readable: no permission") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        megapixels = Image.MAX_IMAGE_PIXELS or 0
        raise UnusableError(f"larger than {megapixels // 10**6} megapixels") from None
    except Exception as error:  # parsers raise many kinds of errors
        raise UnusableError(f"damaged ({error})") from error


def _pixels(image: Image.Image, height: int, width: int, channels: int) -> np.ndarray:
    # A phone's JPEG with a second picture after the first ("MPO") is no animation.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise UnusableError("an animation, not one picture")
    if max(height, width) > LARGEST_ENLARGEMENT * min(image.size):
        raise UnusableError(f"too small ({image.width}x{image.height} pixels)")
    side = 2 * max(height, width)
    image.draft(None, (side, side))  # type: ignore[arg-type]  # a large JPEG is decoded coarsely
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "FI":  # which `convert` would clip to 8 bits
        levels = np.asarray(image)
        if levels.dtype.kind == "f" or not 0 <= levels.min() <= levels.max() < 2**16:
            raise UnusableError("floats, or levels beyond 16 bits, whose white level is unknown")
        image = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB" if channels == 3 else "L")
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(height, width, channels)


def _decode(
    root: Path, shape: tuple[int, int, int], job: Sequence[tuple[int, str]]
) -> preparation.Piece:
    rows, images, skipped = [], [], []
    for row, name in job:
        try:
            images.append(decode(root / name, *shape))
            rows.append(row)
        except UnusableError as error:
            skipped.append(f"{name}: {error}")
    stacked = np.stack(images) if images else np.empty((0, *shape), np.uint8)
    return preparation.Piece(np.array(rows, np.int64), stacked, None, skipped)


def _empty_folders(root: Path, classes: Sequence[str]) -> list[str]:
    with os.scandir(root) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    return [f"{name}/: no usable picture in it" for name in folders if name not in classes]


def _prepare(root: Path, shape: tuple[int, int, int], data_dir: Path) -> None:
    files = Files.of(root)
    target = cache_of(files.listing, root, shape, data_dir)
    with preparation.working_folder(target) as work:
        if work is None:
            return
        stretches = preparation.divide_rows(len(files.names), int(np.prod(shape)))
        jobs = [[(row, files.names[row]) for row in stretch] for stretch in stretches]
        plan = {"target": target.parent.name, "parts": len(jobs)}
        processes = max(1, min(os.cpu_count() or 1, len(files.names) // IMAGES_PER_PROCESS))
        made = preparation.decode_parts(
            work, plan, jobs, functools.partial(_decode, root, shape), processes
        )
        rows, skipped = preparation.usable_rows(made) if made else (np.empty(0, np.int64), [])
        splits = files.splits(rows)
        if not len(splits["train"]):
            reasons = f" ({'; '.join(skipped[:5])}{'; ...' if len(skipped) > 5 else ''})"
            raise VaeJaxError(
                f"{root} has no training picture that can be used{reasons if skipped else ''}: put "
                "JPEG, PNG, WebP, GIF, BMP or TIFF files there."
            )
        whole = preparation.assemble_splits(work, made, splits)
        classes = sorted({files.class_of(int(row)) for row in rows})
        if classes != ["."]:
            number = {name: label for label, name in enumerate(classes)}
            for split, own in splits.items():
                labels = np.array([number[files.class_of(int(row))] for row in own], np.int32)
                np.save(whole / f"{split}_labels.npy", labels)
        about = {
            "class_names": None if classes == ["."] else classes,
            "skipped": skipped + ([] if files.has_own_splits else _empty_folders(root, classes)),
        }
        cache.make(whole, target, about)


def main(folder: str, height: str, width: str, channels: str, data_dir: str) -> int:
    """Prepare a folder; on failure print one sentence.

    Args:
        folder: the folder.
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
            f"\nThe pictures of {folder} cannot be kept in {data_dir} ({error}): see that this "
            "folder can be written and has room, or choose another with --data-dir or "
            "VAE_JAX_DATA_DIR."
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
