"""Arrays to figures: learning curves, image grids, latent spaces.

Functions take NumPy arrays; each figure has an Agg canvas of its own, so there is no global state
to close, and shows itself as the value of a notebook's cell. The lines, fonts and sizes of a
Matplotlib style sheet prevail: `with matplotlib.style.context("paper.mplstyle")`.

Images are floats in [0,1], the channel last, `C` being 1 (grey) or 3 (RGB), or one more where the
last channel says which pixels are seen; others raise a `VaeJaxError`: logits and bytes must never
be shown as pictures.
"""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as AnyFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike
from PIL import Image, ImageColor

from vae_jax import given, storage
from vae_jax.errors import VaeJaxError, legible

Curves = Mapping[str, tuple[ArrayLike, ArrayLike]]
Names = Iterable[tuple[float, str]]
T = TypeVar("T")
Setting = Literal["axes.prop_cycle", "figure.figsize", "grid.color", "savefig.dpi"]

DPI = 150
MAX_DPI = 2400
MAX_WIDTH = 1260  # dots of pictures side by side: text stays legible at the width of a README
MAX_ZOOM = 4  # dots per pixel, a whole number unless the picture has to shrink
GAP = 2  # white pixels between pictures
FEW = 20  # points of a curve, up to which each is marked and none is outside of the limits
SQUASHED = 4  # how many times their own height curves may be pressed by their first steps
MISSING_GREY = 0.5  # the value that missing pixels are shown with
TOLERANCE = 1e-3  # rounding that a value in [0,1] may have suffered
# subsampling 0 keeps the colour of every pixel: in small pictures JPEG's usual half is visible.
JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
OPTIONS = {".png": {}, ".jpg": JPEG_OPTIONS, ".jpeg": JPEG_OPTIONS, ".webp": {"lossless": True}}
# For figures alone; without dates, so that the same figure is the same file.
VECTOR = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
# Distinct under colour blindness: Okabe and Ito (2008), with the wine and a grey of Tol (2021).
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]
PALETTE += ["#56B4E9", "#F0E442", "#882255", "#999999", "#000000"]
MARKERS = "o^sDvP"
SPLIT = re.compile(r"(?<![a-z])(train|valid|test|optimum)(?:ing|ation)?(?![a-z])", re.IGNORECASE)
SPLIT_STYLE: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 1.0, "alpha": 0.6},
    "valid": {"linewidth": 1.6},
    "test": {"linewidth": 1.6, "linestyle": (0, (3, 1.2))},
    "optimum": {"linewidth": 1.2, "linestyle": (0, (1, 1.2))},
}


class Figure(AnyFigure):
    """A figure that shows itself as the value of a notebook's cell."""

    def _repr_png_(self) -> bytes:
        return png(self)


def learning_curves(
    curves: Curves, *, ylabel: str = "nats per image", title: str | None = None
) -> Figure:
    """Draws name -> (steps `[T]`, values `[T]`, or `[T,S]` for the mean ±1 sd of `S` seeds).

    A name that contains the word train, valid, test or optimum gets a style of its own (thin,
    thick, dashed, dotted), and names that differ in that word only share a colour. A seed that is
    not finite leaves a gap. Where the first fifth of the x-axis (a tenth of a logarithmic one)
    would squash the rest of many points, the y-limits ignore it. Raises VaeJaxError if there is no
    curve.
    """
    return _over_steps({title or "": curves}, (6.4, 3.2), ylabel)


def learning_panels(panels: Mapping[str, Curves], *, ylabel: str = "nats per image") -> Figure:
    """Draws title -> name -> curves as in `learning_curves`, each panel with limits of its own.

    Then even a rate that is a thousandth of the distortion can be read. Raises VaeJaxError if there
    is no curve.
    """
    return _over_steps(panels, (3.6, 2.8), ylabel)


def curve_panels(
    panels: Mapping[str, Curves], *, ylabel: str = "lower bound per image [nats]"
) -> Figure:
    """Draws title -> name -> (training samples evaluated `[T]`, values `[T]` or `[T,S]`).

    Figure 2 of Kingma and Welling (2014), arXiv:1312.6114, three panels a row, else as in
    `learning_curves`. The x-axis is logarithmic: points at 0 samples are left out. Raises
    VaeJaxError if there is no curve.
    """
    return _curve_figure(panels, (2.7, 2.2), "log", "training samples evaluated", ylabel)


def scaling(
    panels: Mapping[str, Curves],
    *,
    xlabel: str,
    ylabel: str = "",
    yscale: Literal["linear", "log"] = "log",
) -> Figure:
    """Draws title -> name -> (x `[T]`, y `[T]`) over a logarithmic x-axis, three panels a row.

    A power law is a straight line where the y-axis is logarithmic too. Every point is marked, every
    x is labelled if there are at most twelve, and every panel has a legend of its own. Without
    `ylabel` the title of a panel is that of its y-axis.
    """
    figure, charts = _charts(len(panels), (4.2, 3.6))
    lines = max(map(len, panels.values()))
    columns = 1 + (lines > 4)
    for axes, (title, curves) in zip(charts, panels.items(), strict=True):
        for (name, look), points in zip(_looks(curves).items(), curves.values(), strict=True):
            axes.plot(*points, label=name, marker="o", ms=3, **look)
        axes.set(xscale="log", yscale=yscale)
        positions = sorted({float(each) for x, _ in curves.values() for each in np.asarray(x)})
        if len(positions) <= 12:
            axes.set_xticks(positions, labels=[f"{each:g}" for each in positions])
            axes.xaxis.minorticks_off()
        # Legends are above the charts and of one height, so that the charts are too.
        missing = lines - len(curves)
        above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "alignment": "left"}
        axes.legend(
            [*axes.lines, *[Line2D([], [], ls="")] * missing],
            [*curves, *[" "] * missing],
            title=title if ylabel else None,
            frameon=False,
            ncols=columns,
            **above,
        )
        axes.set_ylabel("" if ylabel else title)
    figure.supxlabel(xlabel, fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    return figure


def latent_scatter(
    z: np.ndarray, labels: np.ndarray | None = None, class_names: Sequence[str] | None = None
) -> Figure:
    """Draws latents `[N,2]` as points, coloured by integer class `[N]` when labels are given.

    Beyond ten classes the marker changes too. The legend shows `class_names[label]`, or the label.
    Raises VaeJaxError unless the latents are two-dimensional.
    """
    z = np.asarray(given.array(z, "z", "[N, 2]"))
    _agree("latents", z.shape, (len(z), 2))
    classes = np.zeros(len(z), int) if labels is None else np.asarray(labels)
    _agree("labels", classes.shape, z.shape[:1])
    if classes.dtype.kind not in "iu":
        raise VaeJaxError(f"The labels are {classes.dtype}: give integers [N].")
    if class_names and not 0 <= classes.min() <= classes.max() < len(class_names):
        raise VaeJaxError(
            f"The labels go from {classes.min()} to {classes.max()}, and there are "
            f"{len(class_names)} class_names: name each."
        )
    figure, (axes,) = _charts(1, (5.6, 4.8))
    size, palette = np.clip(2e4 / len(z), 4, 24), _palette()
    style: dict[str, Any] = {"s": size, "alpha": 0.7, "linewidths": 0, "zorder": 2}
    for label in np.unique(classes):
        axes.scatter(
            *z[classes == label].T,
            color=palette[label % len(palette)],
            marker=MARKERS[label // len(palette) % len(MARKERS)],
            label=plain(class_names[int(label)]) if class_names else str(label),
            **style,
        )
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    axes.set_aspect("equal", adjustable="datalim")
    if labels is not None:
        columns = math.ceil(len(axes.collections) / 20)
        figure.legend(loc="outside right upper", ncols=columns, frameon=False, markerscale=2)
    return figure


def image_grid(images: np.ndarray, columns: int | None = None, title: str | None = None) -> Figure:
    """Draws images `[N,H,W,C]` in reading order, in a nearly square grid unless told `columns`.

    Raises VaeJaxError unless the images are pictures in [0,1].
    """
    return _show(_tiles(_pixels(images, "[N,H,W,C]"), columns), title=title or "")


def reconstructions(
    originals: np.ndarray, reconstructions: np.ndarray, title: str | None = None
) -> Figure:
    """Draws data `[N,H,W,C]` above the mean of p(x|z) `[N,H,W,C]`, in blocks of up to ten pairs.

    Raises VaeJaxError unless both are pictures in [0,1], ValueError if their shapes differ.
    """
    both = _pixels(np.stack([originals, reconstructions], axis=1), "[N,2,H,W,C]")
    pairs = np.stack([_mosaic(pair[:, None]) for pair in both])
    blocks, gap = _tiles(pairs, columns=10), 3 * GAP  # wider than within a pair
    shift = (both.shape[2] + GAP) / 2 / (pairs.shape[1] + gap)  # from the centre of a pair
    names = [(row - shift, "data") for row in range(len(blocks))]
    names += [(row + shift, "mean") for row in range(len(blocks))]
    return _show(blocks, gap, y=names, title=title or "")


def manifold(images: np.ndarray, values: np.ndarray) -> Figure:
    """Draws images `[n,n,H,W,C]`, `images[i,j]` at z_2 = values[i] (upwards), z_1 = values[j].

    Figure 4 of Kingma and Welling (2014), arXiv:1312.6114: means decoded where the values `[n]` are
    the inverse normal CDF of equally spaced probabilities, so that area is prior probability.
    Raises VaeJaxError unless the images are pictures in [0,1], `n` by `n`.
    """
    tiles = _pixels(images, "[n,n,H,W,C]")
    _agree("rows and columns", tiles.shape[:2], (len(values), len(values)))
    x = _few(values, 5)
    y = [(len(values) - 1 - position, name) for position, name in x]
    return _show(tiles[::-1], gap=0, x=x, y=y, xlabel="$z_1$", ylabel="$z_2$")


def interpolations(images: np.ndarray) -> Figure:
    """Draws one path a row, images `[R,T,H,W,C]`, with a coloured frame around both end points.

    Raises VaeJaxError unless the images are pictures in [0,1].
    """
    tiles = _pixels(images, "[R,T,H,W,C]")
    rows, columns, height, width, _ = tiles.shape
    edge = max(1, height // 32)
    framed = np.full((rows, columns, height + 2 * edge, width + 2 * edge, 3), 255, np.uint8)
    framed[:, [0, -1]] = ImageColor.getrgb(PALETTE[1])
    framed[:, :, edge:-edge, edge:-edge] = tiles
    return _show(framed, x=[(0, "end point"), (columns - 1, "end point")])


def traversals(images: np.ndarray, values: np.ndarray, latents: Iterable[int]) -> Figure:
    """Draws images `[D,T,H,W,C]`: each row moves one latent through `values` `[T]`.

    The values are above the columns; beside each row is the latent that it moves, counted from 0 in
    `latents` `[D]` and from z_1 in the figure. Raises VaeJaxError unless the images are pictures in
    [0,1] that both fit.
    """
    tiles = _pixels(images, "[D,T,H,W,C]")
    names = [f"$z_{{{latent + 1}}}$" for latent in latents]
    _agree("rows and columns", tiles.shape[:2], (len(names), len(values)))
    return _show(tiles, x=_few(values, 11), y=enumerate(names))


def named_rows(images: np.ndarray, names: Sequence[str], title: str | None = None) -> Figure:
    """Draws images `[R,T,H,W,C]`, each of the `R` rows with its name beside it.

    Raises VaeJaxError unless the images are pictures in [0,1] and there is a name for each row.
    """
    tiles = _pixels(images, "[R,T,H,W,C]")
    _agree("rows", tiles.shape[:1], (len(names),))
    return _show(tiles, y=enumerate(map(plain, names)), title=title or "")


def restyled(
    originals: np.ndarray, images: np.ndarray, source: str, targets: Sequence[str]
) -> Figure:
    """Draws data `[N,H,W,C]` of class `source`, and below them what they became, `[N,R,H,W,C]`.

    The row of each of the `R` targets has its name. Raises as `named_rows` does.
    """
    rows = np.concatenate([originals[:, None], images], 1).swapaxes(0, 1)
    return named_rows(rows, [f"{source}, data", *targets])


def sample_panels(panels: Mapping[str, np.ndarray]) -> Figure:
    """Draws title -> images `[N,H,W,C]`, of one shape, as nearly square grids side by side.

    Figure 5 of Kingma and Welling (2014), arXiv:1312.6114. Raises VaeJaxError unless the images
    are pictures in [0,1], ValueError if their shapes differ.
    """
    images = _pixels(np.stack(list(panels.values())), "[P,N,H,W,C]")
    grids = np.stack([_mosaic(_tiles(panel)) for panel in images])
    return _show(grids[None], gap=images.shape[3] // 2, x=enumerate(panels))


def save(
    figure: AnyFigure,
    path: str | Path,
    quality: int | None = None,
    dpi: float | None = None,
) -> Path:
    """Writes a figure as the suffix says, to .pdf or .svg with its text as text.

    Args:
        figure: the figure.
        path: its file; one without a suffix gets that of Matplotlib's `savefig.format`, .png.
        quality: as in `save_images`.
        dpi: dots per inch (None: 150, or those of a style sheet).

    Raises:
        VaeJaxError: as in `save_images`.
    """
    path = Path(path)
    if not path.suffix.strip(".0123456789"):  # none, or the end of a number
        path = path.with_name(f"{path.name}.{mpl.rcParams['savefig.format']}")
    options = options_for(path, quality, of_figure=True)
    dots = _house("savefig.dpi", DPI) if dpi is None else dpi
    if not (isinstance(dots, str) or 1 <= dots <= MAX_DPI):
        raise VaeJaxError(f"The dots per inch of {path} are {dots:g}: give 1 to {MAX_DPI}.")

    def write(to: Path) -> None:
        if path.suffix.lower() in VECTOR:
            figure.savefig(to, dpi=dots, metadata=options)
        else:
            figure.savefig(to, dpi=dots, pil_kwargs=options)

    # Text stays text, which a paper's editor can find and set in its own font.
    as_text = mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "vae"})
    with _of_any_script(), as_text:
        return _write(path, write)


def png(figure: AnyFigure) -> bytes:
    """The file that `save` would write to a .png."""
    made = io.BytesIO()
    with _of_any_script():
        figure.savefig(made, format="png", dpi=DPI)
    return made.getvalue()


def use_style(style: str | Path | None, dpi: float | None = None, suffix: str = "png") -> None:
    """Give figures a style sheet, dots per inch and a default suffix from now on.

    Args:
        style: an .mplstyle file, or the name of one of Matplotlib's.
        dpi: dots per inch.
        suffix: png, jpg, webp, pdf or svg.

    Raises:
        VaeJaxError: there is no such style sheet.
    """
    try:
        styles.use([] if style is None else str(style))
    except OSError as error:
        raise VaeJaxError(
            f"{style} is no style sheet: give an .mplstyle file, or the name of one of "
            "Matplotlib's, such as ggplot."
        ) from error
    if dpi is not None:
        mpl.rcParams["savefig.dpi"] = dpi
    if suffix != "png":
        mpl.rcParams["savefig.format"] = suffix


def save_images(
    images: np.ndarray, path: str | Path, columns: int | None = None, quality: int | None = None
) -> Path:
    """Writes images `[N,H,W,C]` as one grid of bytes round(255 x), without axes or separators.

    The bytes are sRGB, as those of the data are. The suffix decides: .png and .webp keep every
    byte, .jpg and .jpeg have quality 95; `quality`, 1 to 100, is for .jpg, .jpeg and .webp. A
    failure leaves no file behind. Raises VaeJaxError unless the path can be written and ends in one
    of these, the quality suits it, and the images are pictures in [0,1].
    """
    path = Path(path)
    options = options_for(path, quality)
    pixels = _pixels(images, "[N,H,W,C]")
    grid = Image.fromarray(_mosaic(_tiles(pixels, columns), gap=0))
    picture = grid.convert("L" if images.shape[-1] == 1 else "RGB")
    return _write(path, lambda to: picture.save(to, **options))


def save_each(images: np.ndarray, path: str | Path, quality: int | None = None) -> list[Path]:
    """Writes images `[N,H,W,C]` to a file each: {} in the path's name becomes 0, 1, ... N - 1.

    The numbers have leading zeros, so that names sort. Raises VaeJaxError as `save_images` does.
    """
    path, digits = Path(path), len(str(len(images) - 1))
    paths = [path.with_name(path.name.replace("{}", f"{n:0{digits}}")) for n in range(len(images))]
    return [save_images(images[n : n + 1], each, 1, quality) for n, each in enumerate(paths)]


def options_for(path: Path, quality: int | None, of_figure: bool = False) -> dict[str, Any]:
    """The options with which PIL writes a picture to that path, or Matplotlib a figure.

    Raises VaeJaxError as `save_images` does.
    """
    suffix, known = path.suffix.lower(), OPTIONS | VECTOR if of_figure else OPTIONS
    if suffix not in known:
        raise VaeJaxError(f"Cannot write {path}: its name must end in {', '.join(known)}.")
    if quality is None:
        return known[suffix]
    if suffix in {".png", *VECTOR}:
        raise VaeJaxError(
            f"Cannot write {path} with a quality: {suffix[1:].upper()} keeps every byte; choose "
            ".jpg or .webp, or leave the quality out."
        )
    if not 1 <= quality <= 100:
        raise VaeJaxError(f"The quality of {path} is {quality}: give 1 to 100.")
    if suffix == ".webp":
        return {"quality": quality}
    return JPEG_OPTIONS | {"quality": quality}


def plain(name: str) -> str:
    """A user's name, escaped so that figures show it as it is, and in every legend."""
    return legible(f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def _house(setting: Setting, own: T) -> T:
    """This module's own setting, unless a style sheet has changed Matplotlib's default."""
    said = mpl.rcParams[setting]
    return own if said == mpl.rcParamsDefault[setting] else said


def _palette() -> list[str]:
    """The colours of lines, one after the other."""
    default = mpl.rcParamsDefault["axes.prop_cycle"]
    cycle = _house("axes.prop_cycle", default)
    return PALETTE if cycle is default else cycle.by_key().get("color", PALETTE)


@contextlib.contextmanager
def _of_any_script() -> Iterator[None]:
    """Draws a box for each letter that no font has, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph|Matplotlib currently does not support")
        yield


def _write(path: Path, write: Callable[[Path], None]) -> Path:
    """Lets `write` make a file, whole or not at all."""
    with storage.writing(path), storage.whole_file(path) as partial:
        write(partial)
    return path


def _agree(what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise VaeJaxError(f"The {what} have shape {shape} where {expected} is needed.")


def _pixels(images: np.ndarray, axes: str) -> np.ndarray:
    """Checks floats in [0,1] whose shape is `axes` and returns RGB bytes `[...,H,W,3]`."""
    if np.ndim(images) and np.shape(images)[-1] in (2, 4):  # the last says which pixels are seen
        seen = images[..., -1:]
        images = seen * images[..., :-1] + (1 - seen) * MISSING_GREY
    images = given.pictures(images, "An array of images", axes)
    wrong = images[~((images >= -TOLERANCE) & (images <= 1 + TOLERANCE))]  # NaN too
    if wrong.size:
        raise VaeJaxError(
            f"A pixel is {wrong[0]:.4g}: pass pictures in [0,1], not logits or bytes."
        )
    pixels = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def _tiles(pixels: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Lays images `[N,H,W,3]` out in reading order as `[R,T,H,W,3]`, white where none is left."""
    columns = min(columns or math.ceil(math.sqrt(len(pixels))), len(pixels))
    blank = np.full((-len(pixels) % columns, *pixels.shape[1:]), 255, np.uint8)
    return np.concatenate([pixels, blank]).reshape(-1, columns, *pixels.shape[1:])


def _mosaic(tiles: np.ndarray, gap: int = GAP) -> np.ndarray:
    """Joins tiles `[R,T,H,W,3]` into one picture, `gap` white pixels between them."""
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
    """Fills a figure with tiles; `x` and `y` name columns and rows by their positions from 0."""
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
    with _of_any_script():
        box = figure.get_tightbbox()
    margins = np.array([-box.x0, box.x1 - width, -box.y0, box.y1 - height]) + 0.05
    left, right, bottom, top = np.ceil(margins.clip(0) * DPI) / DPI
    wide, high = left + width + right, bottom + height + top
    figure.set_size_inches(wide, high)
    axes.set_position((left / wide, bottom / high, width / wide, height / high))
    return figure


def _charts(count: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Makes `count` charts of `size` inches, three a row, but no figure too narrow for a legend."""
    rows, columns = math.ceil(count / 3), min(count, 3)
    figsize = (max(4.5, size[0] * columns), size[1] * rows + 0.5)
    if count == 1:
        figsize = _house("figure.figsize", figsize)
    figure = Figure(figsize=figsize, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for index in range(count):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=_house("grid.color", "#e8e8e8"))
        axes.tick_params(which="both", labelsize="small", color="#999999")
    return figure, figure.axes


def _over_steps(panels: Mapping[str, Curves], size: tuple[float, float], ylabel: str) -> Figure:
    figure = _curve_figure(panels, size, "linear", "training step", ylabel)
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def _curve_figure(
    panels: Mapping[str, Curves], size: tuple[float, float], xscale: str, xlabel: str, ylabel: str
) -> Figure:
    """Draws panels of `size` inches under one legend of all their names."""
    if not panels or not all(panels.values()):
        raise VaeJaxError("There are no curves to draw: give every panel a name with its values.")
    looks = _looks(name for curves in panels.values() for name in curves)
    figure, charts = _charts(len(panels), size)
    for axes, (title, curves) in zip(charts, panels.items(), strict=True):
        axes.set_title(title, fontsize="medium")
        axes.set_xscale(xscale)
        _draw_curves(axes, curves, looks)
    figure.supxlabel(xlabel, fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    handles: list[Any] = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    if any(axes.collections for axes in charts):
        handles.append(Patch(color="#333333", alpha=0.18, label="±1 sd over seeds"))
    columns = 1 + min(len(panels), 3)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Line style by name: a colour for each run and a style for each split."""
    palette = _palette()
    runs: dict[str, str] = {}
    looks: dict[str, dict[str, Any]] = {}
    for name in names:
        split = SPLIT.search(name)
        colour = runs.setdefault(SPLIT.sub("", name), palette[len(runs) % len(palette)])
        looks[name] = {"color": colour, **SPLIT_STYLE[split[1].lower() if split else "valid"]}
    return looks


def _draw_curves(axes: Axes, curves: Curves, looks: Mapping[str, dict[str, Any]]) -> None:
    """Draws lines and bands, and sets the y-limits as `learning_curves` says."""
    log = axes.get_xscale() == "log"
    drawn = []
    for name, (steps, values) in curves.items():
        x, y = np.asarray(steps, float), np.asarray(values, float)
        x = np.where(x > 0, x, np.nan) if log else x
        y = np.where(np.isfinite(y), y, np.nan).reshape(len(x), -1)
        mean, sd = y.mean(1), y.std(1, ddof=1) if y.shape[1] > 1 else np.zeros(len(x))
        # Few points are evaluations: a marker says where they are, and makes a lone one visible.
        axes.plot(x, mean, label=name, marker="o" if len(x) <= FEW else "", ms=3, **looks[name])
        if y.shape[1] > 1:
            # A band over a lone point has no area: its edge is what shows.
            band = {"color": looks[name]["color"], "alpha": 0.18, "lw": 6 if len(x) == 1 else 0}
            axes.fill_between(x, mean - sd, mean + sd, **band)
        drawn.append((np.log(x) if log else x, mean - sd, mean + sd))

    edges = np.concatenate(drawn, axis=1)
    x, low, high = edges[:, np.isfinite(edges).all(0)]
    if x.size:
        settled = x >= x.min() + np.ptp(x) * (0.1 if log else 0.2)
        limits = low[settled].min(), high[settled].max()
        is_short = max(len(each[0]) for each in drawn) <= FEW
        if is_short or high.max() - low.min() <= SQUASHED * (limits[1] - limits[0]):
            limits = low.min(), high.max()
        axes.dataLim.intervaly = limits
