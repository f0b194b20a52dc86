"""Told to stop in the midst of a validation or a chunk of steps, a run leaves it and goes on later:
to the same bytes and the same lines.
"""

import contextlib
import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny
from running import (
    CLI,
    ROOT,
    TINY,
    checkpoint_steps,
    finish,
    last_step,
    on_devices,
    rows,
    start,
    summary,
    wait_until,
)
from test_processes import SLOW_FIGURES, addresses

from vae_jax import Experiment, train
from vae_jax.checkpoint import fingerprint
from vae_jax.errors import Interrupted
from vae_jax.processes import signals
from vae_jax.processes.signals import Left, unless_stopped
from vae_jax.run import Run

PRECISION = "jax_default_matmul_precision"
RUN: dict[str, Any] = {"num_steps": 40, "log_every": 10, "checkpoint_every": 20}


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal is urgent at once."""
    monkeypatch.setattr(signals, "SECONDS_TO_END", 0.0)
    monkeypatch.setattr(signals, "_LOOK", 0.02)


@pytest.mark.usefixtures("hasty")
def test_work_ends_fails_or_is_left() -> None:
    waiting, thread = threading.Event(), threading.get_ident()
    assert unless_stopped(lambda: threading.get_ident() != thread, [])
    assert unless_stopped(lambda: 3, [signal.SIGTERM]) == 3  # it was over in time
    with pytest.raises(ZeroDivisionError):
        unless_stopped(lambda: 1 // 0, [])
    with jax.default_matmul_precision("float32"), jax.enable_x64(True):  # of this thread alone
        precision, x = unless_stopped(
            lambda: (getattr(jax.config, PRECISION), jnp.ones(1, jnp.float64)), []
        )
        assert (precision, x.dtype) == ("float32", jnp.float64)
    received: list[int] = []
    threading.Timer(0.1, received.append, [int(signal.SIGUSR1)]).start()
    with pytest.raises(Left) as left:
        unless_stopped(waiting.wait, received)
    assert left.value.signal_number == signal.SIGUSR1
    waiting.set()


def test_it_has_some_seconds_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_LOOK", 0.02)
    monkeypatch.setattr(signals, "SECONDS_TO_END", 0.4)
    assert unless_stopped(lambda: time.sleep(0.2), [signal.SIGTERM]) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run never interrupted."""
    with on_devices(1):
        return train(experiment(), tmp_path_factory.mktemp("runs") / "run")


def experiment() -> Experiment:
    return tiny.experiment(**RUN)


def manifests(folder: Path) -> dict[int, Any]:
    """The score of each checkpoint by its step."""
    paths = {step: folder / "checkpoints" / str(step) for step in checkpoint_steps(folder)}
    found = {n: json.loads((path / "manifest.json").read_text()) for n, path in paths.items()}
    return {step: manifest["validation"] for step, manifest in found.items()}


def assert_same(folder: Path, expected: Run) -> None:
    assert rows(folder) == rows(expected.folder.path)
    assert summary(folder) == summary(expected.folder.path)
    assert manifests(folder) == manifests(expected.folder.path)


@contextlib.contextmanager
def told_in(maker: str, call: int) -> Iterator[None]:
    """A signal comes in one call of the function that is made, which then has no end."""
    make, calls, over = getattr(sys.modules["vae_jax.train"], maker), itertools.count(), Event()

    def made(*arguments: Any) -> Callable[..., Any]:
        function = make(*arguments)

        def slow(*arguments: Any) -> Any:
            if next(calls) == call:
                signal.raise_signal(signal.SIGTERM)
                over.wait(60)
            return function(*arguments)

        return slow

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"vae_jax.train.{maker}", made)
        yield
    over.set()


@pytest.mark.usefixtures("hasty")
@pytest.mark.others_slow
@pytest.mark.parametrize(("call", "step"), [(0, 20), (1, 40)])
def test_a_validation_that_is_left_is_made_up(
    call: int, step: int, whole: Run, tmp_path: Path
) -> None:
    """The first; the last, after which nothing but the summary is missing."""
    folder, told = tmp_path / "run", f"after step {step}; its state is saved"
    with on_devices(1):
        with pytest.raises(Interrupted, match=told), told_in("make_validation", call):
            train(experiment(), folder)
        assert manifests(folder)[step] is None
        assert "loss" in rows(folder)[-1], "the validation has a line"
        assert not (folder / "summary.json").exists()
        run = train(experiment(), folder)
    assert fingerprint(run.state) == fingerprint(whole.state)
    assert_same(folder, whole)


@pytest.mark.usefixtures("hasty")
@pytest.mark.others_slow
@pytest.mark.parametrize(("call", "step"), [(1, 10), (0, 0)])
def test_a_chunk_that_is_left_is_made_again(
    call: int, step: int, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that took long before; the first, before which there is nothing to save."""
    monkeypatch.setattr("vae_jax.train.SECONDS_TO_HEAR", 0.0)  # so that each takes long
    folder, told = tmp_path / "run", f"after step {step}; its" if step else "before the first"
    with on_devices(1):
        with pytest.raises(Interrupted, match=told), told_in("make_train_chunk", call):
            train(experiment(), folder)
        assert not step or checkpoint_steps(folder) == [step]
        run = train(experiment(), folder)
    assert fingerprint(run.state) == fingerprint(whole.state)
    assert_same(folder, whole)


@pytest.mark.usefixtures("hasty")
@pytest.mark.slow
def test_patience_counts_a_validation_that_is_made_up(tmp_path: Path) -> None:
    """Of a run that ends with it, and of one whose best state it is."""
    patient = dataclasses.replace(
        tiny.experiment(**RUN | {"num_steps": 60}, learning_rate=0.0), patience=1
    )
    with on_devices(1):
        whole = train(patient, tmp_path / "whole")
        assert rows(tmp_path / "whole")[-1]["step"] == 40
        for call in (0, 1):
            folder = tmp_path / str(call)
            with pytest.raises(Interrupted), told_in("make_validation", call):
                train(patient, folder)
            train(patient, folder)
            assert_same(folder, whole)


# With real signals

SLOW = """
import dataclasses
import numpy as np
import optax
import tiny
from vae_jax import IWAE, Data, Experiment

def experiment(*, images: int = 100, hidden: int = 8, batch_size: int = 16) -> Experiment:
    valid = np.tile(tiny.images(100, 1), (images // 100, 1, 1, 1))
    made = tiny.experiment(num_steps=20, log_every=10, checkpoint_every=20, hidden=hidden)
    data = Data.from_arrays("bars", tiny.images(90, 0), valid, protocol="dynamic")
    return dataclasses.replace(made, data=data, objective=IWAE(50), batch_size=batch_size)
"""
VALIDATION = ("--images", 600_000)  # twenty seconds, say
STEPS = ("--hidden", 4000, "--batch-size", 4096)  # a second and more each


def begun(folder: Path, *flags: Any, **variables: Any) -> subprocess.Popen[str]:
    (folder / "slow.py").write_text(SLOW)
    variables["pythonpath"] = f"{Path(tiny.__file__).parent}:{ROOT}"
    return start(CLI, "train", "slow.py", "--workdir", "run", *flags, cwd=folder, **variables)


def told(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Sends a signal, which has to be heard in ten seconds."""
    process.send_signal(number)
    sent = time.monotonic()
    process.wait(60)
    assert time.monotonic() - sent < 10


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_real_signal_in_a_validation(count: int, tmp_path: Path) -> None:
    """Which is sent to one of the processes, and left by all of them."""
    folders = {name: tmp_path / name for name in ("whole", "left")}
    together = ("--distributed",) * (count > 1)

    def processes(name: str) -> list[subprocess.Popen[str]]:
        folders[name].mkdir(exist_ok=True)
        every = addresses(count) if count > 1 else [{}]
        return [begun(folders[name], *VALIDATION, *together, **each) for each in every]

    for process in processes("whole"):
        assert finish(process).returncode == 0
    left = processes("left")
    wait_until(lambda: last_step(folders["left"] / "run") == 10, left[0])
    time.sleep(4)  # after which ten more steps are taken
    told(left[-1], signal.SIGUSR1)
    done = [finish(process) for process in left]
    assert [each.returncode for each in done] == [128 + signal.SIGUSR1] * count, done
    assert "Stopped by SIGUSR1 after step 20; its state is saved" in done[0].stderr
    assert not [each for each in done if "Traceback" in each.stderr]
    assert checkpoint_steps(folders["left"] / "run") == [20]
    assert "loss" in rows(folders["left"] / "run")[-1]
    for process in processes("left"):
        assert finish(process).returncode == 0
    ours, theirs = (folders[name] / "run" for name in ("left", "whole"))
    assert rows(ours) == rows(theirs)
    assert summary(ours) == summary(theirs)
    assert manifests(ours) == manifests(theirs)


@pytest.mark.slow
def test_a_real_signal_in_the_first_chunk(tmp_path: Path) -> None:
    """Of ten steps, or of its compiling."""
    process = begun(tmp_path, *STEPS)
    wait_until(lambda: (tmp_path / "run" / "experiment.json").exists(), process)
    time.sleep(5)
    told(process, signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 128 + signal.SIGTERM, done
    said = "Stopped by SIGTERM before the first step. Run the same command to begin again."
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_real_signal_while_figures_are_drawn(tmp_path: Path) -> None:
    """The run is finished: it ends at once, and the same command draws them."""
    slowly = SLOW_FIGURES.replace("sleep(5)", "sleep(100)")
    process = start(("-c", slowly), "train", TINY, "--workdir", tmp_path / "run")
    wait_until(lambda: (tmp_path / "run" / "summary.json").exists(), process)
    time.sleep(1)
    told(process, signal.SIGTERM)
    assert finish(process).returncode == -signal.SIGTERM
    assert not (tmp_path / "run" / "figures").exists()
    again = finish(start(CLI, "train", TINY, "--workdir", tmp_path / "run"))
    assert again.returncode == 0
    assert (tmp_path / "run" / "figures" / "report.html").exists()
