"""Told to stop by any signal, between two lines of metrics, a run goes on to the same bytes."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from running import CLI, TINY, checkpoint_steps, finish, on_devices, rows, start, wait_until

from vae_jax import train
from vae_jax.checkpoint import fingerprint
from vae_jax.errors import Interrupted
from vae_jax.processes import stop_signals
from vae_jax.progress import Pace, largest_divisor
from vae_jax.run import Run, RunFolder

SHORT: dict[str, Any] = {"num_steps": 40, "log_every": 20, "checkpoint_every": 20}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_signals_that_stop(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with stop_signals() as received:
        signal.raise_signal(number)
        assert received == [number]
        assert signal.getsignal(number) == before  # a second one does what it did
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("number", "most", "divisor"),
    [(100, 100, 100), (100, 1e9, 100), (100, 99, 50), (100, 0.3, 1), (97, 96, 1), (1000, 130, 125)],
)
def test_the_largest_divisor(number: int, most: float, divisor: int) -> None:
    assert largest_divisor(number, most) == divisor


def paces(longest: int, seconds_per_step: float, chunks: int = 30) -> list[int]:
    """The numbers of steps of chunks, one after another, that take so long."""
    pace, step, found = Pace(longest), 0, []
    for _ in range(chunks):
        found.append(pace.steps)
        step += pace.steps
        pace.changes(pace.steps, pace.steps * seconds_per_step, step)
        assert longest % pace.steps == 0
        assert step % pace.steps == 0, "a chunk would cross a line of metrics"
    return found


def test_chunks_are_as_long_as_a_signal_may_wait() -> None:
    assert paces(100, 1e-4) == [100] * 30  # the usual run: one program
    assert paces(40, 0.0) == [40] * 30
    assert paces(1000, 1e-3)[:3] == [100] * 3
    assert set(paces(1000, 1e-3)[10:]) == {1000}
    assert set(paces(1_000_000, 1e-3, chunks=300)[-100:]) == {5000}  # five seconds
    assert paces(100, 1.0) == [100] * 3 + [5] * 27
    assert paces(100, 20.0) == [100] * 3 + [1] * 27
    assert set(paces(97, 1.0)[3:]) == {1}  # a prime has no others
    assert paces(100, 0.06) == [100] * 30  # six seconds are not worth a compilation


def test_a_paused_process_does_not_compile_again() -> None:
    """One chunk that took a minute does not change chunks of a second; two in a row do."""
    pace = Pace(40)
    seconds = [3.0, 60.0, 1.0, 60.0, 1.0, 60.0, 60.0]
    found = [pace.changes(40, each, 40 * n) for n, each in enumerate(seconds, 1)]
    assert found == [False] * 6 + [True]
    assert pace.steps == 2


@contextlib.contextmanager
def in_chunks_of(steps: int, *, told_at: int | None = None) -> Iterator[None]:
    """Chunks of that many steps, however quick; SIGUSR1 while the one after a step runs."""

    def changes(self: Pace, steps: int, seconds: float, step: int) -> bool:
        if step == told_at:
            signal.raise_signal(signal.SIGUSR1)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae_jax.progress.FIRST_STEPS", steps)
        patch.setattr(Pace, "changes", changes)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in chunks as long as a line of metrics, never interrupted."""
    with on_devices(1):
        return train(tiny.experiment(**SHORT), tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.others_slow
@pytest.mark.parametrize(("steps", "told_at"), [(4, 8), (1, 29)])
def test_a_run_stopped_between_two_lines_goes_on_to_the_same_bytes(
    steps: int, told_at: int, whole: Run, tmp_path: Path
) -> None:
    experiment, folder = tiny.experiment(**SHORT), tmp_path / "run"
    with on_devices(1):
        with pytest.raises(Interrupted, match="SIGUSR1"), in_chunks_of(steps, told_at=told_at):
            train(experiment, folder)
        assert checkpoint_steps(folder)[-1] == told_at + steps
        assert all(row["step"] % 20 == 0 for row in rows(folder))
        run = train(experiment, folder)
    assert fingerprint(run.state) == fingerprint(whole.state)
    assert rows(folder) == rows(whole.folder.path)


def test_metrics_that_are_lost_cost_no_more_than_themselves(tmp_path: Path) -> None:
    run_folder = RunFolder(tmp_path)
    assert run_folder.read_unlogged(12) == []
    chunks: list[Any] = [{"loss": np.ones((2, 8))}, {"loss": np.zeros((2, 4))}]
    run_folder.keep_unlogged(12, chunks)
    (kept,) = run_folder.read_unlogged(12)
    np.testing.assert_array_equal(kept["loss"], np.repeat([[1, 0]], [8, 4], 1).repeat(2, 0))
    assert run_folder.read_unlogged(11) == []  # the run goes on from an older checkpoint
    whole = run_folder.unlogged.read_bytes()
    for content in (b"", b"PK\3\4 cut", b"\x93NUMPY", b"{}", whole[:-30], whole[:100]):
        run_folder.unlogged.write_bytes(content)
        assert run_folder.read_unlogged(12) == [], content


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_heard_whatever_log_every_is(name: str, tmp_path: Path) -> None:
    """A million steps between two lines."""
    number = signal.Signals[name]
    steps = ("--num-steps", 10**6, "--log-every", 10**6, "--checkpoint-every", 10**6)
    begun = start(CLI, "train", TINY, "--workdir", "run", *steps, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "run" / "experiment.json").exists(), begun)
    assert begun.stderr is not None
    with contextlib.suppress(Exception):
        begun.wait(20)  # some chunks
    begun.send_signal(number)
    begun.wait(20)
    done = finish(begun)
    assert done.returncode == 128 + number, done
    (step,) = checkpoint_steps(tmp_path / "run")
    assert 0 < step < 10**6
    assert f"Stopped by {name} after step {step}; its state is saved" in done.stderr
