"""A page about runs, in one file: no scripts, no requests, figures as data URIs."""

import base64
import datetime
import html
import io
import shlex
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from vae_jax import plots, storage
from vae_jax.errors import VaeJaxError, legible
from vae_jax.evaluation.evaluate import Evaluation
from vae_jax.progress import say
from vae_jax.report.facts import OF_MODEL, facts, short_names
from vae_jax.report.tables import Row, quality_rows, rates_of, recorded, rows_of
from vae_jax.run import Run, RunFolder, load_run
from vae_jax.standard_figures import plot_standard_figures, standard_figures

NOTHING = "none"
TEMPLATE = Path(__file__).with_name("page.html")
CURVES = {
    "Loss": "Without weights on its parts, in training and on validation images.",
    "Rate": "The rate of training images, estimated from samples.",
    "Distortion": "The cost of a training image given its latents.",
}
LOGGED = ("neg_elbo", "distortion", "kl_sampled", "valid_neg_elbo", "valid_distortion")
CHART_WIDTH = 5.0  # inches, so that letters can be read on a phone
NAME_IN_CHART = 14  # letters
PICTURES = {
    "samples": ("Samples", "Decoded draws from the prior."),
    "reconstructions": ("Reconstructions", "Images and their reconstructions."),
    "traversals": ("Traversals", "One latent at a time moved from -3 to 3, the most active first."),
    "interpolations": ("Interpolations", "The way from one image to another through the latents."),
    "restyled": ("Restyled", "Images of one class, encoded with it and decoded with others."),
    "latents": ("Latents", "The posterior means of images."),
    "manifold": ("Manifold", "Decoded latents over the whole plane."),
}
ALWAYS = ("samples", "reconstructions")
"""The pictures that every model has: if one is missing, all missing ones are drawn."""
REDRAWN = ("learning_curves", "rate_and_distortion")
"""Figures that a page draws for all its runs together."""


@dataclass(frozen=True)
class Reported:
    """The content of a page about one run.

    Attributes:
        name: its name on the page.
        folder: its folder.
        facts: the facts about it, each under its name.
        evaluations: its evaluations, the oldest first.
        curves: the metrics in `LOGGED`, steps `[T]` and values `[T, S]`.
        figures: PNG files by name.
        notes: sentences on failures to read or draw.
    """

    name: str
    folder: RunFolder
    facts: dict[str, str]
    evaluations: list[Evaluation]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    figures: dict[str, bytes]
    notes: list[str]


@dataclass(frozen=True)
class Report:
    """A page about runs, which shows itself as the value of a notebook's cell.

    Attributes:
        path: its file.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        text = self.path.read_text(encoding="utf-8")
        own_links = '<head><base href="about:srcdoc">'  # else they would open the notebook in it
        whole = html.escape(text.replace("<head>", own_links, 1))
        return f'<iframe srcdoc="{whole}" style="border: 0; width: 100%; height: 40em"></iframe>'


def report_on(
    runs: Run | str | Path | Sequence[Run | str | Path],
    out: str | Path | None = None,
    *,
    evaluation: Evaluation | None = None,
    trust: bool = False,
) -> Report:
    """Write one page about runs, side by side.

    Without `out` the standard figures of a run are drawn into its folder first. With it the figures
    in a run's folder are used as they are; if one that every model has is missing, all missing ones
    are drawn, for the page alone.

    Args:
        runs: a run or several, each as `train` and `load_run` return it, or its folder.
        out: an .html file; for a single run, None takes figures/report.html in its folder.
        evaluation: for a single run, the result of `evaluate`; results of the command `vae-jax
            evaluate` are always on the page.
        trust: whether to run the code in a run folder, to draw, even if another account wrote it.

    Returns:
        The page.

    Raises:
        VaeJaxError: a folder is no run folder, or the page cannot be written.

    Example:
        >>> run = vj.train(experiment, "runs/first")
        >>> vj.report_on(run, evaluation=vj.evaluate(run))  # runs/first/figures/report.html
    """
    each = [runs] if isinstance(runs, Run | str | Path) else [*runs]
    if not each:
        raise VaeJaxError("There is no run to report on: give one at least.")
    if evaluation is not None and len(each) > 1:
        raise VaeJaxError(
            f"One evaluation was given for {len(each)} runs: leave it out, and record those of "
            "all by `vae-jax evaluate RUN`."
        )
    folders = [run.folder if isinstance(run, Run) else RunFolder(Path(run)) for run in each]
    if out is None:
        if len(each) > 1:
            raise VaeJaxError(
                f"There is no file for a page about {len(each)} runs: give out='report.html'."
            )
        run = each[0] if isinstance(each[0], Run) else load_run(each[0], trust=trust)
        plot_standard_figures(run)
        out = run.folder.figures / "report.html"
    page_file = Path(out)
    if page_file.suffix.lower() not in (".html", ".htm"):
        raise VaeJaxError(f"out is {out}: it must end in .html.")
    names = short_names([folder.path for folder in folders])
    evaluations = [] if evaluation is None else [evaluation]
    reported = [
        _read(folder, name, run if isinstance(run, Run) else None, trust, evaluations)
        for folder, name, run in zip(folders, names, each, strict=True)
    ]
    with storage.writing(page_file), storage.whole_file(page_file) as partial:
        partial.write_text(page(reported), encoding="utf-8")
    return Report(page_file)


def _read(
    folder: RunFolder, name: str, run: Run | None, trust: bool, evaluations: list[Evaluation]
) -> Reported:
    notes = list[str]()
    about = facts(folder)
    try:
        evaluations = [*recorded(folder), *evaluations]
    except VaeJaxError as error:
        notes.append(str(error))
    figures = {file.stem: file.read_bytes() for file in sorted(folder.figures.glob("*.png"))}
    figures = {stem: content for stem, content in figures.items() if _is_png(content)}
    if not {*ALWAYS} <= figures.keys():
        try:
            run = load_run(folder.path, trust=trust) if run is None else run
            figures |= _drawn(run, {*figures})
        except VaeJaxError as error:
            notes.append(f"Figures are missing. {error}")
    curves = dict[str, tuple[np.ndarray, np.ndarray]]()
    try:
        curves = {name: folder.metric(name) for name in LOGGED}
    except ValueError as error:
        notes.append(f"{folder.metrics} is damaged ({error}): there are no curves.")
    for note in notes:
        say(note)
    return Reported(name, folder, about, evaluations, curves, figures, notes)


def _is_png(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def _drawn(run: Run, there: Set[str]) -> dict[str, bytes]:
    """The standard figures of a run that are missing."""
    wanted = standard_figures(run).items()
    return {name: plots.png(draw()) for name, draw in wanted if name not in there | {*REDRAWN}}


def page(runs: Sequence[Reported]) -> str:
    """The HTML of a page about `runs`."""
    sections = {
        "What was run": _what_was_run(runs),
        "Evaluation": _evaluation(runs),
        "Curves": _curves(runs),
        "Pictures": _pictures(runs),
        "Other figures": _others(runs),
        "Source": _sources(runs),
    }
    sections = {title: body for title, body in sections.items() if body}
    anchors = {title: title.lower().replace(" ", "-") for title in sections}
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_text(", ".join(run.name for run in runs)),
        subtitle=f"Written by vae-jax on {now}. Images are of the first seed.",
        links="\n".join(f'<a href="#{anchors[each]}">{each}</a>' for each in sections),
        sections="\n".join(
            f'<section id="{anchors[title]}">\n<h2>{title}</h2>\n{body}\n</section>'
            for title, body in sections.items()
        ),
    )


def _text(text: object) -> str:
    """The text, escaped for a browser."""
    lines = str(text).expandtabs(4).splitlines()
    return html.escape("\n".join(map(legible, lines)))


def _table(
    runs: Sequence[str], rows: Iterable[tuple[str, str, Sequence[str]]], kind: str = ""
) -> str:
    """A table with a column for each run; a row is a label, its meaning and its cells, all escaped.

    Cells of a row are merged if all are the same, except in a table with a `kind`.
    """
    body: list[str] = []
    for label, meaning, cells in rows:
        small = f"<small>{meaning}</small>" if meaning else ""
        if len({*cells}) == 1 and not kind:
            across = f'<td colspan="{len(runs)}">{cells[0]}</td>'
        else:
            pairs = zip(runs, cells, strict=True)
            across = "".join(f'<td data-run="{run}">{cell}</td>' for run, cell in pairs)
        body.append(f'<tr><th scope="row">{label}{small}</th>{across}</tr>')
    heads = "".join(f'<th scope="col">{run}</th>' for run in runs)
    head = f"<thead><tr><td></td>{heads}</tr></thead>" if len(runs) > 1 else ""
    table = f'<table class="{kind}">{head}<tbody>{"".join(body)}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _what_was_run(runs: Sequence[Reported]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.facts)
    rows: list[tuple[str, str, list[str]]] = []
    for name in names:
        cells = [_text(run.facts.get(name, NOTHING)) for run in runs]
        if name == "command":
            cells = [f"<code>{cell}</code>" for cell in cells]
        rows.append((_text(name.removeprefix(OF_MODEL)), "", cells))
    rows.sort(key=lambda row: len(runs) > 1 and len({*row[2]}) == 1)  # differences first
    notes = "".join(f"<p>{_text(note)}</p>" for run in runs for note in run.notes)
    return notes + _table([_text(run.name) for run in runs], rows)


def _evaluation(runs: Sequence[Reported]) -> str:
    """A table for each setting, so that numbers side by side can be compared."""
    groups: dict[tuple[str, str], dict[tuple[str, str], Evaluation]] = {}
    for run in runs:
        for each in run.evaluations:
            setting = f"{each.num_images:,} images, K = {each.num_samples:,}"
            setting += "" if each.ais is None else f", {each.ais}"
            group = groups.setdefault((setting, each.data), {})
            group.pop((run.name, each.checkpoint), None)  # the last one counts
            group[run.name, each.checkpoint] = each
    tables = [
        f"<h3>{_text(setting)}</h3><p>{_text(data)}.</p>" + _numbers(group) + _rates(group)
        for (setting, data), group in groups.items()
    ]
    missing = [
        f"<p>{_text(run.name)} was not evaluated yet: "
        f"<code>{_text(shlex.join(['vae-jax', 'evaluate', str(run.folder.path)]))}</code></p>"
        for run in runs
        if not run.evaluations
    ]
    about = "<p>Means over images; ± is one standard error over images, or the standard deviation "
    about += "over several seeds.</p>"
    return (about if tables else "") + "".join(tables + missing)


def _numbers(group: Mapping[tuple[str, str], Evaluation]) -> str:
    """The table of evaluations that have one setting."""
    columns: list[dict[str, Row]] = []
    for each in group.values():
        quality = [] if each.quality is None else quality_rows(each.quality)
        columns.append({f"{row.label} {row.unit}": row for row in [*rows_of(each), *quality]})
    known = {key: row for column in columns for key, row in column.items()}
    rows: list[tuple[str, str, list[str]]] = [
        ("checkpoint", "", [_text(checkpoint) for _, checkpoint in group])
    ]
    for key, row in known.items():
        found = [column.get(key) for column in columns]
        cells = [NOTHING if each is None else f"{each.value} {each.unit}" for each in found]
        rows.append((_text(row.label), _text(row.meaning), [*map(_text, cells)]))
    return _table([_text(name) for name, _ in group], rows, "numbers")


def _rates(group: Mapping[tuple[str, str], Evaluation]) -> str:
    """The rates of several layers as bars on one scale."""
    layers = {name: found for name, each in group.items() if (found := rates_of(each))}
    if not layers:
        return ""
    largest = max(max(np.nan_to_num(found).max(), 1e-9) for found in layers.values())
    figures: list[str] = []
    for (name, _), found in layers.items():
        bars = "".join(
            f'<dt>z<sub>{layer}</sub></dt><dd class="bar" '
            f'style="width:{max(0.0, float(np.nan_to_num(rate))) / largest:.2%}"></dd>'
            f'<dd class="nats">{rate:.2f} nats</dd>'
            for layer, rate in enumerate(found, start=1)
        )
        figures.append(
            f'<figure><figcaption>{_text(name)}</figcaption><dl class="rates">{bars}</dl></figure>'
        )
    about = "<p>The nats that each layer of latents carries; z<sub>1</sub> is next to the image, "
    about += "and a layer near 0 is not used.</p>"
    return f'<h3>Rate of each layer</h3>{about}<div class="grid">{"".join(figures)}</div>'


def _curves(runs: Sequence[Reported]) -> str:
    """The loss of all runs in one chart, their rates and their distortions in others."""
    plain = len(runs) == 1 or all(
        run.name.isascii() and len(run.name) <= NAME_IN_CHART and not plots.SPLIT.search(run.name)
        for run in runs
    )
    names = [run.name if plain else f"run {number}" for number, run in enumerate(runs, start=1)]
    explained = zip(names, runs, strict=True)
    caption = "" if plain else "; ".join(f"{name} is {run.name}" for name, run in explained)
    charts: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {title: {} for title in CURVES}
    bounded = False
    for name, run in zip(names, runs, strict=True):
        of = plots.plain(name) if len(runs) > 1 else ""
        logged = {metric: curve for metric, curve in run.curves.items() if len(curve[0])}
        has_elbo = "valid_neg_elbo" in logged
        bounded |= has_elbo
        quantity = "neg_elbo" if has_elbo else "distortion"
        for metric, title, label in (
            (quantity, "Loss", f"train {of}".strip()),
            (f"valid_{quantity}", "Loss", f"valid {of}".strip()),
            ("kl_sampled", "Rate", of or "rate"),
            ("distortion", "Distortion", of or "distortion"),
        ):
            if metric in logged:
                charts[title][label] = logged[metric]
    figures: list[str] = []
    for title, curves in charts.items():
        if curves:
            quantity = "negative ELBO" if title == "Loss" and bounded else "distortion"
            quantity = "rate" if title == "Rate" else quantity
            figure = plots.learning_curves(curves, ylabel=f"{quantity} [nats per image]")
            figure.set_size_inches(CHART_WIDTH, 3.2 + 0.11 * len(curves))
            figures.append(
                f"<div><h3>{title}</h3><p>{CURVES[title]}</p>"
                + _figure(plots.png(figure), caption, f"{title} over training steps")
                + "</div>"
            )
    return f'<div class="grid charts">{"".join(figures)}</div>' if figures else ""


def _pictures(runs: Sequence[Reported]) -> str:
    """A block for each kind of picture: one run's blocks in a grid, or in each block all runs."""
    blocks: list[str] = []
    for kind, (title, meaning) in PICTURES.items():
        shown = [
            _figure(run.figures[kind], run.name if len(runs) > 1 else "", f"{title} of {run.name}")
            for run in runs
            if kind in run.figures
        ]
        if shown:
            grid = shown[0] if len(runs) == 1 else f'<div class="grid">{"".join(shown)}</div>'
            blocks.append(f"<div><h3>{title}</h3><p>{meaning}</p>{grid}</div>")
    if not blocks:
        return ""
    return f'<div class="grid">{"".join(blocks)}</div>' if len(runs) == 1 else "".join(blocks)


def _others(runs: Sequence[Reported]) -> str:
    """The figures in the folders that are not standard ones."""
    shown = [
        _figure(content, f"{run.name}: {name}.png", f"{name}.png of {run.name}")
        for run in runs
        for name, content in run.figures.items()
        if name not in (*PICTURES, *REDRAWN)
    ]
    return f'<div class="grid">{"".join(shown)}</div>' if shown else ""


def _figure(content: bytes, caption: str, alt: str) -> str:
    uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    above = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f'<figure>{above}<img src="{uri}" alt="{_text(alt)}"></figure>'


def _sources(runs: Sequence[Reported]) -> str:
    """The files that made the experiments, folded."""
    found: dict[str, list[str]] = {}
    for run in runs:
        source = run.folder.read_record()["source"]
        if source is not None:
            found.setdefault(source, []).append(run.name)
    return "".join(
        f"<details><summary>The experiment of {_text(', '.join(names))}</summary>"
        f"<pre>{_text(source)}</pre></details>"
        for source, names in found.items()
    )
