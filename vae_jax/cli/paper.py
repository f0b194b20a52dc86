"""A paper's figures, and its table by one command, which trains and evaluates missing cells."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vae_jax.budget import Budget, within
from vae_jax.cli.commands import print_paths
from vae_jax.cli.flags import DataOptions, FigureOptions, check_counts, parse
from vae_jax.errors import VaeJaxError
from vae_jax.progress import say


@dataclass(frozen=True)
class PaperOptions:
    """Options of `table FILE` besides the experiment's own arguments, which hold for all cells."""

    workdir: Path
    """The folder of the cells' run folders."""
    quick: bool = False
    """The small form of the table, which shows the order of its rows."""
    budget: str | None = None
    """The limit of training for now: 40epochs of each cell, or 1.5h in all (None: no limit)."""
    train: bool = True
    """Train and evaluate missing cells (--no-train: show the others, and say what these need)."""
    seed: int = 0
    """The seed of the first replica of each cell."""
    seeds: int = 1
    """The number of replicas of each cell."""
    num_samples: int | None = None
    """The number of samples K of the bound on the NLL (None: the paper's, or 100 with --quick)."""
    num_images: int | None = None
    """The number of test images, evenly spaced over their split (None: all, or the file's)."""
    out: Path | None = None
    """Also write the table to a .md, .tex (booktabs) or .csv file."""
    results: Path | None = None
    """Also put the rows, with their commands and hardware, into a document of results."""


@dataclass(frozen=True)
class Asked:
    """The arguments of `evaluate` for each cell."""

    num_samples: int
    num_images: int | None = None
    ais: Any = None  # `vae_jax.AIS`, which --help does not wait for
    gaps: bool = False


def figures_of_file_with_flags(name: str, flags: Sequence[str]) -> None:
    """Run `vae-jax figures FILE ...`, with the `flags` of the function `figures` in `name`.

    Raises:
        VaeJaxError: the file defines no `figures`, or as in that function.
    """
    from vae_jax.experiment import find_file, read_module

    file = find_file(name)
    _, module = read_module(file)
    if not hasattr(module, "figures"):
        raise VaeJaxError(f"{file} has no function `figures(*, ...) -> list[Path]` to draw with.")
    options = DataOptions(), FigureOptions()
    data, look, arguments = parse(module.figures, f"figures {name}", flags, *options)
    budget = Budget.of(look.budget)
    data.use()
    look.use()
    with within(budget):
        print_paths(module.figures(**arguments))


def table_of_file_with_flags(name: str, flags: Sequence[str]) -> None:
    """Run `vae-jax table FILE ...`, with the `flags` of the function `experiment` in `name`.

    Raises:
        VaeJaxError: the file has no function `table`, a flag is invalid, or as in `train_grid`.
    """
    from vae_jax.cpu import cores
    from vae_jax.experiment import find_file, read_module

    file = find_file(name)
    _, module = read_module(file)
    if not hasattr(module, "table"):
        raise VaeJaxError(
            f"{file} has no function `table(*, quick=False)` that returns the arguments of each "
            "cell: give run folders, or a file of a paper's table."
        )
    defaults = PaperOptions(workdir=Path("runs") / file.stem), DataOptions()

    def parsed(cell: Mapping[str, object]) -> list[Any]:
        made_by, command = module.experiment, f"table {name}"
        return parse(made_by, command, flags, *defaults, instead=cell)

    options, data, _ = parsed({})
    counts = {"seeds": options.seeds, "num_samples": options.num_samples or 1}
    check_counts(**counts)
    budget = Budget.of(options.budget)
    data.use()
    cores.give_replicas_cores(options.seeds)

    def arguments(cell: Mapping[str, object]) -> Mapping[str, object]:
        """The arguments of a cell after the flags; `start` may hold those of another cell."""
        start = cell.get("start")
        named = {**cell, "start": "another cell"} if isinstance(start, Mapping) else cell
        made = {name: value for name, value in parsed(named)[-1].items() if value is not None}
        if isinstance(start, Mapping) and made.get("start") == named["start"]:
            made["start"] = arguments(start)
        return made

    every = [arguments(cell) for cell in module.table(quick=options.quick)]
    different = {repr(cell): cell for cell in every}  # a flag may have made some equal
    cells = with_starts(list(different.values()))
    asked = Asked(100 if options.quick else 5000)
    if hasattr(module, "evaluation"):
        asked = replace(asked, **module.evaluation(quick=options.quick))
    asked = replace(
        asked,
        num_samples=options.num_samples or asked.num_samples,
        num_images=options.num_images or asked.num_images,
    )
    write_table(str(file), module.__doc__ or "", cells, asked, options, budget)


def with_starts(cells: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Cells that begin with another cell's run, given by its arguments, get the name of its folder.

    Raises:
        VaeJaxError: the other cell is not among `cells`.
    """
    from vae_jax.grid import names_of

    names = names_of(cells)

    def with_start(cell: Mapping[str, object]) -> Mapping[str, object]:
        start = cell.get("start")
        if not isinstance(start, Mapping):
            return cell
        if start not in cells:
            raise VaeJaxError(
                f"A cell begins with {dict(start)}, which the flags leave out of the table: leave "
                "out a flag."
            )
        return {**cell, "start": names[cells.index(start)]}

    return [with_start(cell) for cell in cells]


def write_table(
    file: str,
    about: str,
    cells: Sequence[Mapping[str, object]],
    asked: Asked,
    options: PaperOptions,
    budget: Budget,
) -> None:
    """Train and evaluate the missing cells of a table, and show it.

    Args:
        file: the experiment file.
        about: its docstring.
        cells: the arguments of each cell.
        asked: the arguments of each evaluation.
        options: the command's options.
        budget: the limit of training for now.

    Raises:
        VaeJaxError: nothing has been evaluated, or as in `train_grid`.
    """
    from vae_jax import report
    from vae_jax.evaluation.table import of_folders
    from vae_jax.grid import names_of
    from vae_jax.report.results import row_of, write_rows
    from vae_jax.run import RunFolder

    folders = [options.workdir / name for name in names_of(cells)]
    if options.train:
        train_cells(file, cells, options, budget)
        for folder in folders:
            evaluate_cell(folder, asked)
    there = [folder for folder in folders if RunFolder(folder).evaluation.exists()]
    for folder, cell in zip(folders, cells, strict=True):
        if sentence := missing(folder):
            begun = RunFolder(folder).record.exists()
            say(sentence if begun else f"{sentence} {need(file, cell)}".rstrip())
    if not there:
        raise VaeJaxError(
            f"No cell of {file} in {options.workdir} is evaluated: leave --no-train out."
        )
    made = of_folders(there)
    report.show_numbers(made)
    if options.out is not None:
        print(made.write(options.out))
    if options.results is not None:
        title = about.partition("\n")[0].rstrip(".")
        command = f"{file} --quick" if options.quick else file
        print(write_rows(options.results, command, title, [row_of(folder) for folder in there]))


def need(file: str, cell: Mapping[str, object]) -> str:
    """What the training of a cell takes, in a sentence; empty without the cell's data."""
    from vae_jax.experiment import Origin, read_module

    source, _ = read_module(Path(file))
    try:
        experiment = Origin(file, source, dict(cell)).make()
    except VaeJaxError:
        return ""
    steps, size = experiment.num_steps, experiment.batch_size
    epochs = steps * size / len(experiment.data.train)
    return f"It needs {steps:,} steps of {size} images, {epochs:,.6g} epochs."


def train_cells(
    file: str, cells: Sequence[Mapping[str, object]], options: PaperOptions, budget: Budget
) -> None:
    """Train the programs of a table one after the other, each up to its budget.

    Args:
        file: the experiment file.
        cells: the arguments of each cell, by the names of their folders.
        options: the command's options.
        budget: the limit of training for now.
    """
    from vae_jax.experiment import Origin, read_module
    from vae_jax.grid import chosen, train_grid, unfinished_programs
    from vae_jax.run import RunFolder
    from vae_jax.run.start import first_run

    source, _ = read_module(Path(file))
    where, (seed, num_seeds) = options.workdir, (options.seed, options.seeds)
    by_name = chosen(cells, ())
    for names in unfinished_programs(file, where, cells, seed, num_seeds):
        experiment = Origin(file, source, dict(by_name[names[0]])).make()
        epochs = experiment.batch_size / len(experiment.data.train)
        steps = [last_step(where / name) for name in names]
        first = first_run(experiment, RunFolder(where / names[0]))
        if first is not None and missing(first.path, evaluated=False):
            say(f"{', '.join(names)} begins with {first.path}, which is not finished.")
            continue
        if not budget.is_spent(epochs * min(steps)):
            with within(budget):
                train_grid(file, where, cells, seed=seed, num_seeds=num_seeds, only=names)


def last_step(folder: Path) -> int:
    """The last step that the run in `folder` has logged, or 0."""
    from vae_jax.run import RunFolder

    return max((line["step"] for line in RunFolder(folder).read_metrics()), default=0)


def evaluate_cell(folder: Path, asked: Asked) -> None:
    """Evaluate the run in `folder` as `asked`, unless that is its last evaluation."""
    from vae_jax import report
    from vae_jax.evaluation.evaluate import evaluate
    from vae_jax.run import RunFolder, load_run

    if not (RunFolder(folder).checkpoints).exists():
        return
    run = load_run(folder)
    run = load_run(folder, "best") if run.experiment.patience is not None else run
    numbers = asked.num_samples, asked.num_images or len(run.experiment.data.test)
    for last in report.recorded(run.folder)[-1:]:
        of_this = last.checkpoint.endswith(f"step {int(run.state.step[0])}")
        has_gaps = "amortization_gap" in last.mean or not asked.gaps
        has_all = has_gaps and asked.ais in (None, last.ais)
        if of_this and has_all and (last.num_samples, last.num_images) == numbers:
            return
    start = time.perf_counter()
    found = evaluate(
        run,
        num_samples=asked.num_samples,
        num_images=asked.num_images,
        ais=asked.ais,
        gaps=asked.gaps,
    )
    report.record(run, found, time.perf_counter() - start)


def missing(folder: Path, evaluated: bool = True) -> str | None:
    """The part that a cell in `folder` lacks, in a sentence: its end or, if it is to be
    `evaluated`, its evaluation; None if it is complete."""
    from vae_jax.run import RunFolder

    run = RunFolder(folder)
    if not run.record.exists():
        return f"{folder} is missing: it has not begun."
    record = run.read_record()
    if not run.is_finished(record):
        return f"{folder} is not finished: step {last_step(folder):,} of {record['num_steps']:,}."
    return f"{folder} is not evaluated." if evaluated and not run.evaluation.exists() else None
