"""Arrays to figures: learning curves, image grids, latent spaces.

Functions are pure and take NumPy arrays; each figure has an Agg canvas of its own, so there is no
global state to close. Images are floats in [0,1] with the channel last, `C` being 1 (grey) or
3 (RGB). Others raise a `VaeJaxError`: logits and bytes must never be shown as pictures.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike
from PIL import Image

from vae_jax.errors import VaeJaxError

Curve = tuple[ArrayLike, ArrayLike]

DPI = 150
MAX_WIDTH = 1260  # dots of pictures side by side: text stays legible at the width of a README
MAX_ZOOM = 4  # dots a pixel
GAP = 2  # white pixels between pictures
TOLERANCE = 1e-3  # rounding that a value in [0,1] may have suffered

# Ten colours that stay distinct under colour blindness: Petroff (2021), arXiv:2107.02270.
PALETTE = ["#3f90da", "#e76300", "#832db6", "#bd1f01", "#ffa90e"]
PALETTE += ["#a96b59", "#717581", "#94a4a2", "#b9ac70", "#92dadd"]
MARKERS = "o^sDvP"

_SPLIT = re.compile(r"(?<![a-z])(train|valid|test)(?:ing|ation)?(?![a-z])", re.IGNORECASE)
_SPLIT_STYLE: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 1.0, "alpha": 0.7},
    "valid": {"linewidth": 1.6},
    "test": {"linewidth": 1.6, "linestyle": (0, (3, 1.2))},
}
_WRITERS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95},
    ".jpeg": {"format": "JPEG", "quality": 95},
    ".webp": {"format": "WEBP", "lossless": True},
}
_styled = matplotlib.rc_context({"font.size": 9, "axes.titlesize": 9, "figure.labelsize": 9})


@_styled
def learning_curves(
    curves: Mapping[str, Curve], *, ylabel: str = "nats per image", title: str | None = None
) -> Figure:
    """Draws name -> (steps `[T]`, values `[T]`, or `[T,S]` for the mean ±1 sd of `S` seeds).

    A name that contains the word train, valid or test gets that split's style (thin, thick,
    dashed), and names that differ in that word only share a colour. Where a seed is not finite,
    there is a gap. So that the first steps do not squash the rest, the y-limits ignore the first
    fifth of the x-axis (a tenth of a logarithmic one), which is drawn but may leave the picture.
    Raises VaeJaxError if there is no curve.
    """
    figure, (axes,) = _charts(rows=1, columns=1, size=(6.4, 3.4))
    _draw_curves(axes, curves, _looks(curves))
    axes.set(xlabel="training step", ylabel=ylabel, title=title or "")
    axes.xaxis.set(major_locator=MaxNLocator(integer=True), major_formatter=EngFormatter(sep=""))
    _curve_legend(figure, loc="outside right upper")
    return figure


@_styled
def curve_panels(
    panels: Mapping[str, Mapping[str, Curve]], *, ylabel: str = "lower bound per image [nats]"
) -> Figure:
    """Draws title -> name -> (training samples evaluated `[T]`, values `[T]` or `[T,S]`).

    Figure 2 of Kingma and Welling (2014), arXiv:1312.6114, in rows of up to three panels, with the
    styles, seeds and y-limits of `learning_curves`. The x-axis is logarithmic: points at 0 samples
    are left out. Raises VaeJaxError if there is no curve.
    """
    looks = _looks(name for curves in panels.values() for name in curves)
    rows = math.ceil(len(panels) / 3)
    columns = math.ceil(len(panels) / rows)
    figure, charts = _charts(rows, columns, size=(max(4.5, 2.6 * columns), 0.5 + 2.2 * rows))
    for axes, (title, curves) in zip(charts, panels.items(), strict=False):
        axes.set(xscale="log", title=title)
        _draw_curves(axes, curves, looks)
    for axes in charts[len(panels) :]:
        axes.remove()
    figure.supxlabel("training samples evaluated")
    figure.supylabel(ylabel)
    _curve_legend(figure, loc="outside upper center", ncols=1 + columns)
    return figure


@_styled
def latent_scatter(
    z: np.ndarray, labels: np.ndarray | None = None, class_names: Sequence[str] | None = None
) -> Figure:
    """Draws latents `[N,2]` as points, coloured by integer class `[N]` when labels are given.

    Beyond ten classes the marker changes too. The legend shows `class_names[label]`, or the label.
    Raises VaeJaxError unless the latents are two-dimensional and there is one label for each.
    """
    _agree("latents", z.shape, (len(z), 2))
    classes = np.zeros(len(z), int) if labels is None else labels
    _agree("labels", classes.shape, (len(z),))
    figure, (axes,) = _charts(rows=1, columns=1, size=(5.6, 4.8))
    for label in np.unique(classes):
        axes.scatter(
            *z[classes == label].T,
            s=np.clip(2e4 / len(z), 4, 24),
            color=PALETTE[label % len(PALETTE)],
            marker=MARKERS[label // len(PALETTE) % len(MARKERS)],
            label=class_names[label] if class_names else str(label),
            alpha=0.7,
            linewidths=0,
        )
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    axes.set_aspect("equal", adjustable="datalim")
    if labels is not None:
        columns = math.ceil(len(axes.collections) / 20)
        figure.legend(loc="outside right upper", ncols=columns, frameon=False, markerscale=2)
    return figure


@_styled
def image_grid(images: np.ndarray, columns: int | None = None, title: str | None = None) -> Figure:
    """Draws images `[N,H,W,C]` in reading order, in a nearly square grid unless told `columns`.

    Raises VaeJaxError unless the images are pictures in [0,1].
    """
    axes = _picture(_tiles(_pixels(images, "[N,H,W,C]"), columns))
    axes.set_title(title or "")
    return _enclose(axes)


@_styled
def reconstructions(
    originals: np.ndarray, reconstructions: np.ndarray, title: str | None = None
) -> Figure:
    """Draws data `[N,H,W,C]` above the mean of p(x|z) `[N,H,W,C]`, in blocks of up to ten pairs.

    Raises VaeJaxError unless both are pictures in [0,1] of one shape.
    """
    _agree("reconstructions", reconstructions.shape, originals.shape)
    count, height, width, _ = originals.shape
    space = height // 5  # white below each block
    pairs = np.full((count, 2 * height + GAP + space, width, 3), 255, np.uint8)
    pairs[:, :height] = _pixels(originals, "[N,H,W,C]")
    pairs[:, height + GAP : -space] = _pixels(reconstructions, "[N,H,W,C]")
    blocks = _tiles(pairs, columns=10)
    axes = _picture(blocks)
    tops = _centres(len(blocks), pairs.shape[1]) - (pairs.shape[1] - height) / 2
    axes.set_yticks(np.add.outer(tops, [0, height + GAP]).ravel(), ["data", "mean"] * len(blocks))
    axes.set_title(title or "")
    return _enclose(axes)


@_styled
def manifold(images: np.ndarray, values: np.ndarray) -> Figure:
    """Draws images `[n,n,H,W,C]`, `images[i,j]` at z_2 = values[i] (upwards), z_1 = values[j].

    Figure 4 of Kingma and Welling (2014), arXiv:1312.6114: means decoded where the values `[n]` are
    the inverse normal CDF of equally spaced probabilities, so that area is prior probability.
    Raises VaeJaxError unless the images are pictures in [0,1], `n` by `n`.
    """
    tiles = _pixels(images, "[n,n,H,W,C]")[::-1]
    _agree("rows and columns", tiles.shape[:2], (len(values), len(values)))
    axes = _picture(tiles, gap=0)
    shown, names = _few(values, 4 + len(values) % 2)  # symmetric
    axes.set_xticks(_centres(len(values), tiles.shape[3], gap=0)[shown], names)
    axes.set_yticks(_centres(len(values), tiles.shape[2], gap=0)[::-1][shown], names)
    axes.xaxis.tick_bottom()
    axes.tick_params(length=3)
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    return _enclose(axes)


@_styled
def interpolations(images: np.ndarray) -> Figure:
    """Draws one path a row, images `[R,T,H,W,C]`, with a coloured frame around both end points.

    Raises VaeJaxError unless the images are pictures in [0,1].
    """
    tiles = _pixels(images, "[R,T,H,W,C]")
    rows, columns, height, width, _ = tiles.shape
    axes = _picture(tiles)
    ends = _centres(columns, width)[[0, -1]]
    frame: dict[str, Any] = {"fill": False, "edgecolor": PALETTE[1], "linewidth": 1.5}
    for x in ends - (width + GAP) / 2:
        for y in _centres(rows, height) - (height + GAP) / 2:
            axes.add_patch(Rectangle((x, y), width + GAP, height + GAP, clip_on=False, **frame))
    axes.set_xticks(ends, ["end point", "end point"], color=PALETTE[1])
    return _enclose(axes)


@_styled
def traversals(images: np.ndarray, values: np.ndarray, labels: Sequence[str]) -> Figure:
    """Draws images `[D,T,H,W,C]`: each row moves one latent through `values` `[T]`.

    The values stand above the columns and the `D` labels, such as `"$z_{7}$  KL 2.1 nats"`, beside
    the rows. Raises VaeJaxError unless the images are pictures in [0,1] that both fit.
    """
    tiles = _pixels(images, "[D,T,H,W,C]")
    rows, columns, height, width, _ = tiles.shape
    _agree("rows and columns", (rows, columns), (len(labels), len(values)))
    axes = _picture(tiles)
    shown, names = _few(values, 11)
    axes.set_xticks(_centres(columns, width)[shown], names)
    axes.set_yticks(_centres(rows, height), labels)
    return _enclose(axes)


@_styled
def sample_panels(panels: Mapping[str, np.ndarray]) -> Figure:
    """Draws title -> images `[N,H,W,C]`, of one shape, as nearly square grids side by side.

    Figure 5 of Kingma and Welling (2014), arXiv:1312.6114. Raises VaeJaxError unless there is a
    panel and the images are pictures in [0,1] of one shape.
    """
    if not panels:
        raise VaeJaxError("There are no samples to draw: pass at least one title with its images.")
    shape = next(iter(panels.values())).shape
    for title, images in panels.items():
        _agree(f"images of {title}", images.shape, shape)
    grids = [_mosaic(_tiles(_pixels(images, "[N,H,W,C]"))) for images in panels.values()]
    space = shape[2] // 2
    axes = _picture(np.stack(grids)[None], gap=space)
    axes.set_xticks(_centres(len(grids), grids[0].shape[1], gap=space), list(panels))
    return _enclose(axes)


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG at 150 dots per inch; a failure leaves no file behind.

    Raises VaeJaxError unless the path ends in .png.
    """
    with _replacing(path, [".png"]) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return path


def save_images(images: np.ndarray, path: Path, columns: int | None = None) -> Path:
    """Writes images `[N,H,W,C]` as one grid of bytes round(255 x), without axes or separators.

    The suffix decides: .png and .webp keep every byte, .jpg and .jpeg have quality 95. A failure
    leaves no file behind. Raises VaeJaxError unless the suffix is one of these and the images are
    pictures in [0,1].
    """
    picture = Image.fromarray(_mosaic(_tiles(_pixels(images, "[N,H,W,C]"), columns), gap=0))
    picture = picture.convert("L" if images.shape[-1] == 1 else "RGB")
    with _replacing(path, _WRITERS) as temporary:
        picture.save(temporary, **_WRITERS[path.suffix.lower()])
    return path


@contextmanager
def _replacing(path: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """Gives a temporary neighbour of `path` that takes its place if the block succeeds."""
    if path.suffix.lower() not in suffixes:
        raise VaeJaxError(f"Cannot write {path}: its name must end in {', '.join(suffixes)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _pixels(images: np.ndarray, axes: str) -> np.ndarray:
    """Checks floats in [0,1] whose shape is `axes` and returns RGB bytes `[...,H,W,3]`."""
    if images.ndim != axes.count(",") + 1 or images.shape[-1] not in (1, 3) or not images.size:
        raise VaeJaxError(f"Images have shape {images.shape}: pass {axes}, C = 1 or 3, none empty.")
    outside = ~((images >= -TOLERANCE) & (images <= 1 + TOLERANCE))  # true for NaN too
    if outside.any():
        raise VaeJaxError(
            f"{outside.sum()} of {images.size} pixel values are not in [0,1], the first being "
            f"{images[outside][0]:.4g}: pass means or samples in [0,1], not logits or bytes."
        )
    pixels = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def _agree(what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise VaeJaxError(f"The {what} have shape {shape} where {expected} is needed.")


def _tiles(pixels: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Lays images `[N,H,W,3]` out in reading order as `[R,T,H,W,3]`, white where none is left."""
    count = len(pixels)
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    tiles = np.full((rows * columns, *pixels.shape[1:]), 255, np.uint8)
    tiles[:count] = pixels
    return tiles.reshape(rows, columns, *pixels.shape[1:])


def _mosaic(tiles: np.ndarray, gap: int = GAP) -> np.ndarray:
    """Joins tiles `[R,T,H,W,3]` into one picture, `gap` white pixels between them."""
    rows, columns, height, width, _ = tiles.shape
    picture = np.full((rows, height + gap, columns, width + gap, 3), 255, np.uint8)
    picture[:, :height, :, :width] = tiles.swapaxes(1, 2)
    high, wide = rows * (height + gap), columns * (width + gap)
    return picture.reshape(high, wide, 3)[: high - gap, : wide - gap]


def _centres(count: int, size: int, gap: int = GAP) -> np.ndarray:
    """Pixel coordinates of the centres of `count` tiles in a mosaic."""
    return np.arange(count) * (size + gap) + (size - 1) / 2


def _few(values: np.ndarray, most: int) -> tuple[np.ndarray, list[str]]:
    """Indices and labels of at most `most` values, first and last included."""
    shown = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    rounded = values[shown].round(2) + 0.0  # turns -0.0 into 0.0
    return shown, [f"{value:g}".replace("-", "\N{MINUS SIGN}") for value in rounded.tolist()]


def _picture(tiles: np.ndarray, gap: int = GAP) -> Axes:
    """Fills a figure with tiles, a whole number of dots to each pixel if they fit."""
    mosaic = _mosaic(tiles, gap)
    height, width, _ = mosaic.shape
    zoom = min(MAX_WIDTH / width, MAX_ZOOM)
    scale = (math.floor(zoom) if zoom >= 1 else zoom) / DPI
    figure = Figure(figsize=(width * scale, height * scale), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[])
    axes.imshow(mosaic, interpolation="auto")
    axes.spines[:].set_visible(False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    return axes


def _enclose(axes: Axes) -> Figure:
    """Grows the figure that `axes` fills, by whole dots, to hold the labels that hang outside."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox()
    margins = np.array([-box.x0, box.x1 - width, -box.y0, box.y1 - height]) + 0.05
    left, right, bottom, top = np.ceil(margins.clip(0) * DPI) / DPI
    wide, high = left + width + right, bottom + height + top
    figure.set_size_inches(wide, high)
    axes.set_position((left / wide, bottom / high, width / wide, height / high))
    return figure


def _charts(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    charts = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in charts:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(color="#e8e8e8")
        axes.tick_params(which="both", labelsize=8, color="#999999")
    return figure, charts


def _looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Line style by name: a colour for each run and a style for each split."""
    runs: dict[str, str] = {}
    looks: dict[str, dict[str, Any]] = {}
    for name in names:
        split = _SPLIT.search(name)
        colour = runs.setdefault(_SPLIT.sub("", name), PALETTE[len(runs) % len(PALETTE)])
        looks[name] = {"color": colour, **_SPLIT_STYLE[split[1].lower() if split else "valid"]}
    if not looks:
        raise VaeJaxError("There are no curves to draw: pass at least one name with its values.")
    return looks


def _draw_curves(
    axes: Axes, curves: Mapping[str, Curve], looks: Mapping[str, dict[str, Any]]
) -> None:
    """Draws lines and bands, and sets the y-limits as `learning_curves` says."""
    log = axes.get_xscale() == "log"
    drawn = []
    for name, (steps, values) in curves.items():
        x, y = np.asarray(steps, float), np.asarray(values, float)
        x = np.where(x > 0, x, np.nan) if log else x
        y = np.where(np.isfinite(y), y, np.nan).reshape(len(x), -1)
        mean, sd = y.mean(1), y.std(1, ddof=1) if y.shape[1] > 1 else np.zeros(len(x))
        # Few points are evaluations: a marker says where they are, and makes a lone one visible.
        axes.plot(x, mean, label=name, marker="o" if len(x) <= 20 else "", ms=3, **looks[name])
        if y.shape[1] > 1:
            # A band over a lone point has no area: its edge is what shows.
            band = {"color": looks[name]["color"], "alpha": 0.18, "linewidth": len(x) == 1}
            axes.fill_between(x, mean - sd, mean + sd, **band)
        drawn.append((np.log(x) if log else x, mean - sd, mean + sd))

    if not drawn or not np.isfinite(edges := np.concatenate(drawn, axis=1)).all(0).any():
        return
    x, low, high = edges[:, np.isfinite(edges).all(0)]
    settled = x >= x.min() + np.ptp(x) * (0.1 if log else 0.2)
    settled |= settled.sum() < 3  # of very few points, all count
    bottom, top = low[settled].min(), high[settled].max()
    margin = 0.06 * (top - bottom) or 0.05 * abs(top) or 1.0
    axes.set_ylim(bottom - margin, top + margin)


def _curve_legend(figure: Figure, **place: Any) -> None:
    """Puts one legend beside all axes, each name once; a grey patch explains the bands."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {str(line.get_label()): line for line in axes.lines}
    if any(axes.collections for axes in figure.axes):
        handles["±1 sd over seeds"] = Patch(color="#333333", alpha=0.18)
    figure.legend(list(handles.values()), list(handles), frameon=False, **place)
