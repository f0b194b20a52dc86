"""Runs that go on with more steps, and runs that end when validations no longer improve."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
import tiny
from running import checkpoint_steps, interrupted_after, on_devices, rows, summary

from vae_jax import Experiment, VaeJaxError, load_run, train, train_file, train_grid
from vae_jax.errors import Interrupted
from vae_jax.evaluation.table import runs_in
from vae_jax.run import RunFolder
from vae_jax.run.patience import Patience, score_of


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    with on_devices(1):
        yield


def experiment(num_steps: int, **changes: Any) -> Experiment:
    """Bars, with a learning rate that does not depend on the number of steps."""
    defaults: dict[str, Any] = {"optimizer": optax.adam(1e-2), "num_steps": num_steps}
    return dataclasses.replace(tiny.experiment(), **(defaults | changes))


# More steps


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longer") / "straight"
    train(experiment(40), folder)
    return folder


@pytest.mark.others_slow
@pytest.mark.parametrize("first", [33, 20])
def test_a_finished_run_goes_on_with_more_steps(
    first: int, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    train(experiment(first), folder)
    assert summary(folder)["step"] == first
    train(experiment(40), folder)
    assert f"Going on from step {first}" in capsys.readouterr().err
    assert summary(folder) == summary(straight)
    assert RunFolder(folder).read_record()["num_steps"] == 40
    assert load_run(folder).experiment.num_steps == 40
    with pytest.raises(VaeJaxError, match="num_steps is 40 there, 20 here"):
        train(experiment(20), folder)


def test_a_run_that_was_told_to_stop_goes_on_with_more_steps(
    straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted), interrupted_after(10):
        train(experiment(30), tmp_path)
    train(experiment(40), tmp_path)
    assert summary(tmp_path) == summary(straight)


@pytest.mark.slow
def test_a_longer_run_is_finished_when_it_is_summarized(straight: Path, tmp_path: Path) -> None:
    """The summary of the shorter one, left by a kill after the last checkpoint, is none of it."""
    folder = tmp_path / "run"
    train(experiment(20), folder)
    shorter = (folder / "summary.json").read_bytes()
    with pytest.raises(Interrupted), interrupted_after(25):
        train(experiment(40), folder)
    assert "of 40" in str(runs_in(tmp_path).rows[0][3])
    train(experiment(40), folder)
    (folder / "summary.json").write_bytes(shorter)
    train(experiment(40), folder)
    assert summary(folder) == summary(straight)
    assert runs_in(tmp_path).rows[0][3] == "finished"


FILE = """
import jax.numpy as jnp, optax, dataclasses, tiny
from vae_jax import ELBO

def experiment(*, num_steps: int = 10, rate: str = "constant", beta: str = "constant"):
    warm_up = optax.linear_schedule(0.0, 1.0, num_steps // 2)

    def bounded(step):
        return 1e-2 * jnp.minimum(1.0, (step + 1) / min(5, num_steps))

    class Rate:
        def __call__(self, step):
            return 1e-2

    constants = [optax.constant_schedule(rate) for rate in (1e-2, 3e-3, 1e-3)]
    stages = [10, 15][: num_steps // 10]
    early = [min(9, num_steps - 1)] if num_steps > 10 else []
    rates = {"stages": optax.join_schedules(constants[: len(stages) + 1], stages),
             "too early": optax.join_schedules(constants[: len(early) + 1], early),
             "constant": 1e-2, "bounded": bounded, "class": Rate(),
             "cosine": optax.cosine_decay_schedule(1e-2, num_steps)}
    betas = {"constant": 1.0, "warm_up": warm_up,
             "bounded": optax.linear_schedule(0.0, 1.0, min(5, num_steps))}
    return dataclasses.replace(
        tiny.experiment(), num_steps=num_steps, optimizer=optax.adam(rates[rate]),
        objective=ELBO(beta=betas[beta]),
    )
"""
SCHEDULES = [
    ({"rate": "bounded"}, ""),  # its description has the number of steps, its values do not
    ({"beta": "bounded"}, ""),
    ({"rate": "class"}, ""),
    ({"rate": "stages"}, ""),  # the later ones begin where the shorter run ends
    ({"rate": "too early"}, "on which its steps depend"),  # its last step is another
    ({"rate": "cosine"}, "num_steps is 10 there, 20 here, on which its steps depend"),
    ({"beta": "warm_up"}, "num_steps is 10 there, 20 here, on which its steps depend"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "sentence"), SCHEDULES, ids=lambda each: str(each))
def test_a_run_goes_on_where_its_schedules_allow(
    arguments: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    """Decided by what the steps compute: no names, no descriptions."""
    file, folder = tmp_path / "file.py", tmp_path / "run"
    file.write_text(FILE)
    train_file(file, folder, {"num_steps": 10, **arguments})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if sentence:
        with pytest.raises(VaeJaxError, match=sentence):
            train_file(file, folder, {"num_steps": 20, **arguments})
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    else:
        train_file(file, folder, {"num_steps": 20, **arguments})
        train_file(file, tmp_path / "straight", {"num_steps": 20, **arguments})
        assert summary(folder) == summary(tmp_path / "straight")


@pytest.mark.slow
def test_a_grid_goes_on_with_more_steps(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(FILE)
    for steps in (10, 20):
        cells: list[dict[str, object]] = [
            {"num_steps": steps, "beta": beta} for beta in ("constant", "bounded")
        ]
        train_grid(file, tmp_path / "grid", cells)
    for cell in cells:
        train_file(file, tmp_path / str(cell["beta"]), cell)
        own = summary(tmp_path / "grid" / f"beta={cell['beta']}")
        assert own["step"] == 20
        expected = summary(tmp_path / str(cell["beta"]))["valid_nll"]
        assert own["valid_nll"] == pytest.approx(expected, rel=1e-5)


def test_what_changes_besides_the_number_of_steps_is_another_experiment(tmp_path: Path) -> None:
    RunFolder(tmp_path).claim(experiment(20), 0, 1, None)
    for change in ({"ema_decay": 0.5}, {"optimizer": optax.adam(1e-3)}, {"batch_size": 8}):
        with pytest.raises(VaeJaxError, match="is the run of another experiment"):
            RunFolder(tmp_path).claim(experiment(40, **change), 0, 1, None)
    with pytest.raises(VaeJaxError, match="seed is 0 there, 1 here"):
        RunFolder(tmp_path).claim(experiment(40), 1, 1, None)
    RunFolder(tmp_path).claim(experiment(40), 0, 1, None)


# Patience


def test_patience_counts_validations_since_the_best() -> None:
    scores = [5.0, 4.0, 4.5, float("nan"), 3.0, 3.0, 3.5, float("inf")]
    waited = []
    patience = Patience(3)
    for step, score in enumerate(scores):
        patience.see(step, score)
        waited.append(patience.waited)
    assert waited == [0, 0, 1, 2, 0, 1, 2, 3]
    assert (patience.best, patience.step, patience.is_over) == (3.0, 4, True)
    again = Patience(3)
    lines = [{"step": n, "valid_nll": score} for n, score in enumerate(scores)]
    again.see_again([{"step": 0, "loss": 1.0}, *lines], until=6)
    assert (again.waited, again.is_over) == (2, False)
    assert not Patience(None, waited=10**6).is_over
    assert score_of({"valid_neg_elbo": 1.0, "valid_nll": [2.0, 4.0]}) == 3.0
    assert np.isnan(score_of({"valid_nll": [2.0, None]}) or 0.0)
    assert score_of({"loss": 1.0}) is None


WORSE: dict[str, Any] = {  # than at first, for its steps are too large
    "optimizer": optax.adam(0.3),
    "validate_every": 5,
    "checkpoint_every": 20,
}


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """Steps and scores of the validations of 200 steps without patience."""
    folder = tmp_path_factory.mktemp("longer") / "curve"
    return train(experiment(200, **WORSE), folder).folder.metric("valid_nll")


def end_of(curve: tuple[np.ndarray, np.ndarray], patience: int) -> tuple[int, int]:
    """The first step since whose best score this number of validations have come, and the best."""
    steps, scores = curve[0], curve[1][:, 0]
    for last in range(len(steps)):
        best = int(np.argmin(scores[: last + 1]))
        if last - best >= patience:
            return int(steps[last]), int(steps[best])
    raise AssertionError("it never ends")


@pytest.mark.others_slow
@pytest.mark.parametrize("patience", [3, 1])
def test_training_ends_when_validations_no_longer_improve(
    patience: int, curve: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    last, best = end_of(curve, patience)
    assert last < 200
    folder = tmp_path / "run"
    run = train(experiment(200, patience=patience, **WORSE), folder)
    found = summary(folder)
    assert (found["step"], found["best_step"]) == (last, best)
    assert int(run.state.step[0]) == last == checkpoint_steps(folder)[-1]
    assert int(load_run(folder, "best").state.step[0]) == best
    assert runs_in(tmp_path).rows[0][3] == "finished"
    # The same state as without patience, after as many steps.
    train(experiment(last, **WORSE), tmp_path / "plain")
    assert found["params_sha256"] == summary(tmp_path / "plain")["params_sha256"]


@pytest.mark.slow
def test_patience_is_resumed_exactly(
    curve: tuple[np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = experiment(200, patience=3, **WORSE)
    last, _ = end_of(curve, 3)
    train(patient, tmp_path / "straight")
    folder = tmp_path / "run"
    for step in (last - 30, last - 15):
        with pytest.raises(Interrupted), interrupted_after(step):
            train(patient, folder)
    train(patient, folder)
    assert summary(folder) == summary(tmp_path / "straight")
    assert rows(folder) == rows(tmp_path / "straight")
    (folder / "summary.json").unlink()  # as by a kill after the last checkpoint
    train(patient, folder)
    assert summary(folder) == summary(tmp_path / "straight")
    train(patient, folder)
    assert "there is nothing to do" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_has_ended_goes_on_with_more_patience(
    curve: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    for patience in (1, 3):
        train(experiment(200, patience=patience, **WORSE), tmp_path)
        assert summary(tmp_path)["step"] == end_of(curve, patience)[0]
    train(experiment(200, **WORSE), tmp_path)
    assert summary(tmp_path)["step"] == 200
    with pytest.raises(VaeJaxError, match="patience is None there, 3 here"):
        train(experiment(200, patience=3, **WORSE), tmp_path)


def test_with_patience_validations_are_part_of_the_run(tmp_path: Path) -> None:
    RunFolder(tmp_path).claim(experiment(200, patience=3, **WORSE), 0, 1, None)
    other = experiment(200, patience=3, **WORSE | {"validate_every": 10})
    with pytest.raises(VaeJaxError, match="validate_every is 5 there, 10 here"):
        RunFolder(tmp_path).claim(other, 0, 1, None)
    same = experiment(200, patience=3, **WORSE | {"checkpoint_every": 50})
    RunFolder(tmp_path).claim(same, 0, 1, None)


PATIENT = """
import dataclasses, optax, tiny

def experiment(*, learning_rate: float = 1e-2):
    return dataclasses.replace(
        tiny.experiment(), num_steps=100, optimizer=optax.adam(learning_rate), validate_every=5,
        checkpoint_every=20, patience=2,
    )
"""


@pytest.mark.slow
def test_a_cell_that_ends_stops_nothing_but_itself(tmp_path: Path) -> None:
    file = tmp_path / "patient.py"
    file.write_text(PATIENT)
    cells: list[dict[str, object]] = [{"learning_rate": rate} for rate in (0.3, 1e-3)]
    runs = train_grid(file, tmp_path / "grid", cells)
    steps = []
    for (name, run), cell in zip(runs.items(), cells, strict=True):
        alone = train_file(file, tmp_path / name, cell)
        found = summary(run.folder.path)
        steps.append(found["step"])
        assert steps[-1] == summary(alone.folder.path)["step"]
        assert checkpoint_steps(run.folder.path) == checkpoint_steps(alone.folder.path)
        np.testing.assert_allclose(found["valid_nll"], run.folder.metric("valid_nll")[1][-1, 0])
    assert steps[0] < steps[1]
    before = {path: path.read_bytes() for path in (tmp_path / "grid").rglob("summary.json")}
    shutil.rmtree(tmp_path / "grid" / "learning_rate=0.001" / "checkpoints")
    train_grid(file, tmp_path / "grid", cells)
    after = {path: path.read_bytes() for path in (tmp_path / "grid").rglob("summary.json")}
    finished = tmp_path / "grid" / "learning_rate=0.3" / "summary.json"
    assert before[finished] == after[finished]


def test_patience_needs_validations() -> None:
    data = dataclasses.replace(
        tiny.data(), valid=dataclasses.replace(tiny.data().valid, images=tiny.images(0, 0))
    )
    with pytest.raises(VaeJaxError, match="patience of Experiment counts validations, and bars"):
        experiment(20, data=data, patience=3)
