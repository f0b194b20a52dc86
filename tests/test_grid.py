"""Grids: functions put together that differ in numbers alone; cells as the runs made alone.

What a program of several cells computes is compared with what each computes alone: to the bit with
the compiler's own options, and to rounding with those of the tests, which optimize less.
"""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from matplotlib.figure import Figure
from running import (
    TINY,
    checkpoint_steps,
    finish,
    interrupted_after,
    last_step,
    on_devices,
    rows,
    start,
    summary,
    wait_until,
)

from vae_jax import VaeJaxError, evaluate, grid, load_run, standard_figures, train_file, train_grid
from vae_jax.cli import main
from vae_jax.errors import Interrupted
from vae_jax.grid import cells_of_flags, names_of, runs_of, unfinished_programs
from vae_jax.identity.programs import programs
from vae_jax.run import Run

# Functions that differ in numbers alone

X = np.linspace(-1.0, 2.0, 6, dtype=np.float32)


def product(a: float, x: Array) -> Array:
    return x * a


def in_a_scan(a: float, x: Array) -> Array:
    return lax.scan(lambda carry, each: (carry + a * each, carry), jnp.zeros(()), x)[1]


def in_a_loop(a: float, x: Array) -> Array:
    return lax.while_loop(lambda y: y.sum() < a, lambda y: y + a / 8, x)


def in_a_branch(a: float, x: Array) -> Array:
    return lax.cond(x[0] > 0, lambda: x + a, lambda: x - a)


def in_a_compiled_function(a: float, x: Array) -> Array:
    return jax.jit(lambda x: x**2 + a)(x)


def in_a_rule(a: float, x: Array) -> Array:
    rule = jax.custom_jvp(lambda x: x * a)
    rule.defjvp(lambda primals, tangents: (rule(*primals), tangents[0]))
    return rule(x) + jax.grad(lambda x: rule(x).sum())(x)


def rematerialized(a: float, x: Array) -> Array:
    return jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sin(a * jnp.sin(x)))(x).sum())(x)


def an_array(a: float, x: Array) -> Array:
    return jnp.add(np.full(6, a, np.float32), x)


def a_result(a: float, x: Array) -> tuple[Array, Array]:
    return jnp.asarray(a), x


def a_count(a: float, x: Array) -> Array:
    return jnp.where(jnp.arange(6) < round(2 * a), x, 0)


@partial(jax.jit, static_argnums=0)
def shifted(a: float, x: Array) -> Array:
    return x + a


def twice_in_one_function(a: float, x: Array) -> Array:
    return shifted(a, x) * shifted(2.0, x)  # one jaxpr for both where a is 2


TOGETHER = [
    product,
    in_a_scan,
    in_a_loop,
    in_a_branch,
    in_a_compiled_function,
    in_a_rule,
    rematerialized,
    an_array,
    a_result,
    a_count,
    twice_in_one_function,
]


@pytest.mark.parametrize("function", TOGETHER, ids=lambda function: function.__name__)
def test_functions_that_differ_in_numbers_are_one_program(function: Callable[..., Any]) -> None:
    """Which gives each one's values, one after the other and at once."""
    functions = [partial(function, a) for a in (2.0, 0.5, 3.0)]
    (program,) = programs(functions, X)
    assert program.members == [0, 1, 2]
    assert program.numbers
    at_once = jax.vmap(partial(program.function, X))(*program.numbers)
    for n, alone in enumerate(functions):
        one = program.function(X, *(values[n] for values in program.numbers))
        jax.tree.map(np.testing.assert_array_equal, one, alone(X))
        own = jax.tree.map(lambda leaf, n=n: leaf[n], at_once)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), own, alone(X))


def a_branch_of_python(a: float, x: Array) -> Array:
    return x if a == 1 else a * x


def an_exponent(a: float, x: Array) -> Array:
    return x ** int(a)


def a_shape(a: float, x: Array) -> Array:
    return x[: int(a)]


def called_back(a: float, x: Array) -> Array:
    return jax.pure_callback(lambda x: np.float32(a) * x, jax.ShapeDtypeStruct((6,), x.dtype), x)


ALONE = [a_branch_of_python, an_exponent, a_shape, called_back]


@pytest.mark.parametrize("function", ALONE, ids=lambda function: function.__name__)
def test_functions_that_differ_in_more_stay_as_they_are(function: Callable[..., Any]) -> None:
    functions = [partial(function, a) for a in (1.0, 2.0)]
    found = programs(functions, X)
    assert [program.members for program in found] == [[0], [1]]
    assert [program.function for program in found] == functions
    assert not any(program.numbers for program in found)


def test_equal_functions_are_one_program_without_numbers() -> None:
    (program,) = programs([lambda x: 2.0 * x, lambda x: 2.0 * x], X)
    assert (program.members, program.numbers) == ([0, 1], ())


# Flags and names


def flags(
    *,
    beta: float = 1.0,
    hidden: tuple[int, ...] = (8,),
    kind: Literal["a", "b"] = "a",
    shuffle: bool = True,
) -> None: ...


@pytest.mark.parametrize(
    ("typed", "cells"),
    [
        ("", [""]),
        ("--beta 1 --seed 3", ["--beta 1 --seed 3"]),
        ("--beta 1 -2e-1", ["--beta 1", "--beta -2e-1"]),
        ("--beta=1 2 --seed 3", ["--beta 1 --seed 3", "--beta 2 --seed 3"]),
        ("--beta 1 --kind b --beta 2", ["--beta 1 --kind b", "--beta 2 --kind b"]),
        ("--hidden 8 4", ["--hidden 8 4"]),
        ("--hidden 8 4 --hidden 2", ["--hidden 8 4", "--hidden 2"]),
        ("--shuffle --no-shuffle", ["--shuffle", "--no-shuffle"]),
        ("--kind a b --beta 1 2", [f"--kind {k} --beta {b}" for k in "ab" for b in "12"]),
        ("--beta 1 --help", ["--beta 1 --help"]),
        ("--beta -h", ["--beta -h"]),
        ("--seed 1 --seed 2", ["--seed 2"]),
    ],
)
def test_several_values_of_a_flag_are_cells(typed: str, cells: list[str]) -> None:
    assert cells_of_flags(flags, typed.split()) == [cell.split() for cell in cells]


def test_cells_are_named_by_the_arguments_in_which_they_differ() -> None:
    cells = [{"beta": beta, "k": 5, "size": size} for beta in (0.1, 1.0) for size in ((8, 4), None)]
    expected = ["beta=0.1,size=8x4", "beta=0.1,size=None", "beta=1.0,size=8x4"]
    assert names_of(cells)[:3] == expected
    some = [{"beta": 1.0}, {"beta": 1.0, "start": "a"}, {"start": "a"}]
    assert names_of(some) == ["beta=1.0", "beta=1.0,start=a", "beta=None,start=a"]
    assert names_of([{"file": "a/b"}, {"file": "a%2Fb"}]) == ["file=a%2Fb", "file=a%252Fb"]
    with pytest.raises(VaeJaxError, match=r"the same, beta=1.0: give each value once"):
        names_of([{"beta": 1.0}, {"beta": 1.0}, {"beta": 2.0}])


def test_cells_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["beta=0.1", "beta=3.0", "beta=10.0", "beta=100.0"]
    for name in [*reversed(names), "figures"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.json").touch()
    assert [path.name for path in runs_of(tmp_path)] == names
    assert runs_of(tmp_path / "beta=3.0") == [tmp_path / "beta=3.0"]
    assert runs_of(tmp_path / "nothing") == [tmp_path / "nothing"]


# Training

SHORT = {"num_steps": 20, "log_every": 5, "checkpoint_every": 10}
NUMBERS = [{"beta": beta, "learning_rate": rate} for beta in (0.1, 4.0) for rate in (1e-2, 1e-3)]
CELLS: list[dict[str, object]] = [SHORT | cell for cell in [*NUMBERS, {"hidden": 4}]]


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    with on_devices(1):
        yield


@pytest.fixture(scope="module")
def sizes() -> list[int]:
    """The number of runs in each program that `straight` trained."""
    return []


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> Path:
    folder = tmp_path_factory.mktemp("grid") / "straight"
    together = grid.train_together

    def counted(runs: Any, *args: Any) -> None:
        sizes.append(len(runs))
        together(runs, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "train_together", counted)
        assert len(train_grid(TINY, folder, CELLS)) == len(CELLS)
    return folder


def test_numbers_are_an_axis_and_shapes_programs_of_their_own(
    straight: Path, sizes: list[int]
) -> None:
    assert sizes == [4, 1]
    assert len(runs_of(straight)) == 5


@pytest.mark.others_slow
@pytest.mark.parametrize("cell", [pytest.param(0, marks=pytest.mark.slow), 3, 4])
def test_a_cell_is_the_run_that_would_be_made_alone(
    cell: int, straight: Path, tmp_path: Path
) -> None:
    """Its numbers, its record, its checkpoints; and either command finds it finished."""
    alone, own = tmp_path / "alone", straight / names_of(CELLS)[cell]
    train_file(TINY, alone, CELLS[cell])
    assert_close(own, alone)
    one, other = (json.loads((path / "experiment.json").read_text()) for path in (own, alone))
    assert one | {"started": ""} == other | {"started": ""}
    train_file(TINY, own, CELLS[cell])


def assert_close(one: Path, other: Path) -> None:
    """Two runs are the same but for rounding."""
    assert checkpoint_steps(one) == checkpoint_steps(other)
    lines = [*rows(one), summary(one)], [*rows(other), summary(other)]
    for own, expected in zip(*lines, strict=True):
        for name in (own.keys() | expected.keys()) - {"params_sha256"}:
            assert own[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


def assert_same(one: Path, other: Path) -> None:
    """Two runs are the same to the bit."""
    assert summary(one) == summary(other)
    assert rows(one) == rows(other)


@pytest.mark.slow
def test_a_cell_has_the_bytes_of_the_run_that_would_be_made_alone(tmp_path: Path) -> None:
    """16 cells, 4 betas and 4 learning rates, with the compiler's own options."""
    program = (
        "import sys, itertools; from vae_jax import train_file, train_grid\n"
        "file, folder = sys.argv[1:]\n"
        "axes = itertools.product((0.1, 0.5, 1.0, 4.0), (1e-4, 1e-3, 3e-3, 1e-2))\n"
        "cells = [{'beta': beta, 'learning_rate': rate} for beta, rate in axes]\n"
        "runs = train_grid(file, f'{folder}/grid', cells)\n"
        "for (name, run), cell in zip(runs.items(), cells):\n"
        "    alone = train_file(file, f'{folder}/alone/{name}', cell)\n"
        "    sha256 = [each.folder.read_summary()['params_sha256'] for each in (run, alone)]\n"
        "    assert sha256[0] == sha256[1], name\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        done = finish(start(("-c", program), TINY, tmp_path))
    assert done.returncode == 0, done.stderr


AXES = """
import dataclasses, optax, tiny
from vae_jax import ELBO, Experiment, FreeBits, Gaussian, GumbelSoftmax, UniformConcrete

def experiment(*, floor=None, warm_up=None, b1=0.9, b2=0.999, scale=None, temperature=None):
    data, model, objective = tiny.data(), tiny.model(), ELBO()
    if floor is not None:
        objective = FreeBits(floor)
    if warm_up is not None:
        objective = ELBO(beta=optax.linear_schedule(0.0, 1.0, warm_up))
    if scale is not None:
        data, model = tiny.data("grey"), dataclasses.replace(model, likelihood=Gaussian(scale))
    if temperature is not None:
        q, p = GumbelSoftmax(2, 3, temperature), UniformConcrete(2, 3, temperature)
        model = dataclasses.replace(model, posterior=q, prior=p)
    return Experiment(
        data=data,
        model=model,
        objective=objective,
        optimizer=optax.adam(1e-2, b1, b2),
        num_steps=40,
        batch_size=16,
        log_every=10,
        checkpoint_every=40,
    )
"""
ROUNDING = 1e-6
"""The bound on differences of parameters in the README."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cells", "bound"),
    [
        ([{"b1": 0.5, "b2": 0.9}, {"b1": 0.9, "b2": 0.99}], 0),
        ([{"floor": 0.05}, {"floor": 0.5}], 0),
        ([{"warm_up": 7}, {"warm_up": 30}], ROUNDING),
        ([{"scale": 0.3}, {"scale": 1.0}], ROUNDING),
        ([{"temperature": 0.4}, {"temperature": 1.0}], ROUNDING),
    ],
    ids=["decay_rates", "free_bits", "warm_up", "scale", "temperature"],
)
def test_a_cell_along_another_axis_is_the_run_made_alone(
    cells: list[dict[str, object]], bound: float, tmp_path: Path
) -> None:
    """To the bit or, if the compiler folds the number, to rounding; and so is its evaluation."""
    file = tmp_path / "axes.py"
    file.write_text(AXES)
    names = names_of(cells)
    assert unfinished_programs(file, tmp_path / "grid", cells) == [names]
    program = (
        "import sys, json; from vae_jax import train_file, train_grid\n"
        "file, folder, cells = *sys.argv[1:3], json.loads(sys.argv[3])\n"
        "for name, cell in zip(train_grid(file, f'{folder}/grid', cells), cells):\n"
        "    train_file(file, f'{folder}/alone/{name}', cell)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        path = str(TINY.parent)
        done = finish(start(("-c", program), file, tmp_path, json.dumps(cells), pythonpath=path))
    assert done.returncode == 0, done.stderr
    for name in names:
        cell, alone = (load_run(tmp_path / each / name) for each in ("grid", "alone"))
        exact = [summary(run.folder.path)["params_sha256"] for run in (cell, alone)]
        assert bound or exact[0] == exact[1]
        close = partial(np.testing.assert_allclose, rtol=0, atol=bound)
        jax.tree.map(close, cell.state.params, alone.state.params)
        means = [evaluate(run, num_samples=3).mean for run in (cell, alone)]
        for quantity, value in means[1].items():
            np.testing.assert_allclose(means[0][quantity], value, rtol=10 * bound, err_msg=quantity)


@pytest.mark.slow
def test_a_killed_grid_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL between two checkpoints, the same command again, against a grid never killed."""
    numbers = (0.5, 1.0, 2.0, 4.0)
    cells = [
        {"num_steps": 4000, "checkpoint_every": 200, "beta": beta, "learning_rate": rate * 1e-3}
        for beta in numbers
        for rate in numbers
    ]
    program = (
        "import sys, json; from vae_jax import train_grid\n"
        "train_grid(*sys.argv[1:3], json.loads(sys.argv[3]))\n"
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")

        def train(folder: Path) -> subprocess.Popen[str]:
            return start(("-c", program), TINY, folder, json.dumps(cells))

        process = train(killed)
        wait_until(lambda: last_step(killed / names_of(cells)[0]) > 1000, process)
        process.kill()
        assert finish(process).returncode == -signal.SIGKILL
        assert not [*killed.glob("*/summary.json")]
        for folder in (killed, whole):
            done = finish(train(folder))
            assert done.returncode == 0, done.stderr
            assert ("Going on from step" in done.stderr) == (folder == killed)
    for name in names_of(cells):
        own, expected = summary(killed / name), summary(whole / name)
        assert own["params_sha256"] == expected["params_sha256"]
        assert_close(killed / name, whole / name)


def test_an_interrupted_grid_goes_on(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="after step 15"), interrupted_after(10):
        train_grid(TINY, tmp_path, CELLS)
    steps = [checkpoint_steps(tmp_path / cell)[-1] for cell in names_of(CELLS)[:4]]
    assert steps == [15] * 4
    train_grid(TINY, tmp_path, CELLS)
    for name in names_of(CELLS):
        assert_same(tmp_path / name, straight / name)


@pytest.mark.slow
def test_cells_that_were_killed_at_different_steps_go_on(straight: Path, tmp_path: Path) -> None:
    """As between two of their checkpoints; those that were finished stay."""
    folder = shutil.copytree(straight, tmp_path / "grid")
    names = names_of(CELLS)
    for cell, lost in ((names[0], [20]), (names[1], [10, 20]), (names[2], [20])):
        for step in lost:
            shutil.rmtree(folder / cell / "checkpoints" / str(step))
        (folder / cell / "summary.json").unlink()
    before = (folder / names[3] / "summary.json").read_bytes()
    train_grid(TINY, folder, CELLS)
    for name in names:
        assert_close(folder / name, straight / name)
    assert (folder / names[3] / "summary.json").read_bytes() == before


@pytest.mark.slow
def test_a_cell_that_diverges_stops_nothing_but_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cells = [SHORT | {"learning_rate": rate, "max_nonfinite": 3} for rate in (1e-2, 1e38)]
    runs = train_grid(TINY, tmp_path, cells)
    assert list(runs) == ["learning_rate=0.01"]
    said = capfd.readouterr().err
    assert "learning_rate=1e+38 has ended too early. The loss or its gradients were not" in said
    train_file(TINY, tmp_path / "alone", cells[0])
    assert_close(tmp_path / "learning_rate=0.01", tmp_path / "alone")
    assert not (tmp_path / "learning_rate=1e+38" / "summary.json").exists()
    with pytest.raises(VaeJaxError, match="not finite in the 3 steps"):  # as it is alone
        train_file(TINY, tmp_path / "learning_rate=1e+38", cells[1])


@pytest.mark.slow
def test_seeds_are_an_axis_of_each_cell(straight: Path, tmp_path: Path) -> None:
    run = train_grid(TINY, tmp_path, CELLS[:2], num_seeds=2)["learning_rate=0.01"]
    train_file(TINY, tmp_path / "alone", CELLS[0], num_seeds=2)
    assert_close(run.folder.path, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_cells_lie_on_devices_as_seeds_do(devices: int, straight: Path, tmp_path: Path) -> None:
    """Apart where two devices divide four cells; else each cell on all, as four on eight."""
    with on_devices(devices):
        runs = train_grid(TINY, tmp_path, CELLS)
    for name, run in runs.items():
        assert_close(run.folder.path, straight / name)


def test_another_experiment_or_a_single_run_is_no_grid_of_this(
    straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(VaeJaxError, match=r"another experiment \(experiment.arguments.batch_size"):
        train_grid(TINY, straight, [cell | {"batch_size": 8} for cell in CELLS])
    with pytest.raises(VaeJaxError, match="is a single run, not a grid"):
        train_grid(TINY, straight / names_of(CELLS)[0], CELLS)
    with pytest.raises(VaeJaxError, match="not empty and not a run folder"):
        train_file(TINY, straight, CELLS[0])
    with pytest.raises(VaeJaxError, match="beta of ELBO is -1"):
        train_grid(TINY, tmp_path / "new", [{"beta": -1.0}, {"beta": 1.0}])
    assert not (tmp_path / "new").exists()


# Commands


def test_commands_take_the_grid_or_a_cell(
    straight: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(straight, tmp_path / "grid")
    for name in names_of(CELLS)[2:]:
        shutil.rmtree(folder / name)
    main(["evaluate", str(folder), "--num-samples", "3"])
    main(["table", str(folder), "--out", str(tmp_path / "table.md")])
    header, _, *lines = (tmp_path / "table.md").read_text().splitlines()[:4]
    assert header.startswith("| --learning-rate | NLL |")
    assert [line.split(" | ")[0] for line in lines] == ["| 0.001", "| 0.01"]
    main(["sample", str(folder), "--out", str(tmp_path / "samples.png"), "--num", "4"])
    main(["sample", str(runs_of(folder)[0]), "--out", str(tmp_path / "one.png"), "--num", "4"])
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == ["one.png", *(f"samples-{path.name}.png" for path in runs_of(folder))]


def test_figures_of_a_grid_are_drawn_in_each_run(
    straight: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or in one cell alone; for a folder without runs there is a way out."""
    every = standard_figures.standard_figures

    def one(run: Run) -> dict[str, Callable[[], Figure]]:
        return {"learning_curves": every(run)["learning_curves"]}  # the others take longer

    monkeypatch.setattr(standard_figures, "standard_figures", one)
    folder = tmp_path / "grid"
    cells = [shutil.copytree(straight / name, folder / name) for name in names_of(CELLS)[:2]]
    for asked, drawn in ((folder, runs_of(folder)), (cells[0], cells[:1])):
        for cell in cells:
            shutil.rmtree(cell / "figures", ignore_errors=True)
        main(["figures", str(asked)])
        paths = [Path(line) for line in capfd.readouterr().out.splitlines()]
        assert paths == [cell / "figures" / "learning_curves.png" for cell in drawn]
        assert {*paths} == {*folder.glob("*/figures/*")}
    for nothing in (tmp_path / "nothing", cells[0] / "checkpoints", "no_such_experiment"):
        with pytest.raises(SystemExit) as stopped:
            main(["figures", str(nothing)])
        assert stopped.value.code == 2
        said = capfd.readouterr().err
        assert f"{nothing} is neither a run folder nor that of a grid: give one that" in said


@pytest.mark.slow
def test_the_command_trains_a_grid(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    command = ["train", str(TINY), "--learning-rate", "1e-2", "1e38", "--max-nonfinite", "3"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, *arguments, "--workdir", str(tmp_path / "grid")])
    assert stopped.value.code == 2
    said = capfd.readouterr().err
    assert "learning_rate=1e+38 has ended too early. The loss or its gradients were not" in said
    assert "1 of the 2 cells of" in said
    assert not (tmp_path / "grid" / "learning_rate=1e+38" / "summary.json").exists()
    assert (tmp_path / "grid" / "learning_rate=0.01" / "figures" / "samples.png").exists()
