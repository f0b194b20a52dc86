"""Tables of the evaluations recorded in run folders: by runs, or one flag by another."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vae_jax import storage
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import load_module
from vae_jax.run import RunFolder

QUANTITIES = {
    "nll": "NLL",
    "neg_elbo": "-ELBO",
    "kl": "rate (exact KL)",
    "kl_sampled": "rate (sampled)",
    "distortion": "distortion",
    "approximation_gap": "approximation gap",
    "amortization_gap": "amortization gap",
    "bits_per_dim": "bits/dim",
    "active_units": "active units",
}


@dataclass(frozen=True)
class Number:
    """A measured number.

    Attributes:
        values: the values of the seeds, `[S]`.
        standard_error: for a single seed, the standard error over images; nan if there is none.
        decimals: the number of digits after the point.
    """

    values: np.ndarray
    standard_error: float = float("nan")
    decimals: int = 2

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """The standard deviation over seeds or, for a single one, the standard error."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else self.standard_error

    def __str__(self) -> str:
        shown = f"{self.mean:.{self.decimals}f}"
        return shown if np.isnan(self.error) else f"{shown} ± {self.error:.{self.decimals}f}"


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header.

    Attributes:
        header: the name of each column.
        rows: the cells.
        caption: the meaning of the numbers.
    """

    header: list[str]
    rows: list[list[Cell]]
    caption: str

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        escaped = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
        body = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
        return f"{body}\n\n{self.caption}\n"

    def latex(self) -> str:
        """The table as a `tabular` for LaTeX with booktabs."""
        lines = [
            " & ".join(_latex(str(cell)) for cell in line) for line in [self.header, *self.rows]
        ]
        numeric = [
            all(isinstance(cell, Number) for cell in column)
            for column in zip(*self.rows, strict=True)
        ]
        alignment = "".join("r" if right else "l" for right in numeric)
        body = " \\\\\n".join(lines[1:])
        return (
            f"% {self.caption}\n\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{lines[0]} \\\\\n"
            f"\\midrule\n{body} \\\\\n\\bottomrule\n\\end{{tabular}}\n"
        )

    def csv(self) -> str:
        """The table as comma-separated values; a number takes three columns: mean, error, seeds."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        of_numbers = [
            any(isinstance(cell, Number) for cell in column)
            for column in zip(*self.rows, strict=True)
        ]
        names: list[str] = []
        for name, numeric in zip(self.header, of_numbers, strict=True):
            names += [name, f"{name} error", f"{name} seeds"] if numeric else [name]
        writer.writerow(names)
        for row in self.rows:
            cells: list[object] = []
            for cell, numeric in zip(row, of_numbers, strict=True):
                if isinstance(cell, Number):
                    error = "" if np.isnan(cell.error) else cell.error
                    cells += [cell.mean, error, len(cell.values)]
                else:
                    cells += [cell, "", ""] if numeric else [cell]
            writer.writerow(cells)
        return out.getvalue()

    def write(self, path: Path) -> Path:
        """Write the table to `path` in the format of its suffix: .md, .tex or .csv.

        Returns:
            The path.

        Raises:
            VaeJaxError: the path has another suffix, or cannot be written.
        """
        formats = {".md": self.markdown, ".tex": self.latex, ".csv": self.csv}
        if path.suffix not in formats:
            raise VaeJaxError(f"{path} should end in {', '.join(formats)}.")
        with storage.writing(path), storage.whole_file(path) as partial:
            partial.write_text(formats[path.suffix](), encoding="utf-8")
        return path


def _latex(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    return text.replace("±", r"$\pm$").replace("~", r"\textasciitilde ").replace("^", r"\^{}")


@dataclass(frozen=True)
class Evaluated:
    """One or several run folders with equal flags, and their last evaluations.

    Attributes:
        flags: the experiment's name and arguments.
        numbers: the measured numbers by name.
        published: the published number, in words; empty if there is none.
        setting: K, the number of images, the data.
    """

    flags: Mapping[str, object]
    numbers: dict[str, Number]
    published: str
    setting: str


def published(folder: RunFolder, trust: bool = False) -> str:
    """The published number of the run in `folder`, from its file's function `published`.

    It is empty if there is no such function or number, or if it would run another account's code
    without `trust`.
    """
    record = folder.read_record()
    if record["source"] is None:
        return ""
    try:
        folder.check_trust(trust)
        module = load_module(record["file"], record["source"])
    except VaeJaxError:
        return ""
    try:
        return str(module.published(**record["experiment"]["arguments"]) or "")
    except (AttributeError, LookupError, TypeError):
        return ""


def read(path: Path, trust: bool = False) -> Evaluated:
    """A run folder's last evaluation.

    Args:
        path: the run folder.
        trust: whether to run its experiment file, which knows the published number, even if another
            account wrote it.

    Raises:
        VaeJaxError: the path is no run folder, or the run was not evaluated.
    """
    folder = RunFolder(path)
    record = folder.read_record()
    if not folder.evaluation.exists():
        raise VaeJaxError(f"{path} was not evaluated yet: vae-jax evaluate {path}.")
    found = storage.read_json(folder.evaluation, list)
    try:
        entry = found[-1]
        values = {
            name: np.atleast_1d(np.array(value, float)) for name, value in entry["mean"].items()
        }
        numbers = {
            name: Number(value, float(np.ravel(entry["standard_error"][name])[0]))
            for name, value in values.items()
        }
        units = [np.atleast_1d(np.array(layer, float)) for layer in entry["active_units"]]
        numbers["active_units"] = Number(np.sum(units, 0), decimals=0)
        if entry["bits_per_dim"] is not None:
            bits = np.atleast_1d(np.array(entry["bits_per_dim"], float))
            numbers["bits_per_dim"] = Number(bits, decimals=3)
        setting = f"K = {entry['num_samples']:,}, {entry['num_images']:,} images. {entry['data']}."
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise VaeJaxError(
            f"{folder.evaluation} is damaged ({error!r}): evaluate the run again."
        ) from error
    about = record["experiment"]
    file = "" if record["file"] is None else Path(record["file"]).stem
    arguments = {} if about is None else about["arguments"]
    return Evaluated({"experiment": file, **arguments}, numbers, published(folder, trust), setting)


def pooled(runs: Iterable[Evaluated]) -> list[Evaluated]:
    """The `runs`, those of equal flags and settings as one, with the seeds of all."""
    groups: dict[str, list[Evaluated]] = {}
    for run in runs:
        groups.setdefault(repr((run.flags, run.setting)), []).append(run)
    together = []
    for same in groups.values():
        first = same[0]
        numbers = {
            name: number
            if len(same) == 1
            else Number(
                np.concatenate([run.numbers[name].values for run in same]), decimals=number.decimals
            )
            for name, number in first.numbers.items()
            if all(name in run.numbers for run in same)
        }
        together.append(Evaluated(first.flags, numbers, first.published, first.setting))
    return together


def differing(runs: Sequence[Evaluated]) -> list[str]:
    """The flags in which `runs` differ."""
    names = dict.fromkeys(name for run in runs for name in run.flags)
    return [name for name in names if len({repr(run.flags.get(name)) for run in runs}) > 1]


def of_runs(runs: Sequence[Evaluated]) -> Table:
    """A row for each of `runs`: the flags in which they differ, the numbers, the published ones."""
    flags = differing(runs)
    shown = [name for name in QUANTITIES if any(name in run.numbers for run in runs)]
    settings = list(dict.fromkeys(run.setting for run in runs))
    header = [*map(_flag, flags), *(QUANTITIES[name] for name in shown)]
    rows: list[list[Cell]] = [
        [
            *(str(run.flags.get(name, "")) for name in flags),
            *(run.numbers.get(name, "") for name in shown),
        ]
        for run in runs
    ]
    if any(run.published for run in runs):
        header.append("published")
        for row, run in zip(rows, runs, strict=True):
            row.append(run.published)
    if len(settings) > 1:
        header.append("evaluated on")
        for row, run in zip(rows, runs, strict=True):
            row.append(run.setting)
    return Table(header, rows, _caption(runs, "Nats per image", settings))


def crossed(runs: Sequence[Evaluated], rows: str, columns: str, quantity: str = "nll") -> Table:
    """One quantity by two flags, with a second column for published numbers where there are any.

    Args:
        runs: pooled runs, which differ in flags.
        rows: the flag whose values are the rows.
        columns: the flag whose values are the columns.
        quantity: the quantity in the cells.

    Raises:
        VaeJaxError: no run has such a flag, or several runs belong in one cell.
    """
    known = dict.fromkeys(name for run in runs for name in run.flags)
    for name in (rows, columns):
        if name not in known:
            raise VaeJaxError(
                f"No run has a flag {_flag(name)}: choose one of {', '.join(map(_flag, known))}."
            )
    others = [name for name in differing(runs) if name not in (rows, columns)]
    if others:
        raise VaeJaxError(
            f"The runs differ in {', '.join(map(_flag, others))} too, so several belong in one "
            "cell: give fewer runs, or leave --rows and --columns out."
        )
    cells = {(str(run.flags.get(rows)), str(run.flags.get(columns))): run for run in runs}
    down = list(dict.fromkeys(row for row, _ in cells))
    across = list(dict.fromkeys(column for _, column in cells))
    header, body = [_flag(rows)], [list[Cell]([row]) for row in down]
    for column in across:
        those = [cells.get((row, column)) for row in down]
        header.append(f"{_flag(columns)} {column}")
        for line, run in zip(body, those, strict=True):
            line.append("" if run is None else run.numbers.get(quantity, ""))
        if any(run is not None and run.published for run in those):
            header.append(f"{header[-1]} published")
            for line, run in zip(body, those, strict=True):
                line.append("" if run is None else run.published)
    unit = {"bits_per_dim": "", "active_units": ""}.get(quantity, ", nats per image")
    settings = list(dict.fromkeys(run.setting for run in runs))
    caption = _caption(runs, f"{QUANTITIES[quantity]}{unit}", settings)
    if any(run.published for run in runs):
        caption += " Published numbers are of the quantity that the paper reports."
    return Table(header, body, caption)


def of_folders(
    runs: Iterable[Path],
    rows: str | None = None,
    columns: str | None = None,
    quantity: str = "nll",
    trust: bool = False,
) -> Table:
    """The last evaluations in run folders: as in `crossed` by two flags, or as in `of_runs`.

    Args:
        runs: the run folders.
        rows: the flag whose values are the rows, or None.
        columns: the flag whose values are the columns, or None.
        quantity: the quantity in the cells by two flags.
        trust: as in `read`.

    Raises:
        VaeJaxError: one of the flags is missing, or as in `read` and `crossed`.
    """
    if (rows is None) != (columns is None):
        raise VaeJaxError("--rows and --columns belong together: give both, or neither.")
    found = pooled(read(run, trust) for run in runs)
    if rows is None or columns is None:
        return of_runs(found)
    return crossed(found, rows.replace("-", "_"), columns.replace("-", "_"), quantity)


def runs_in(folder: Path) -> Table:
    """The run folders in `folder` and below it, with the progress of each.

    Raises:
        VaeJaxError: there are no run folders.
    """
    rows: list[list[Cell]] = []
    for record in sorted(folder.rglob("experiment.json")):
        run = RunFolder(record.parent)
        about = run.read_record()
        steps, metrics = about.get("num_steps"), run.read_metrics()
        step = max((line["step"] for line in metrics), default=0)
        done = "finished" if run.is_finished(about) else f"step {step:,} of {steps:,}"
        try:
            nll = read(run.path).numbers.get("nll", "")
        except VaeJaxError:
            nll = ""
        name = "" if about["file"] is None else Path(about["file"]).stem
        rows.append([str(run.path), name, str(about["num_seeds"]), done, nll])
    if not rows:
        raise VaeJaxError(f"There is no run folder in {folder}.")
    return Table(
        ["run", "experiment", "seeds", "training", "NLL"], rows, "NLL: the last evaluation."
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}" if name != "experiment" else name


def _caption(runs: Sequence[Evaluated], what: str, settings: Sequence[str]) -> str:
    counts = sorted({len(number.values) for run in runs for number in run.numbers.values()})
    seeds = {1: "± standard error over images, one seed"}.get(
        counts[-1], f"± sd over {' or '.join(map(str, counts))} seeds"
    )
    return f"{what}, {seeds}." + (f" {settings[0]}" if len(settings) == 1 else "")
