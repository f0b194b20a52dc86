"""Charts: curves over steps or samples, and latents as points."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike

from vae_jax import given
from vae_jax.errors import VaeJaxError
from vae_jax.plots.figure import DPI, Figure, check_shape, house, plain

Curves = Mapping[str, tuple[ArrayLike, ArrayLike]]
FEW = 20  # points of a curve, up to which each is marked and inside the limits
SQUASHED = 4  # the largest factor by which their first steps may squash curves
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


def learning_curves(
    curves: Curves, *, ylabel: str = "nats per image", title: str | None = None
) -> Figure:
    """Plot curves over the steps of training, the mean ±1 sd of several seeds.

    A name that contains the word train, valid, test or optimum has a separate style (thin, thick,
    dashed, dotted), and names that differ only in that word share a colour. A seed that is not
    finite leaves a gap. If the first fifth of the x-axis (a tenth of a logarithmic one) would
    squash the rest of many points, the y-limits ignore it.

    Args:
        curves: by name, steps `[T]` and values `[T]`, or `[T, S]` for S seeds.
        ylabel: the label of the y-axis.
        title: the title.

    Raises:
        VaeJaxError: there is no curve.
    """
    return _over_steps({title or "": curves}, (6.4, 3.2), ylabel)


def learning_panels(panels: Mapping[str, Curves], *, ylabel: str = "nats per image") -> Figure:
    """Plot `learning_curves` in panels, each with separate limits.

    Thus even a rate that is a thousandth of the distortion can be read.

    Args:
        panels: by title, curves as in `learning_curves`.
        ylabel: the label of the y-axes.

    Raises:
        VaeJaxError: there is no curve.
    """
    return _over_steps(panels, (3.6, 2.8), ylabel)


def curve_panels(
    panels: Mapping[str, Curves], *, ylabel: str = "lower bound per image [nats]"
) -> Figure:
    """Plot curves over the training samples evaluated, three panels a row.

    The x-axis is logarithmic, so points at 0 samples are left out; for the rest see
    `learning_curves`.

    Args:
        panels: by title and name, samples evaluated `[T]` and values `[T]` or `[T, S]`.
        ylabel: the label of the y-axes.

    Raises:
        VaeJaxError: there is no curve.

    References:
        Kingma & Welling (2013), "Auto-encoding variational Bayes", figure 2.
    """
    return _curve_figure(panels, (2.7, 2.2), "log", "training samples evaluated", ylabel)


def scaling(
    panels: Mapping[str, Curves],
    *,
    xlabel: str,
    ylabel: str = "",
    yscale: Literal["linear", "log"] = "log",
) -> Figure:
    """Plot curves over a logarithmic x-axis, three panels a row.

    A power law is a straight line if the y-axis is also logarithmic. Every point is marked, every x
    is labelled if there are at most twelve, and every panel has a separate legend.

    Args:
        panels: by title and name, x `[T]` and y `[T]`.
        xlabel: the label of the x-axis.
        ylabel: the label of the y-axis; without one the title of a panel is that of its y-axis.
        yscale: the scale of the y-axis.
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
        # Legends are above the charts and of one height, so that charts have equal height.
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
    """Plot two-dimensional latents as points.

    Args:
        z: latents `[N, 2]`.
        labels: integer classes `[N]`, which colour the points; beyond ten the marker also changes.
        class_names: the names of the classes in the legend, by label; None shows the labels.

    Raises:
        VaeJaxError: the latents are not two-dimensional, or the labels do not fit.
    """
    z = np.asarray(given.array(z, "z", "[N, 2]"))
    check_shape("latents", z.shape, (len(z), 2))
    classes = np.zeros(len(z), int) if labels is None else np.asarray(labels)
    check_shape("labels", classes.shape, z.shape[:1])
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


def _palette() -> list[str]:
    """The colours of lines, one after the other."""
    default = mpl.rcParamsDefault["axes.prop_cycle"]
    cycle = house("axes.prop_cycle", default)
    return PALETTE if cycle is default else cycle.by_key().get("color", PALETTE)


def _charts(count: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Make `count` charts of `size` inches, three a row, but no figure too narrow for a legend."""
    rows, columns = math.ceil(count / 3), min(count, 3)
    figsize = (max(4.5, size[0] * columns), size[1] * rows + 0.5)
    if count == 1:
        figsize = house("figure.figsize", figsize)
    figure = Figure(figsize=figsize, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for index in range(count):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=house("grid.color", "#e8e8e8"))
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
    """Plot panels of `size` inches under one legend of all their names."""
    if not panels or not all(panels.values()):
        raise VaeJaxError("There are no curves to draw: give every panel a name with its values.")
    looks = _looks(name for curves in panels.values() for name in curves)
    figure, charts = _charts(len(panels), size)
    for axes, (title, curves) in zip(charts, panels.items(), strict=True):
        axes.set_title(title, fontsize="medium")
        axes.set_xscale(xscale)
        _plot_curves(axes, curves, looks)
    figure.supxlabel(xlabel, fontsize="medium")
    if len(panels) <= 3:  # beside a single row a label of the whole figure may reach its legend
        charts[0].set_ylabel(ylabel)
    else:
        figure.supylabel(ylabel, fontsize="medium")
    handles: list[Any] = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    if any(axes.collections for axes in charts):
        handles.append(Patch(color="#333333", alpha=0.18, label="±1 sd over seeds"))
    columns = 1 + min(len(panels), 3)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)
    if len(panels) > 1:  # the legend takes no height from the charts
        lines = math.ceil(len(handles) / columns)
        figure.set_figheight(figure.get_figheight() + 0.25 * (lines - 1))
    return figure


def _looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The line styles by name: a colour for each run and a style for each split."""
    palette = _palette()
    runs: dict[str, str] = {}
    looks: dict[str, dict[str, Any]] = {}
    for name in names:
        split = SPLIT.search(name)
        colour = runs.setdefault(SPLIT.sub("", name), palette[len(runs) % len(palette)])
        looks[name] = {"color": colour, **SPLIT_STYLE[split[1].lower() if split else "valid"]}
    return looks


def _plot_curves(axes: Axes, curves: Curves, looks: Mapping[str, dict[str, Any]]) -> None:
    """Plot lines and bands, and set the y-limits described in `learning_curves`."""
    log = axes.get_xscale() == "log"
    drawn = []
    for name, (steps, values) in curves.items():
        x, y = np.asarray(steps, float), np.asarray(values, float)
        y = y.reshape(len(x), -1 if y.size else 1)  # none before the first validation
        x = np.where(x > 0, x, np.nan) if log else x
        y = np.where(np.isfinite(y), y, np.nan)
        mean, sd = y.mean(1), y.std(1, ddof=1) if y.shape[1] > 1 else np.zeros(len(x))
        # Few points are evaluations: a marker shows their positions, and makes a lone one visible.
        axes.plot(x, mean, label=name, marker="o" if len(x) <= FEW else "", ms=3, **looks[name])
        if y.shape[1] > 1:
            # A band over a lone point has no area: only its edge is visible.
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
