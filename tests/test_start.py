"""Training that begins with the parameters of a finished run, seed by seed, and what it refuses."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
import tiny
from running import on_devices

from vae_jax import Experiment, VaeJaxError, load_run, train, train_grid
from vae_jax.checkpoint import fingerprint
from vae_jax.run import Run


def experiment(**changed: Any) -> Experiment:
    """Five steps, with a rate that does not depend on their number."""
    made = tiny.experiment(num_steps=5, checkpoint_every=5)
    fields = {"optimizer": optax.adam(1e-2), "log_every": 5, **changed}
    return dataclasses.replace(made, **fields)


STILL: dict[str, Any] = {"optimizer": optax.set_to_zero(), "start": "first"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with on_devices(1):
        yield tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(folder: Path) -> Run:
    return train(experiment(), folder / "first", seed=3, num_seeds=2)


def equal(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_each_replica_has_the_parameters_of_its_seed(first: Run, folder: Path) -> None:
    """Of an optimizer that moves nothing; the running average forgets that of the first run."""
    run = train(experiment(**STILL), folder / "still", seed=3, num_seeds=2)
    equal(run.state.params, first.state.params)
    equal(run.state.ema_params, first.state.params)
    leaves = jax.tree.leaves(first.state.params)
    assert any((leaf[0] != leaf[1]).any() for leaf in leaves)
    assert run.state.step.tolist() == [5, 5]
    assert run.folder.read_record()["start"] == "first"


@pytest.mark.slow
def test_the_optimizer_begins_at_its_first_step(first: Run, folder: Path) -> None:
    """Adam's first step moves each parameter by its rate, whatever the gradient (1e-8 aside)."""
    rate = 1e-3
    adam = experiment(start="first", optimizer=optax.adam(rate), num_steps=1, log_every=1)
    run = train(dataclasses.replace(adam, checkpoint_every=1), folder / "adam", seed=3, num_seeds=2)
    moved = jax.tree.map(lambda a, b: np.abs(a - b), run.state.params, first.state.params)
    steps = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(moved)])
    steps = steps[steps > 0]
    np.testing.assert_allclose(np.median(steps), rate, rtol=1e-3)
    assert steps.max() < 1.01 * rate


@pytest.mark.slow
def test_a_run_that_has_begun_needs_the_first_no_longer(first: Run, tmp_path: Path) -> None:
    shutil.copytree(first.folder.path, tmp_path / "first")
    how: dict[str, Any] = {"seed": 3, "num_seeds": 2}
    begun = train(experiment(start="first"), tmp_path / "second", **how)
    shutil.rmtree(tmp_path / "first")
    assert fingerprint(load_run(tmp_path / "second").state) == fingerprint(begun.state)
    longer = train(experiment(start="first", num_steps=10), tmp_path / "second", **how)
    assert int(longer.state.step[0]) == 10
    with pytest.raises(VaeJaxError, match="start is first there, other here"):
        train(experiment(start="other"), tmp_path / "second", **how)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing there": ({"start": "nowhere"}, "which is no run folder: give its path seen from"),
    "seeds": ({"start": "first", "seed": 0}, "which has seed 3 and 2 replicas, not 0 and 2"),
    "fewer": ({"start": "first", "num_seeds": 1}, "which has seed 3 and 2 replicas, not 3 and 1"),
    "model": ({"start": "first", "model": tiny.model(9)}, "whose model has other parameters"),
    "not finished": ({"start": "begun"}, "which is not finished: train it to its end first"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_begin_with(case: str, first: Run, folder: Path) -> None:
    shutil.copytree(first.folder.path, folder / "begun", dirs_exist_ok=True)
    (folder / "begun" / "summary.json").unlink()
    changed, sentence = REFUSED[case]
    how: dict[str, Any] = {"seed": 3, "num_seeds": 2}
    fields = {name: value for name, value in changed.items() if name not in how}
    how |= {name: value for name, value in changed.items() if name in how}
    with pytest.raises(VaeJaxError, match=sentence):
        train(experiment(**fields), folder / case, **how)


@pytest.mark.slow
def test_cells_of_a_grid_begin_with_a_run_beside_them(tmp_path: Path) -> None:
    """Named by the arguments that they have; one program each, for they begin differently."""
    file = tmp_path / "bars.py"
    file.write_text(
        "import dataclasses, tiny\n"
        "def experiment(*, beta=1.0, start=None):\n"
        "    made = tiny.experiment(beta=beta, num_steps=5)\n"
        "    return dataclasses.replace(made, start=start)\n"
    )
    first, *_ = train_grid(file, tmp_path / "grid", [{"beta": 1.0}, {"beta": 2.0}]).values()
    then = {"beta": 3.0, "start": "beta=1.0"}
    runs = train_grid(file, tmp_path / "grid", [{"beta": 1.0}, then])
    assert [*runs] == ["beta=1.0", "beta=3.0,start=beta%3D1.0"]
    alone = train(tiny.experiment(beta=3.0, num_steps=5), tmp_path / "alone")
    assert fingerprint(alone.state) != fingerprint(runs["beta=3.0,start=beta%3D1.0"].state)
    equal(runs["beta=1.0"].state.params, first.state.params)
