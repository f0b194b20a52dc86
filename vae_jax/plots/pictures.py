"""Pictures: grids of images in a figure or a file, pixel by pixel."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageColor

from vae_jax import given
from vae_jax.errors import VaeJaxError
from vae_jax.plots.curves import PALETTE
from vae_jax.plots.figure import (
    DPI,
    Figure,
    check_shape,
    of_any_script,
    options_for,
    plain,
    write_whole,
)

Names = Iterable[tuple[float, str]]
MAX_WIDTH = 1260  # dots of pictures side by side: text stays legible at the width of a README
MAX_ZOOM = 4  # dots per pixel, a whole number unless the picture has to shrink
GAP = 2  # white pixels between pictures
MISSING_GREY = 0.5  # the value of missing pixels in pictures
TOLERANCE = 1e-3  # the largest rounding error of a value in [0, 1]


def image_grid(images: np.ndarray, columns: int | None = None, title: str | None = None) -> Figure:
    """Plot images in reading order.

    Args:
        images: pictures `[N, H, W, C]`.
        columns: the number of columns; None makes a nearly square grid.
        title: the title.

    Raises:
        VaeJaxError: the images are not pictures in [0, 1].
    """
    return _show(_tiles(_pixels(images, "[N,H,W,C]"), columns), title=title or "")


def reconstructions(
    originals: np.ndarray, reconstructions: np.ndarray, title: str | None = None
) -> Figure:
    """Plot data above the means of p(x|z), in blocks of up to ten pairs.

    Args:
        originals: the data `[N, H, W, C]`.
        reconstructions: the means, of the same shape.
        title: the title.

    Raises:
        VaeJaxError: the images are not pictures in [0, 1].
        ValueError: their shapes differ.
    """
    both = _pixels(np.stack([originals, reconstructions], axis=1), "[N,2,H,W,C]")
    pairs = np.stack([_mosaic(pair[:, None]) for pair in both])
    blocks, gap = _tiles(pairs, columns=10), 3 * GAP  # wider than within a pair
    shift = (both.shape[2] + GAP) / 2 / (pairs.shape[1] + gap)  # from the centre of a pair
    names = [(row - shift, "data") for row in range(len(blocks))]
    names += [(row + shift, "mean") for row in range(len(blocks))]
    return _show(blocks, gap, y=names, title=title or "")


def manifold(images: np.ndarray, values: np.ndarray) -> Figure:
    """Plot the decodings of a plane of latents.

    In the paper the values are the inverse normal CDF of equally spaced probabilities, so that area
    is prior probability.

    Args:
        images: pictures `[n, n, H, W, C]`; `images[i, j]` is at z_1 = values[j] (to the right) and
            z_2 = values[i] (upwards).
        values: the values `[n]` of each latent.

    Raises:
        VaeJaxError: the images are not pictures in [0, 1], n by n.

    References:
        Kingma & Welling (2013), "Auto-encoding variational Bayes", figure 4.
    """
    tiles = _pixels(images, "[n,n,H,W,C]")
    check_shape("rows and columns", tiles.shape[:2], (len(values), len(values)))
    x = _few(values, 5)
    y = [(len(values) - 1 - position, name) for position, name in x]
    return _show(tiles[::-1], gap=0, x=x, y=y, xlabel="$z_1$", ylabel="$z_2$")


def interpolations(images: np.ndarray) -> Figure:
    """Plot one path in each row, with a coloured frame around both end points.

    Args:
        images: pictures `[R, T, H, W, C]` of R paths.

    Raises:
        VaeJaxError: the images are not pictures in [0, 1].
    """
    tiles = _pixels(images, "[R,T,H,W,C]")
    rows, columns, height, width, _ = tiles.shape
    edge = max(1, height // 32)
    framed = np.full((rows, columns, height + 2 * edge, width + 2 * edge, 3), 255, np.uint8)
    framed[:, [0, -1]] = ImageColor.getrgb(PALETTE[1])
    framed[:, :, edge:-edge, edge:-edge] = tiles
    return _show(framed, x=[(0, "end point"), (columns - 1, "end point")])


def traversals(images: np.ndarray, values: np.ndarray, latents: Iterable[int]) -> Figure:
    """Plot rows, in each of which one latent moves.

    Args:
        images: pictures `[D, T, H, W, C]`.
        values: the values `[T]` of the latent, shown above the columns.
        latents: the latent `[D]` that each row moves, counted from 0; in the figure from z_1.

    Raises:
        VaeJaxError: the images are not pictures in [0, 1] that both fit.
    """
    tiles = _pixels(images, "[D,T,H,W,C]")
    names = [f"$z_{{{latent + 1}}}$" for latent in latents]
    check_shape("rows and columns", tiles.shape[:2], (len(names), len(values)))
    return _show(tiles, x=_few(values, 11), y=enumerate(names))


def named_rows(images: np.ndarray, names: Sequence[str], title: str | None = None) -> Figure:
    """Plot rows of images with the name of each row beside it.

    Args:
        images: pictures `[R, T, H, W, C]`.
        names: the names of the R rows.
        title: the title.

    Raises:
        VaeJaxError: the images are not pictures in [0, 1], or a row has no name.
    """
    tiles = _pixels(images, "[R,T,H,W,C]")
    check_shape("rows", tiles.shape[:1], (len(names),))
    return _show(tiles, y=enumerate(map(plain, names)), title=title or "")


def restyled(
    originals: np.ndarray, images: np.ndarray, source: str, targets: Sequence[str]
) -> Figure:
    """Plot images of one class, and below them their decodings in others.

    Args:
        originals: the data `[N, H, W, C]`.
        images: their decodings, `[N, R, H, W, C]`.
        source: the class of the data.
        targets: the R other classes.

    Raises:
        VaeJaxError: as in `named_rows`.
    """
    rows = np.concatenate([originals[:, None], images], 1).swapaxes(0, 1)
    return named_rows(rows, [f"{source}, data", *targets])


def sample_panels(panels: Mapping[str, np.ndarray]) -> Figure:
    """Plot nearly square grids of images side by side.

    Args:
        panels: pictures `[N, H, W, C]` by title, all of one shape.

    Raises:
        VaeJaxError: the images are not pictures in [0, 1].
        ValueError: their shapes differ.

    References:
        Kingma & Welling (2013), "Auto-encoding variational Bayes", figure 5.
    """
    images = _pixels(np.stack(list(panels.values())), "[P,N,H,W,C]")
    grids = np.stack([_mosaic(_tiles(panel)) for panel in images])
    return _show(grids[None], gap=images.shape[3] // 2, x=enumerate(panels))


def save_images(
    images: np.ndarray,
    path: str | Path,
    columns: int | None = None,
    file_quality: int | None = None,
) -> Path:
    """Write images as one grid of bytes round(255 x), without axes or separators.

    The bytes are sRGB, as those of the data are. A failure leaves no file behind.

    Args:
        images: pictures `[N, H, W, C]`.
        path: the file; .png and .webp keep every byte, .jpg and .jpeg do not.
        columns: the number of columns; None makes a nearly square grid.
        file_quality: 1 to 100, for .jpg, .jpeg (None: 95) and .webp.

    Returns:
        The path of the file.

    Raises:
        VaeJaxError: the images are not pictures in [0, 1], the path cannot be written or has
            another suffix, or the quality does not suit it.
    """
    path = Path(path)
    options = options_for(path, file_quality)
    pixels = _pixels(images, "[N,H,W,C]")
    grid = Image.fromarray(_mosaic(_tiles(pixels, columns), gap=0))
    picture = grid.convert("L" if images.shape[-1] == 1 else "RGB")
    return write_whole(path, lambda to: picture.save(to, **options))


def save_each(images: np.ndarray, path: str | Path, file_quality: int | None = None) -> list[Path]:
    """Write each image to a separate file.

    Args:
        images: pictures `[N, H, W, C]`.
        path: the files; {} in the name becomes 0, 1, ..., N - 1, with leading zeros, so that names
            sort.
        file_quality: as in `save_images`.

    Returns:
        The paths of the files.

    Raises:
        VaeJaxError: as in `save_images`.
    """
    path, digits = Path(path), len(str(len(images) - 1))
    paths = [path.with_name(path.name.replace("{}", f"{n:0{digits}}")) for n in range(len(images))]
    return [save_images(images[n : n + 1], each, 1, file_quality) for n, each in enumerate(paths)]


def _pixels(images: np.ndarray, axes: str) -> np.ndarray:
    """RGB bytes `[..., H, W, 3]` of floats in [0, 1] whose axes are those named."""
    if np.ndim(images) and np.shape(images)[-1] in (2, 4):  # the last channel marks seen pixels
        seen = images[..., -1:]
        images = seen * images[..., :-1] + (1 - seen) * MISSING_GREY
    images = given.pictures(images, "An array of images", axes)
    wrong = images[~((images >= -TOLERANCE) & (images <= 1 + TOLERANCE))]  # NaN too
    if wrong.size:
        raise VaeJaxError(
            f"A pixel is {wrong[0]:.4g}: pass pictures in [0, 1], not logits or bytes."
        )
    pixels = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def _tiles(pixels: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Images `[N, H, W, 3]` in reading order, `[R, T, H, W, 3]`, white after the last one."""
    columns = min(columns or math.ceil(math.sqrt(len(pixels))), len(pixels))
    blank = np.full((-len(pixels) % columns, *pixels.shape[1:]), 255, np.uint8)
    return np.concatenate([pixels, blank]).reshape(-1, columns, *pixels.shape[1:])


def _mosaic(tiles: np.ndarray, gap: int = GAP) -> np.ndarray:
    """Tiles `[R, T, H, W, 3]` as one picture, `gap` white pixels between them."""
    rows, columns, height, width, _ = tiles.shape
    picture = np.full((rows, height + gap, columns, width + gap, 3), 255, np.uint8)
    picture[:, :height, :, :width] = tiles.swapaxes(1, 2)
    joined = picture.reshape(rows * (height + gap), columns * (width + gap), 3)
    return joined[: len(joined) - gap, : joined.shape[1] - gap]


def _few(values: np.ndarray, most: int) -> list[tuple[int, str]]:
    """Positions and labels of at most `most` values, symmetric: the ends, and a centre if any."""
    count = min(len(values), most)
    count -= (len(values) - count) % 2
    first = np.linspace(0, len(values) - 1, count)[: (count + 1) // 2].round().astype(int)
    positions = sorted({*first, *(len(values) - 1 - first)})
    rounded = np.asarray(values).round(2) + 0.0  # turns -0.0 into 0.0
    return [(int(n), f"{rounded[n]:g}".replace("-", "\N{MINUS SIGN}")) for n in positions]


def _show(tiles: np.ndarray, gap: int = GAP, x: Names = (), y: Names = (), **texts: Any) -> Figure:
    """A figure of tiles; `x` and `y` name columns and rows by their positions from 0."""
    mosaic = _mosaic(tiles, gap)
    zoom = min(MAX_WIDTH / mosaic.shape[1], MAX_ZOOM)
    height, width = np.array(mosaic.shape[:2]) * (math.floor(zoom) if zoom >= 1 else zoom) / DPI
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), **texts)
    axes.title.set_fontsize("medium")
    axes.imshow(mosaic, interpolation="auto")
    axes.spines[:].set_visible(False)
    axes.xaxis.set_ticks_position("bottom" if "xlabel" in texts else "top")
    axes.tick_params(length=0, labelsize="small")
    for axis, size, names in (axes.xaxis, tiles.shape[3], x), (axes.yaxis, tiles.shape[2], y):
        positions = {n * (size + gap) + (size - 1) / 2: name for n, name in names}
        axis.set_ticks(list(positions), labels=list(positions.values()))
    # The labels hang outside: grow the figure around the axes, by whole dots.
    with of_any_script():
        box = figure.get_tightbbox()
    margins = np.array([-box.x0, box.x1 - width, -box.y0, box.y1 - height]) + 0.05
    left, right, bottom, top = np.ceil(margins.clip(0) * DPI) / DPI
    wide, high = left + width + right, bottom + height + top
    figure.set_size_inches(wide, high)
    axes.set_position((left / wide, bottom / high, width / wide, height / high))
    return figure
