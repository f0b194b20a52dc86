"""A grid of runs: those whose experiments differ in numbers alone are replicas of one program.

    runs/rd/beta=0.1/    the run folder of a cell, as if it had been trained alone
    runs/rd/beta=0.3/

Values that are only numbers to the training step, such as beta or a learning rate, are an axis of
its program beside the seeds; those that change shapes or code make separate programs, which are
trained one after the other. Neither kind is declared: `identity.programs` compares the steps.
"""

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import get_args, get_origin, get_type_hints
from urllib.parse import quote

import jax
import numpy as np

from vae_jax import parallel
from vae_jax.errors import VaeJaxError
from vae_jax.evaluation.bounds import make_validation
from vae_jax.evaluation.over_split import OfSeeds
from vae_jax.experiment import Experiment, Origin, read_module
from vae_jax.given import checked
from vae_jax.identity.programs import programs
from vae_jax.processes import agree
from vae_jax.progress import say
from vae_jax.run import Run, RunFolder, what_processes_share
from vae_jax.run.trackers import Callback
from vae_jax.run.training import Logged, Training, opened
from vae_jax.step import TrainState, empty_batch, init_state, train_step
from vae_jax.train import SharedStep, seeds_from, train_together

# The fields that runs must have in common to share the loop around the steps.
_OF_THE_LOOP = (
    *("num_steps", "batch_size", "accumulate", "shuffle"),
    *("log_every", "checkpoint_every", "validate_every", "start"),
)


@checked
def train_grid(
    file: str | Path,
    folder: str | Path,
    cells: Sequence[Mapping[str, object]],
    *,
    seed: int = 0,
    num_seeds: int = 1,
    streamed: bool | None = None,
    only: Collection[str] = (),
    callbacks: Callable[[Path], Callback] | None = None,
) -> dict[str, Run]:
    """Train the experiment of a file with several sets of arguments, or resume it.

    Each cell is the run that would be made alone, in a separate run folder. A cell that fails,
    because its loss is not finite, stops no other.

    Args:
        file: a Python file that defines `experiment(*, ...) -> Experiment`.
        folder: the folder of the cells' run folders.
        cells: the arguments of that function for each cell.
        seed: the seed of the first replica of each cell, as in `train`.
        num_seeds: the number of replicas of each cell, as in `train`.
        streamed: whether training images are read batch by batch, as in `train`.
        only: the names of the cells' folders to train; empty trains all.
        callbacks: a function from a run folder to the run's callback, as in `train`.

    Returns:
        The runs, by the names of their folders, finished unless a budget (`vae_jax.budget`) is
        spent; a cell that failed is left out, with a sentence on standard error.

    Raises:
        VaeJaxError: the file defines no experiment, its function does not take a cell's arguments,
            the folder is that of a single run, or as in `train`.
        Interrupted: SIGTERM or SIGINT came; the states were saved.

    Example:
        >>> train_grid("beta_vae.py", "runs/beta", [{"beta": beta} for beta in (0.1, 1.0, 10.0)])
    """
    seed, num_seeds = int(seed), int(num_seeds)  # JSON cannot encode NumPy's integers
    seeds, path = seeds_from(seed, num_seeds), Path(folder)
    parallel.check_devices()
    if is_run(path):
        raise VaeJaxError(f"{path} is a single run, not a grid: choose another --workdir.")
    source, _ = read_module(Path(file))
    cells_by_name = chosen(cells, only)
    names = list(cells_by_name)
    origins = [Origin(str(file), source, dict(each)) for each in cells_by_name.values()]
    experiments = [origin.make() for origin in origins]
    folders = [RunFolder(path / name) for name in names]
    for run_folder, experiment, origin in zip(folders, experiments, origins, strict=True):
        if parallel.num_processes() > 1:
            agree(what_processes_share(experiment, seed, num_seeds, origin))
        run_folder.claim(experiment, seed, num_seeds, origin)
    parallel.max_over_processes(0)  # wait until the folders are claimed
    called = [callbacks and callbacks(run_folder.path) for run_folder in folders]
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(
                opened(experiment, run_folder, seeds, origin, begin, validate, callback)
            )
            for run_folder, experiment, origin, begin, validate, callback in zip(
                folders,
                experiments,
                origins,
                _initial_states(experiments, seeds),
                _validations(experiments),
                called,
                strict=True,
            )
        ]
        unfinished = [run for run in runs if not run.finished]
        say(f"{len(runs) - len(unfinished)} of the {len(runs)} cells of {path} are finished.")
        for alike, shared in sharing(unfinished):
            for run in alike:
                run.begin()
            train_together(alike, streamed, shared)
            for run in alike:
                if run.failure is not None:
                    say(f"{run.folder.path} has ended too early. {run.failure}")
    return {name: run.run for name, run in zip(names, runs, strict=True) if run.failure is None}


def unfinished_programs(
    file: str | Path,
    folder: str | Path,
    cells: Sequence[Mapping[str, object]],
    seed: int = 0,
    num_seeds: int = 1,
    only: Collection[str] = (),
) -> list[list[str]]:
    """The names of the unfinished cells, grouped by shared program.

    Args:
        file, folder, cells, seed, num_seeds, only: as in `train_grid`.

    Returns:
        The names of each program's cells.

    Raises:
        VaeJaxError: as in `train_grid`.
    """
    source, path = read_module(Path(file))[0], Path(folder)
    experiments: dict[str, Experiment] = {}
    for name, arguments in chosen(cells, only).items():
        origin, run_folder = Origin(str(file), source, dict(arguments)), RunFolder(path / name)
        experiment = origin.make()
        if run_folder.record.exists():
            run_folder.claim(experiment, seed, num_seeds, origin)  # or a sentence
            if run_folder.is_finished(run_folder.read_record()):
                continue
        experiments[name] = experiment
    groups: dict[object, list[str]] = {}
    one_seed = jax.ShapeDtypeStruct((), np.uint32)
    for name, experiment in experiments.items():
        state = jax.eval_shape(partial(init_state, experiment), one_seed)
        groups.setdefault(_kind(experiment, state), []).append(name)
    found: list[list[str]] = []
    for alike in groups.values():
        first = experiments[alike[0]]
        steps = [partial(train_step, experiments[name], axis=None) for name in alike]
        state = jax.eval_shape(partial(init_state, first), one_seed)
        batch = empty_batch(first, first.batch_size)
        for program in programs(steps, state, *batch, one_seed):
            found.append([alike[index] for index in program.members])
    return found


def sharing(runs: Sequence[Training]) -> Iterator[tuple[list[Training], SharedStep | None]]:
    """Group `runs` that can share a program, each group with the step that it shares.

    A run that shares its step with no other has None.
    """
    groups: dict[object, list[Training]] = {}
    for run in runs:
        alike = run.step, run.goes_on, _kind(run.experiment, run.state)
        groups.setdefault(alike, []).append(run)
    for alike in groups.values():
        layout = _layout(alike)
        steps = [partial(train_step, run.experiment, axis=layout.axis) for run in alike]
        axes = [] if layout.axis is None else [(layout.axis, parallel.num_devices())]
        for program in programs(steps, *_arguments(alike[0], layout), axes=axes):
            together = [alike[index] for index in program.members]
            if _layout(together) != layout:  # fewer runs are laid out on the devices differently
                yield from sharing(together)
            else:
                num_seeds = len(alike[0].seeds)
                numbers = [np.repeat(values, num_seeds, axis=0) for values in program.numbers]
                yield together, None if len(together) == 1 else (program.function, numbers)


def _kind(experiment: Experiment, state: TrainState) -> tuple[object, ...]:
    """The properties that experiments that share a program have in common, besides the step."""
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]
    loop = [getattr(experiment, name) for name in _OF_THE_LOOP]
    return *loop, experiment.data.fingerprint, *shapes, jax.tree.structure(state)


def _layout(runs: Sequence[Training]) -> parallel.Layout:
    experiment, replicas = runs[0].experiment, sum(len(run.seeds) for run in runs)
    return parallel.Layout.of(replicas, experiment.batch_size, experiment.accumulate)


def _arguments(run: Training, layout: parallel.Layout) -> tuple[object, ...]:
    """The shapes and types of the arguments of one replica's step on one device."""
    size = run.experiment.batch_size
    size = size if layout.axis is None else parallel.share_of(size)
    state = jax.tree.map(lambda leaf: leaf[0], run.state)
    return state, *empty_batch(run.experiment, size), run.seeds[0]


def _initial_states(
    experiments: Sequence[Experiment], seeds: np.ndarray
) -> list[Callable[[np.ndarray], TrainState]]:
    """The initial states as functions of the seeds; experiments with equal ones share them."""
    functions = [jax.vmap(partial(init_state, experiment)) for experiment in experiments]
    found = [parallel.jit(function) for function in functions]
    for program in programs(functions, seeds):
        for index in program.members if not program.numbers else ():
            found[index] = found[program.members[0]]
    return found


def _validations(
    experiments: Sequence[Experiment],
) -> list[Callable[[OfSeeds], Logged]]:
    """The validations, one for all experiments of equal models, data, K and N."""
    found: dict[str, Callable[[OfSeeds], Logged]] = {}
    keys: list[str] = []
    for experiment in experiments:
        about = experiment.description
        counts = experiment.objective.num_samples, experiment.validate_images
        keys.append(json.dumps([about["model"], about["data"], counts]))
        if keys[-1] not in found:
            found[keys[-1]] = make_validation(experiment)
    return [found[key] for key in keys]


# Names of cells, and flags


def chosen(
    cells: Sequence[Mapping[str, object]], only: Collection[str]
) -> dict[str, Mapping[str, object]]:
    """The cells by the names of their folders: those in `only`, or all if it is empty.

    Raises:
        VaeJaxError: a name in `only` is that of no cell, or as in `names_of`.
    """
    found = dict(zip(names_of(cells), cells, strict=True))
    for name in only:
        if name not in found:
            raise VaeJaxError(f"The grid has no cell {name}: choose among {', '.join(found)}.")
    return {name: cell for name, cell in found.items() if name in only or not only}


def names_of(cells: Sequence[Mapping[str, object]]) -> list[str]:
    """The folders of `cells`: the arguments in which they differ, `beta=0.1,learning_rate=0.001`.

    Arguments that a cell does not have are left out, except for the first.

    Raises:
        VaeJaxError: two cells have the same arguments.
    """

    def text(value: object) -> str:
        parts = value if isinstance(value, tuple | list) else [value]
        return "x".join(quote(str(part), safe="+") for part in parts)

    every = dict.fromkeys(name for arguments in cells for name in arguments)
    differing = [name for name in every if len({repr(cell.get(name)) for cell in cells}) > 1]

    def written(cell: Mapping[str, object]) -> list[str]:
        return [name for name in differing if name in cell or name == differing[0]]

    names = [",".join(f"{name}={text(cell.get(name))}" for name in written(cell)) for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise VaeJaxError(
                f"Two cells of the grid are the same, {name or 'with equal arguments'}: give each "
                "value once."
            )
    return names


def cells_of_flags(function: Callable[..., object], flags: Sequence[str]) -> list[list[str]]:
    """The flags of each cell, if a flag of a function has several values or is repeated.

    Args:
        function: a function with type hints; a flag of a tuple takes all values that follow it, and
            has several if it is repeated.
        flags: the user's words on the command line.

    Returns:
        The flags of each cell, with one value of each flag.
    """
    hints = get_type_hints(function, include_extras=True)
    typed: list[list[str]] = []
    for token in flags:
        if token.startswith("--"):
            typed.append(token.split("=", 1))
        elif token == "-h" or not typed:
            typed.append([token])
        else:
            typed[-1].append(token)
    choices: dict[str, list[list[str]]] = {}
    for flag, *values in typed:
        name = flag.removeprefix("--").replace("-", "_")
        name = name if name in hints else name.removeprefix("no_")
        if name not in hints:
            choices[flag] = [[flag, *values]]  # not of this function
        elif len(values) < 2 or _takes_several(hints[name]):
            choices.setdefault(name, []).append([flag, *values])
        else:
            choices.setdefault(name, []).extend([flag, value] for value in values)
    return [list(chain.from_iterable(cell)) for cell in product(*choices.values())]


def _takes_several(hint: object) -> bool:
    """Whether a value of the type `hint` is written as several words."""
    kind = get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, Collection) and not issubclass(kind, str):
        return True
    return any(map(_takes_several, get_args(hint)))


def is_run(folder: Path) -> bool:
    """Whether `folder` is that of a single run."""
    run_folder = RunFolder(folder)
    return run_folder.record.exists() or run_folder.record_copy.exists()


def runs_of(*folders: Path) -> list[Path]:
    """The run folders in `folders`: a grid's cells, the smallest numbers first, or a run itself."""

    def by_numbers(cell: Path) -> list[str | float]:
        parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", cell.name)  # text, number, text, ...
        return [float(part) if n % 2 else part for n, part in enumerate(parts)]

    runs: list[Path] = []
    for folder in folders:
        cells = [cell for cell in folder.glob("*=*") if is_run(cell)]
        single = is_run(folder) or not cells
        runs += [folder] if single else sorted(cells, key=by_numbers)
    return runs
