"""The differences between runs, and their numbers, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vae_jax.errors import VaeJaxError
from vae_jax.evaluation.table import QUANTITIES, Cell, Table
from vae_jax.identity import differences
from vae_jax.report.facts import facts, in_words, short_names
from vae_jax.report.tables import recorded, rows_of
from vae_jax.run import RunFolder

# Facts that are different in every run.
OF_ITS_OWN = {"folder", "command", "started", "time", "speed", "SHA-256 of the parameters"}
Column = Mapping[str, str]


def compared(runs: Sequence[Path]) -> Table:
    """A table with a column for each run: flags and parts in which they differ, then the numbers.

    Args:
        runs: the run folders.

    Raises:
        VaeJaxError: there are fewer than two, or one is no run folder.
    """
    if len({*runs}) < 2:
        raise VaeJaxError("There is nothing to compare: give at least two run folders.")
    folders = [RunFolder(path) for path in runs]
    parts = [{n: of for n, of in facts(f).items() if n not in OF_ITS_OWN} for f in folders]
    rows = [*_rows(_flags(folders)), *_rows([_differing(parts, each) for each in parts])]
    what = f"{len(rows)} differences" if rows else "No differences"
    rows += _rows([_numbers(folder) for folder in folders])
    missing = [str(folder.path) for folder in folders if not recorded(folder)]
    advice = f" Not evaluated yet: vae-jax evaluate {', '.join(missing)}." if missing else ""
    return Table(["", *short_names(runs)], rows, f"{what}; then numbers, ± as evaluated.{advice}")


def _rows(columns: Sequence[Column]) -> list[list[Cell]]:
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, "") for column in columns)] for name in names]


def _differing(columns: Sequence[Column], column: Column) -> Column:
    """The entries of a column that are not the same in all columns."""
    return {
        name: of for name, of in column.items() if any(each.get(name) != of for each in columns)
    }


def _flags(folders: Sequence[RunFolder]) -> list[Column]:
    """The flags in which runs of experiment files differ."""
    every = [(folder.read_record()["experiment"] or {}).get("arguments", {}) for folder in folders]
    names = dict.fromkeys(
        each.name.partition(".")[0] for one in every[1:] for each in differences(every[0], one)
    )
    return [
        {f"--{n.replace('_', '-')}": in_words(given[n]) for n in names if n in given}
        for given in every
    ]


def _numbers(folder: RunFolder) -> Column:
    """The scores of the last validation, and the last evaluation."""
    summary = folder.read_summary() or {}
    scores = {name: of for name, of in summary.items() if name.startswith("valid_")}
    found = {
        f"validation, {QUANTITIES.get(name.removeprefix('valid_'), name)}": _mean(of)
        for name, of in scores.items()
    }
    if evaluations := recorded(folder):
        for row in rows_of(evaluations[-1]):
            found[f"{row.label} [{row.unit}]" if row.unit else row.label] = row.value
    return found


def _mean(value: object) -> str:
    """The number, or the mean over those of the seeds."""
    numbers = value if isinstance(value, list) else [value]
    finite = [float(each) for each in numbers if isinstance(each, int | float)]
    return f"{sum(finite) / len(finite):.2f}" if finite else "not finite"
