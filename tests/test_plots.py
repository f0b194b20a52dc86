"""Figures are checked by what is on them: bytes in the pictures, vertices of lines and bands."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vae_jax import plots
from vae_jax.errors import VaeJaxError

RNG = np.random.default_rng(0)
Draw = Callable[[np.ndarray], Figure]

# Each takes images [4,H,W,C].
IMAGE_FIGURES: dict[str, Draw] = {
    "image_grid": plots.image_grid,
    "reconstructions": lambda x: plots.reconstructions(x[:2], x[2:]),
    "manifold": lambda x: plots.manifold(x.reshape(2, 2, *x.shape[1:]), np.array([-1.0, 1.0])),
    "interpolations": lambda x: plots.interpolations(x[None]),
    "traversals": lambda x: plots.traversals(x[None], np.arange(4.0), [0]),
    "sample_panels": lambda x: plots.sample_panels({"data": x[:2], "samples": x[2:]}),
}


def images(*shape: int) -> np.ndarray:
    return RNG.uniform(size=shape).astype(np.float32)


def shown(figure: Figure) -> np.ndarray:
    """The bytes `[H,W,3]` handed to the canvas by a figure with one picture."""
    return np.asarray(figure.axes[0].images[0].get_array())


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def rendered(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    canvas: Any = figure.canvas
    return np.asarray(canvas.buffer_rgba())[..., :3]


def labels(axis: Any) -> dict[float, str]:
    return {
        float(place): text.get_text()
        for place, text in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_saved_pixels_are_the_rounded_bytes_in_reading_order(
    tmp_path: Path, channels: int, suffix: str
):
    x = images(5, 28, 20, channels)
    path = plots.save_images(x, tmp_path / "new" / f"grid{suffix}", columns=3)
    mode = "L" if channels == 1 else "RGB"
    grid = np.asarray(opened(path).convert(mode)).reshape(2 * 28, 3 * 20, channels)
    for n, image in enumerate(x):
        row, column = divmod(n, 3)
        tile = grid[28 * row : 28 * (row + 1), 20 * column : 20 * (column + 1)]
        np.testing.assert_array_equal(tile, np.round(255 * image))
    assert (grid[28:, 40:] == 255).all()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_is_a_jpeg_close_to_the_pixels(tmp_path: Path, suffix: str):
    ramp = np.broadcast_to(np.linspace(0, 1, 28)[None, :, None, None], (1, 28, 20, 1))
    path = plots.save_images(ramp, tmp_path / f"grid{suffix}")
    assert path.read_bytes()[:3] == b"\xff\xd8\xff"
    error = np.asarray(opened(path)).astype(float) - 255 * ramp[0, :, :, 0]
    assert np.abs(error).max() < 4


def test_default_grid_is_nearly_square(tmp_path: Path):
    path = plots.save_images(images(10, 28, 20, 1), tmp_path / "grid.png")
    assert opened(path).size == (4 * 20, 3 * 28)


def test_rounding_beyond_the_interval_is_clipped(tmp_path: Path):
    x = np.array([-0.0009, 1.0009], np.float32).reshape(1, 1, 2, 1)
    path = plots.save_images(x, tmp_path / "grid.png")
    assert np.asarray(opened(path)).tolist() == [[0, 255]]


@pytest.mark.parametrize("bad", [-0.0011, 1.0011, 7.0, np.nan, np.inf])
def test_no_function_shows_logits(tmp_path: Path, bad: float):
    x = images(4, 28, 20, 1)
    x[2, 3, 4, 0] = bad
    for draw in IMAGE_FIGURES.values():
        with pytest.raises(VaeJaxError, match=r"not logits"):
            draw(x)
    with pytest.raises(VaeJaxError, match=r"not logits"):
        plots.save_images(x, tmp_path / "new" / "grid.png")
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_refused():
    with pytest.raises(VaeJaxError, match="not logits or bytes"):
        plots.image_grid(np.full((1, 2, 2, 1), 255, np.uint8))


@pytest.mark.parametrize("shape", [(4, 28, 28), (4, 28, 28, 5), (0, 28, 28, 1)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]):
    with pytest.raises(VaeJaxError, match=r"\[N,H,W,C\]"):
        plots.image_grid(np.zeros(shape))


@pytest.mark.parametrize("draw", IMAGE_FIGURES.values(), ids=IMAGE_FIGURES)
@pytest.mark.parametrize("shape", [(4, 28, 20, 1), (4, 3, 3, 3), (4, 400, 400, 1), (4, 1, 1, 1)])
def test_every_picture_and_label_is_inside_its_figure(draw: Draw, shape: tuple[int, ...]):
    figure = draw(images(*shape))
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height
    assert rendered(figure).min() < 255


def test_small_images_are_enlarged_by_whole_pixels():
    figure = plots.image_grid(images(20, 28, 20, 1), columns=10, title="a title")
    mosaic, dots = shown(figure), rendered(figure)
    corner = figure.axes[0].get_window_extent()
    left, top = round(corner.x0), dots.shape[0] - round(corner.y1)
    expected = mosaic.repeat(4, 0).repeat(4, 1)
    found = dots[top : top + expected.shape[0], left : left + expected.shape[1]]
    np.testing.assert_array_equal(found, expected)


def test_manifold_puts_the_lowest_latents_at_the_bottom_left():
    values = np.array([-1.5, 0.0, 2.0])
    x = np.arange(9).reshape(3, 3, 1, 1, 1) / 255 * np.ones((1, 1, 28, 20, 1))
    figure = plots.manifold(x, values)
    picture = shown(figure)[14::28, 10::20, 0]
    np.testing.assert_array_equal(picture, [[6, 7, 8], [3, 4, 5], [0, 1, 2]])
    (axes,) = figure.axes
    minus = "\N{MINUS SIGN}1.5"
    assert labels(axes.xaxis) == {9.5: minus, 29.5: "0", 49.5: "2"}
    assert labels(axes.yaxis) == {69.5: minus, 41.5: "0", 13.5: "2"}
    bottom, top = axes.get_ylim()
    assert bottom > top  # pixel rows count downwards, so the largest z_2 is drawn highest
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_1$", "$z_2$")


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 20, 21])
def test_few_ticks_are_symmetric_with_a_centre_where_there_is_one(count: int):
    values = np.linspace(-2, 2, count)
    figure = plots.manifold(np.zeros((count, count, 2, 2, 1)), values)
    ticks = figure.axes[0].get_xticks()
    assert min(count, 2) <= len(ticks) <= 5
    np.testing.assert_allclose(ticks + ticks[::-1], count * 2 - 1)
    assert (0.5 in ticks, count * 2 - 1.5 in ticks) == (True, True)
    assert len(ticks) % 2 == count % 2


def test_reconstruction_labels_stand_beside_their_rows():
    data, mean = np.zeros((13, 28, 20, 1)), np.full((13, 28, 20, 1), 0.2)
    figure = plots.reconstructions(data, mean)
    picture = shown(figure)
    rows = labels(figure.axes[0].yaxis)
    assert sorted(rows.values()) == ["data", "data", "mean", "mean"]
    for place, name in rows.items():
        assert picture[round(place), 0, 0] == {"data": 0, "mean": 51}[name]
    assert [rows[place] for place in sorted(rows)] == ["data", "mean", "data", "mean"]


def test_interpolation_frames_only_the_end_points():
    x = images(2, 4, 28, 28, 1)
    picture = shown(plots.interpolations(x))
    np.testing.assert_array_equal(picture[1:29, 1:29], np.round(255 * x[0, 0]).repeat(3, -1))
    coloured = (picture.max(-1) != picture.min(-1)).any(0)
    first, last = coloured[:30], coloured[-30:]
    assert first.all()
    assert last.all()
    assert not coloured[30:-30].any()


def test_traversals_label_rows_and_columns():
    latents = [6, 2]
    x = np.zeros((2, 3, 28, 20, 1))
    x[1, 2] = 0.2
    figure = plots.traversals(x, np.array([-3.0, -1e-9, 3.0]), latents)
    columns, rows = labels(figure.axes[0].xaxis), labels(figure.axes[0].yaxis)
    assert list(columns.values()) == ["\N{MINUS SIGN}3", "0", "3"]
    assert list(rows.values()) == ["$z_{7}$", "$z_{3}$"]
    assert shown(figure)[int(max(rows)), int(max(columns)), 0] == 51
    with pytest.raises(VaeJaxError, match="rows and columns"):
        plots.traversals(x, np.zeros(2), latents)


def test_sample_panels_stand_under_their_titles():
    panels = {"dark": np.zeros((4, 28, 20, 1)), "light": np.full((4, 28, 20, 1), 0.2)}
    figure = plots.sample_panels(panels)
    picture = shown(figure)
    values = {
        name: set(picture[:, : round(2 * place), 0].ravel())
        for place, name in labels(figure.axes[0].xaxis).items()
    }
    assert values["dark"] == {0, 255}
    assert values["light"] == {0, 51, 255}


def band(figure: Figure) -> np.ndarray:
    (collection,) = figure.axes[0].collections
    return np.asarray(collection.get_paths()[0].vertices)


def test_seeds_are_a_mean_and_a_band_of_one_sd():
    steps, values = np.arange(30), RNG.normal(100, 1, (30, 5))
    figure = plots.learning_curves({"train": (steps, values)})
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(np.asarray(line.get_ydata()), values.mean(1))
    vertices = band(figure)
    for step in steps:
        edges = vertices[vertices[:, 0] == step, 1]
        expected = values[step].mean() + np.array([-1, 1]) * values[step].std(ddof=1)
        np.testing.assert_allclose([edges.min(), edges.max()], expected)


def test_splits_of_a_run_share_a_colour_and_differ_in_style():
    names = ["K=1 train", "K=1 valid", "K=1 test", "K=50 train", "K=50 validation"]
    figure = plots.learning_curves({name: ([0, 1], [0.0, 1.0]) for name in names})
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    colours = [lines[name].get_color() for name in names]
    assert len(set(colours[:3])) == len(set(colours[3:])) == 1
    assert colours[0] != colours[3]
    styles = [(lines[name].get_linewidth(), lines[name].get_linestyle()) for name in names]
    assert len(set(styles)) == 3
    assert styles[0] == styles[3]
    assert styles[1] == styles[4]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_first_steps_do_not_squash_the_rest_but_a_late_divergence_shows():
    steps = np.arange(1000)
    values = 100 + 440 * np.exp(-steps / 20)
    low, high = plots.learning_curves({"train": (steps, values)}).axes[0].get_ylim()
    assert low < 100
    assert values[200] < high < 101
    values[900] = 700
    assert plots.learning_curves({"train": (steps, values)}).axes[0].get_ylim()[1] > 700


def test_curves_of_no_or_one_point_and_without_finite_values_are_drawn():
    one = plots.learning_curves({"valid": ([100], [[98.0, 100.0]]), "train": ([100], [97.0])})
    low, high = one.axes[0].get_ylim()
    assert low < 97 < 99 + np.sqrt(2) < high
    assert (
        rendered(one) != rendered(plots.learning_curves({"valid": ([0], [np.nan])}))[0, 0]
    ).any()
    gaps = plots.learning_curves({"valid": ([1, 2, 3], [[1.0, np.inf], [2.0, 2.0], [3.0, 3.0]])})
    np.testing.assert_array_equal(gaps.axes[0].lines[0].get_ydata(), [np.nan, 2, 3])
    rendered(gaps)
    for none in ([], np.zeros((0, 0)), np.zeros((0, 3))):  # a run that was stopped before its first validation
        rendered(plots.learning_curves({"valid": ([], none), "train": ([100], [97.0])}))


def test_a_short_run_is_shown_whole():
    steps = np.arange(100, 1100, 100)
    values = 100 + 440 * np.exp(-steps / 20)
    values[0] = 540
    assert plots.learning_curves({"train": (steps, values)}).axes[0].get_ylim()[1] > 540
    falling = np.linspace(200, 100, 1000)  # nothing is squashed
    whole = plots.learning_curves({"train": (np.arange(1000), falling)})
    assert whole.axes[0].get_ylim()[1] > 200


def test_a_rate_is_read_beside_a_distortion_a_thousand_times_as_large():
    steps = np.arange(50)
    rate = 1 + 0.2 * np.sin(steps)
    panels = {"distortion": {"train": (steps, 2000 - steps)}, "rate": {"train": (steps, rate)}}
    figure = plots.learning_panels(panels)
    assert [axes.get_title() for axes in figure.axes] == ["distortion", "rate"]
    low, high = figure.axes[1].get_ylim()
    assert high - low < 2 * np.ptp(rate)
    rendered(figure)


def test_no_curve_is_refused():
    for draw in (lambda: plots.learning_curves({}), lambda: plots.curve_panels({"MNIST": {}})):
        with pytest.raises(VaeJaxError, match="no curves"):
            draw()


def test_curve_panels_share_one_legend_and_a_logarithmic_axis():
    x = np.array([0, 1e5, 1e6, 1e7])
    curves = {
        "AEVB (train)": (x, [-200, -130, -110, -100]),
        "AEVB (test)": (x, [-210, -140, -115, -105]),
    }
    figure = plots.curve_panels({f"MNIST, $N_z$={n}": curves for n in (3, 5, 10, 20)})
    assert [axes.get_title() for axes in figure.axes][:2] == ["MNIST, $N_z$=3", "MNIST, $N_z$=5"]
    assert len(figure.axes) == 4
    assert all(axes.get_xscale() == "log" for axes in figure.axes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(curves)
    rendered(figure)


def test_a_label_of_one_row_of_panels_ends_below_the_legend():
    curves = {f"curve {number}": ([1, 10], [1, 2]) for number in range(6)}
    panels = {"MNIST": curves, "Frey Faces": curves}
    figure = plots.curve_panels(panels, ylabel="marginal log-likelihood [nats]")
    rendered(figure)
    label = figure.axes[0].yaxis.label.get_window_extent()
    assert label.y0 >= 0
    assert label.y1 <= figure.legends[0].get_window_extent().y0


def test_the_charts_of_scaling_have_one_height():
    """However many lines their legends have, and however many points their curves."""
    x = np.arange(1, 49)
    panels = {"one": {"a": (x, x)}, "two": {"a": (x, x), "b": (x, x), "c": (x, x)}}
    figure = plots.scaling(panels, xlabel="layer", ylabel="rate")
    rendered(figure)
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert boxes[0].height == pytest.approx(boxes[1].height)
    for axes in figure.axes:
        legend: Any = axes.get_legend()
        assert legend.get_title().get_fontweight() == "normal"
        shown = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
        assert all(a.x1 <= b.x0 for a, b in pairwise(shown))


def test_scaling_draws_every_point_of_a_power_law_as_a_line():
    x = np.array([1, 4, 16, 64])
    panels = {"K": {"up": (x, x**0.5), "down": (x, x**-0.5)}, "M": {"up": (x, 2 * x**0.5)}}
    figure = plots.scaling(panels, xlabel="count", ylabel="ratio")
    rendered(figure)
    legends: list[Any] = [axes.get_legend() for axes in figure.axes]
    assert [legend.get_title().get_text() for legend in legends] == ["K", "M"]
    for axes, curves in zip(figure.axes, panels.values(), strict=True):
        assert [line.get_label() for line in axes.lines] == list(curves)
        for line in axes.lines:
            places = axes.transData.transform(np.column_stack(line.get_data()))
            assert np.ptp(np.diff(places, axis=0), axis=0).max() < 1e-6
            assert axes.bbox.contains(*places[0])
            assert axes.bbox.contains(*places[-1])
    assert all(axes.get_ylabel() == "" for axes in figure.axes)  # one for all, beside them
    alone = plots.scaling(panels, xlabel="count", yscale="linear").axes
    assert [(axes.get_yscale(), axes.get_ylabel()) for axes in alone] == [
        ("linear", "K"),
        ("linear", "M"),
    ]


def test_latent_scatter_gives_each_class_its_points_and_its_name():
    z, classes = RNG.normal(size=(200, 2)), RNG.integers(0, 12, 200)
    names = [f"class {n}" for n in range(12)]
    figure = plots.latent_scatter(z, classes, names)
    (axes,) = figure.axes
    looks = set()
    for n, points in enumerate(axes.collections):
        assert points.get_label() == names[n]
        np.testing.assert_array_equal(points.get_offsets(), z[classes == n])
        outline = np.asarray(points.get_paths()[0].vertices)
        looks.add((*np.asarray(points.get_facecolor()).ravel(), len(outline)))
    assert len(looks) == 12
    assert axes.get_aspect() == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    assert plots.latent_scatter(z).legends == []
    with pytest.raises(VaeJaxError, match="latents"):
        plots.latent_scatter(RNG.normal(size=(5, 3)))


def test_save_writes_a_whole_png_and_nothing_else(tmp_path: Path):
    figure = plots.image_grid(images(4, 28, 28, 1))
    path = plots.save(figure, tmp_path / "figures" / "grid.png")
    assert list(path.parent.iterdir()) == [path]
    picture = opened(path)
    assert picture.format == "PNG"
    np.testing.assert_array_equal(np.asarray(picture)[..., :3], rendered(figure))
    assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def half(self: object, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    monkeypatch.setattr(Image.Image, "save", half)
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")
    with pytest.raises(VaeJaxError, match=r"grid.png cannot be written \(disk full\)"):
        plots.save(Figure(), path)
    with pytest.raises(VaeJaxError, match="disk full"):
        plots.save_images(images(1, 2, 2, 1), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_other_suffixes_are_refused_by_naming_the_supported_ones(tmp_path: Path):
    with pytest.raises(VaeJaxError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        plots.save_images(images(1, 2, 2, 1), tmp_path / "new" / "grid.gif")
    with pytest.raises(VaeJaxError, match=r"must end in \.png.*\.pdf, \.svg"):
        plots.save(Figure(), tmp_path / "new" / "grid.eps")
    with pytest.raises(VaeJaxError, match="PDF keeps every byte"):
        plots.save(Figure(), tmp_path / "new" / "grid.pdf", file_quality=90)
    with pytest.raises(VaeJaxError, match="give 1 to 2400"):
        plots.save(Figure(), tmp_path / "new" / "grid.png", dpi=0)
    assert list(tmp_path.iterdir()) == []


def a_chart() -> plots.Figure:
    return plots.learning_curves({"train": ([0, 1, 2], [3.0, 2.0, 1.0])}, ylabel="bound $L_5$")


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_text_stays_text(tmp_path: Path, suffix: str):
    """In SVG it is legible; a PDF embeds TrueType (Type 42), not outlines (Type 3)."""
    path = plots.save(a_chart(), str(tmp_path / f"curves.{suffix}"))
    content = path.read_bytes()
    if suffix == "svg":
        assert b">training step</" in content.replace(b" </", b"</")
    else:
        assert b"/Type0" in content
        assert b"/Type3" not in content
    again = plots.save(a_chart(), tmp_path / f"again.{suffix}")
    assert again.read_bytes() == content


def test_a_style_sheet_prevails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sheet = tmp_path / "paper.mplstyle"
    sheet.write_text(
        "axes.prop_cycle: cycler('color', ['ff0000'])\nfigure.figsize: 3, 2\nfont.size: 7\n"
    )
    with mpl.rc_context():
        plots.use_style(str(sheet), dpi=300, suffix="svg")
        figure = a_chart()
        assert figure.axes[0].lines[0].get_color() == "#ff0000"
        assert figure.get_supxlabel() == "training step"
        assert figure.texts[0].get_fontsize() == 7
        assert plots.save(figure, tmp_path / "curves").name == "curves.svg"
        assert opened(plots.save(figure, tmp_path / "curves.png")).size == (900, 600)
        assert opened(plots.save(figure, tmp_path / "curves.png", dpi=100)).size == (300, 200)
    assert plots.save(a_chart(), tmp_path / "curves").name == "curves.png"
    assert plots.save(a_chart(), tmp_path / "beta_0.5").name == "beta_0.5.png"
    with pytest.raises(VaeJaxError, match=r"nothing.mplstyle is no style sheet.*ggplot"):
        plots.use_style("nothing.mplstyle")


def test_a_figure_shows_itself_in_a_notebook():
    for figure in (a_chart(), plots.image_grid(images(4, 28, 28, 1))):
        shown_by_jupyter: Any = figure
        assert shown_by_jupyter._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
