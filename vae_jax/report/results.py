"""Rows of a document of results: the records of a run folder beside published numbers."""

import ast
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vae_jax import storage
from vae_jax.errors import VaeJaxError
from vae_jax.evaluation.table import published
from vae_jax.report.facts import training_words
from vae_jax.run import Record, RunFolder

HEADER = (
    "| run | published | ours: NLL ± s.e., or ± sd over seeds (K, test images) "
    "| -ELBO = rate + distortion | "
    "active units | training | evaluation |\n|---|---|---|---|---|---|---|"
)
END = "<!-- end of table -->"
GAPS = "approximation_gap", "amortization_gap"


def per_seed(values: float | list[float], digits: int = 2) -> str:
    """The values as text with `digits` decimals: that of one seed, or mean ± sd over the seeds."""
    if not isinstance(values, list):
        return f"{values:.{digits}f}"
    mean, sd = np.mean(values), np.std(values, ddof=1)
    return f"{mean:.{digits}f} ± {sd:.{digits}f} (sd of {len(values)} seeds)"


def row_of(path: Path, trust: bool = False) -> str:
    """A line of the table, for the last evaluation of a run of an experiment file.

    Args:
        path: the run folder.
        trust: whether to run its experiment file, as in `evaluation.table.read`.

    Raises:
        VaeJaxError: the run was not evaluated, was trained from Python, or has damaged records.
    """
    folder = RunFolder(path)
    record = folder.read_record()
    if record["file"] is None:
        raise VaeJaxError(
            f"{path} was trained from Python, and no command trains it again: put its experiment "
            "into a file."
        )
    if not folder.evaluation.exists():
        raise VaeJaxError(f"{path} was not evaluated yet: vae-jax evaluate {path}.")
    evaluation = storage.read_json(folder.evaluation, list)[-1]
    try:
        cells = [
            _command(record),
            published(folder, trust) or "no number",
            _nll(evaluation, record),
            _neg_elbo(evaluation["mean"]),
            " + ".join(per_seed(units, 0) for units in evaluation["active_units"]),
            _training(folder, record, evaluation),
            f"`{evaluation['command']}`, {evaluation['checkpoint']}, "
            f"{evaluation['seconds']:.0f} s, {evaluation['date'][:10]}",
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise VaeJaxError(
            f"{folder.evaluation} is damaged ({error!r}): evaluate the run again."
        ) from error
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _command(record: Record) -> str:
    """The command that trains the run, with all its flags but the folder."""
    seeds = ["--seed", str(record["seed"]), "--seeds", str(record["num_seeds"])]
    return f"`{shlex.join([*training_words(record), *seeds])}`"


def _nll(evaluation: Record, record: Record) -> str:
    """The NLL, in bits/dim too for images of several levels, and its bound by annealing."""

    def value(name: str) -> str:
        nll, error = evaluation["mean"][name], evaluation["standard_error"][name]
        return f"{per_seed(nll) if isinstance(nll, list) else f'{nll:.2f} ± {error:.2f}'} nats"

    shown = value("nll")
    if record["data"]["protocol"]["support"] != "binary" and evaluation["bits_per_dim"] is not None:
        shown += f", {per_seed(evaluation['bits_per_dim'], 3)} bits/dim"
    shown += f" (K = {evaluation['num_samples']:,}, {evaluation['num_images']:,})"
    if "nll_ais" in evaluation["mean"]:
        annealed = evaluation["ais"]
        shown += f"; annealed {value('nll_ais')} (T = {annealed['num_temperatures']:,})"
    return shown


def _neg_elbo(means: Record) -> str:
    """The negative ELBO, its two parts and, if they were measured, the two gaps below it."""
    shown = per_seed(means["neg_elbo"])
    rate = "kl" if "kl" in means else "kl_sampled"
    if rate in means:
        shown += " = " + " + ".join(f"{np.mean(means[n]):.2f}" for n in (rate, "distortion"))
    if GAPS[0] in means:
        shown += "; gaps: " + ", ".join(
            f"{name.partition('_')[0]} {per_seed(means[name])}" for name in GAPS
        )
    return shown


def _epochs(evaluation: Record, record: Record) -> str:
    """The passes over the training images up to the evaluated state, and its steps."""
    images = re.search(r"([\d,]+) training", evaluation.get("data", ""))
    step = re.search(r"step (\d+)", evaluation["checkpoint"])
    if images is None or step is None:
        return ""
    count, steps = int(images[1].replace(",", "")), int(step[1])
    return f"{steps * record['batch_size'] / count:,.6g} epochs ({steps:,} steps), "


def _training(folder: RunFolder, record: Record, evaluation: Record) -> str:
    """The progress of the run, its time if it ran without a break, its date and hardware."""
    hardware = f"{record['devices']['devices']} x {evaluation['devices']['kind']}"
    when = f"{_epochs(evaluation, record)}{record['started'][:10]}, {hardware}"
    summary = folder.read_summary() or {}
    if not folder.is_finished(record):
        return f"not finished, {record['num_steps']:,} steps in all, {when}"
    speed = summary.get("images_per_second")
    if speed is None:
        return f"time not recorded, {when}"
    images = summary["step"] * record["batch_size"] * record["num_seeds"]
    return f"{images / speed:,.0f} s at {speed:,.0f} images/s, {when}"


def write_rows(document: Path, file: str, title: str, rows: Sequence[str]) -> Path:
    """Put rows into the table of an experiment file in a document of results.

    Rows of the same training command are replaced; others, and the text around tables, stay. A
    document without that table gets it in the section of the title: the quick form at its end, the
    full form at its beginning.

    Args:
        document: a Markdown file.
        file: the experiment file, which names the table; with "--quick" after it, the quick form's.
        title: the heading of the section, which may be new.
        rows: lines of the table.

    Returns:
        The path of the document.

    Raises:
        VaeJaxError: the document cannot be read or written.
    """
    text = document.read_text(encoding="utf-8") if document.exists() else "# Results\n"
    begin = f"<!-- vae-jax table {file} -->"
    if begin not in text:
        heading, new = f"\n## {title}\n", f"\n{begin}\n{HEADER}\n{END}\n"
        before, _, rest = (text if heading in text else text + heading).partition(heading)
        section, following, others = rest.partition("\n## ")
        quick = f"{section}\n### Quick form\n{new}"
        section = quick if file.endswith(" --quick") else new + section
        text = before + heading + section + following + others
    before, _, rest = text.partition(begin)
    table, end, after = rest.partition(END)
    if not end:
        raise VaeJaxError(
            f"The table of {file} in {document} has no end: put a line {END} below its last row."
        )
    trained = {_run(row) for row in rows}
    kept = [row for row in table.strip().splitlines()[2:] if _run(row) not in trained]
    lines = "\n".join([begin, HEADER, *kept, *rows, END])
    with storage.writing(document), storage.whole_file(document) as partial:
        partial.write_text(before + lines + after, encoding="utf-8")
    return document


def write_runs(document: Path, runs: Sequence[Path], trust: bool = False) -> list[Path]:
    """Put a row for each run folder into the table of its experiment file, as `write_rows` does.

    Args:
        document: a Markdown file.
        runs: the run folders.
        trust: as in `row_of`.

    Returns:
        The document, in a list.

    Raises:
        VaeJaxError: as in `row_of` and `write_rows`.
    """
    by_file: dict[str, list[str]] = {}
    for path in runs:
        by_file.setdefault(str(RunFolder(path).read_record()["file"]), []).append(
            row_of(path, trust)
        )
    for file, rows in by_file.items():
        source = Path(file).read_text(encoding="utf-8") if Path(file).exists() else ""
        title = (ast.get_docstring(ast.parse(source)) or file).partition("\n")[0].rstrip(".")
        write_rows(document, file, title, rows)
    return [document]


def _run(row: str) -> str:
    """The first cell of a row."""
    return re.split(r"(?<!\\)\|", row)[1].strip()
