"""Run folders: killed, stopped and full runs go on to the bytes of the run never interrupted."""

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import (
    BARE,
    CLI,
    ROOT,
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

from vae_jax import VaeJaxError, standard_figures, train
from vae_jax.cli import main
from vae_jax.errors import Interrupted
from vae_jax.interfaces import Objective
from vae_jax.run import RunFolder
from vae_jax.train import load_run, train_file

# 25 checkpoints: long enough to be killed at any moment.
ARGUMENTS = {"num_steps": 1000, "log_every": 10, "checkpoint_every": 40}


def flags(arguments: dict[str, Any]) -> list[Any]:
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in arguments.items())
    return [part for pair in pairs for part in pair]


FLAGS = flags(ARGUMENTS)


def start_bare(folder: Path, devices: int, **arguments: int) -> subprocess.Popen[str]:
    return start(BARE, TINY, folder, json.dumps(ARGUMENTS | arguments), devices=devices)


Straight = Callable[[int], Path]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """From a number of devices to the folder of the run never interrupted."""

    @cache
    def run(devices: int) -> Path:
        folder = tmp_path_factory.mktemp("straight") / "run"
        with on_devices(devices):
            train_file(TINY, folder, ARGUMENTS)
        return folder

    return run


def kill_at_random(folder: Path, devices: int, phase: str) -> None:
    """Starts the run, and kills it with SIGKILL in a phase of its life."""
    process = start_bare(folder, devices)
    if phase == "start":
        time.sleep(random.uniform(0, 2))
    else:
        done = last_step(folder)
        enough = done + random.uniform(10, (ARGUMENTS["num_steps"] - done) / 4)
        wait_until(lambda: last_step(folder) > enough, process)
    if phase == "writing":
        wait_until(lambda: any((folder / "checkpoints").glob(".partial-*")), process)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL


def assert_kills_leave_no_trace(
    straight: Straight, folder: Path, devices: int, phases: list[str]
) -> None:
    expected = straight(devices)
    for phase in phases:
        kill_at_random(folder, devices, phase)
    done = finish(start_bare(folder, devices))
    assert done.returncode == 0, done.stderr
    assert summary(folder) == summary(expected)  # with params_sha256
    assert rows(folder) == rows(expected)
    assert checkpoint_steps(folder) == checkpoint_steps(expected)


@pytest.mark.others_slow
@pytest.mark.parametrize(
    ("devices", "phases"),
    [(1, ["writing"]), (1, ["start", "training"]), (4, ["training", "writing"])],
    ids=["once", "twice", "four_devices"],
)
def test_a_killed_run_ends_as_the_run_never_killed(
    devices: int, phases: list[str], straight: Straight, tmp_path: Path
) -> None:
    assert_kills_leave_no_trace(straight, tmp_path / "run", devices, phases)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_ten_kills_at_random_moments_leave_no_trace(
    devices: int, straight: Straight, tmp_path: Path
) -> None:
    phases = random.sample(["start", "training", "writing"] * 4, 10)
    assert_kills_leave_no_trace(straight, tmp_path / "run", devices, phases)


def test_a_kill_while_the_folder_is_claimed_does_not_spoil_it(tmp_path: Path) -> None:
    (tmp_path / f".partial-{123:016x}.json").write_text('{"half')
    with on_devices(1):
        RunFolder(tmp_path).claim(tiny.experiment(), 0, 1, None)
    assert (tmp_path / "experiment.json").exists()


# Signals


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that SIGTERM stopped, started by the command `vae-jax`."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    process = start(CLI, "train", TINY, "--workdir", folder, *FLAGS)
    wait_until(lambda: last_step(folder) > 100, process)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 143, done.stderr
    step = checkpoint_steps(folder)[-1]
    assert 100 < step < 1000
    assert done.stderr.splitlines()[-1] == (
        f"Stopped by SIGTERM after step {step}; its state is saved. Run the same command to resume."
    )
    assert not (folder / "summary.json").exists()
    return folder


@pytest.fixture(scope="module")
def finished(stopped: Path) -> Path:
    """The same run, finished by the same command."""
    step = checkpoint_steps(stopped)[-1]
    (stopped / "figures").mkdir()  # as if they were drawn
    done = finish(start(CLI, "train", TINY, "--workdir", stopped, *FLAGS))
    assert done.returncode == 0, done.stderr
    assert f"Going on from step {step} of {stopped}." in done.stderr
    return stopped


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_ends_as_the_run_never_stopped(
    finished: Path, straight: Straight
) -> None:
    expected = straight(1)
    assert summary(finished) == summary(expected)
    assert rows(finished) == rows(expected)


def test_sigint_stops_and_saves_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with on_devices(1), interrupted_after(10, signal.SIGINT), pytest.raises(SystemExit) as stopped:
        main(["train", str(TINY), "--workdir", str(folder), "--num-steps", "100"])
    assert stopped.value.code == 130
    (step,) = checkpoint_steps(folder)[-1:]
    assert 10 < step < 100
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"Stopped by SIGINT after step {step}")


@pytest.mark.slow
def test_sigint_stops_a_process_in_seconds(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(CLI, "train", TINY, "--workdir", folder, *FLAGS)
    wait_until(lambda: last_step(folder) > 100, process)
    process.send_signal(signal.SIGINT)
    begun = time.perf_counter()
    done = finish(process)
    assert time.perf_counter() - begun < 10
    assert done.returncode == 130
    assert "Stopped by SIGINT after step" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_run_says_so_and_touches_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def snapshot() -> dict[Path, int]:
        paths = set(finished.rglob("*")) - {finished / ".training.lock"}  # held for a moment
        return {path: path.stat().st_mtime_ns for path in paths}

    before = snapshot()
    with on_devices(1):
        train_file(TINY, finished, ARGUMENTS)
    assert "is finished (1000 steps); there is nothing to do." in capsys.readouterr().err
    assert snapshot() == before


# A full disk: files may not grow, as root's processes cannot be kept out otherwise.


@pytest.mark.slow
def test_a_disk_that_is_full_at_a_checkpoint_is_a_sentence_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    arguments = {"num_steps": 60, "learning_rate": 1e-2, "batch_size": 16, "log_every": 5}
    arguments |= {"checkpoint_every": 20, "hidden": 1024}
    with on_devices(1), pytest.raises(Interrupted), interrupted_after(15):
        train_file(TINY, folder, arguments)

    # Orbax divides a checkpoint among files as it goes along, but not an array, and the largest has
    # 64 KB; what else is written stays below 20.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    command = ("train", TINY, "--workdir", folder, *flags(arguments), "--no-compilation-cache")
    done = finish(start(("-c", limit + CLI[1]), *command))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("vae-jax: ")]
    assert f"could not be written to {folder / 'checkpoints'}" in sentence
    assert "free some space" in sentence
    assert checkpoint_steps(folder) == [20]  # and nothing half-written

    with on_devices(1):
        train_file(TINY, folder, arguments)
        train_file(TINY, tmp_path / "straight", arguments)
    assert summary(folder) == summary(tmp_path / "straight")


# Whose folder it is


@pytest.fixture
def taken(straight: Straight, tmp_path: Path) -> Path:
    """A copy of a finished run, and its content, to see whether it is touched."""
    shutil.copytree(straight(1), tmp_path / "run")
    return tmp_path / "run"


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"arguments": ARGUMENTS | {"learning_rate": 1e-3}}, "experiment.arguments.learning_rate"),
        ({"arguments": ARGUMENTS | {"num_steps": 3500}}, "experiment.arguments.num_steps is 1000"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"num_seeds": 2}, "num_seeds is 1 there, 2 here"),
        ({"file": "changed.py"}, "data.description"),
    ],
)
def test_the_folder_of_another_run_is_refused_with_the_difference(
    change: dict[str, Any],
    difference: str,
    taken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = content(taken)
    changed = tmp_path / "changed.py"
    changed.write_text(TINY.read_text().replace('"bars"', '"bars of another brightness"'))
    command = {"file": TINY, "folder": taken, "arguments": ARGUMENTS} | change
    monkeypatch.chdir(tmp_path)
    with on_devices(1), pytest.raises(VaeJaxError, match="another experiment") as raised:
        train_file(**command)
    assert difference in str(raised.value)
    assert content(taken) == before


def test_other_data_under_the_same_name_are_refused(tmp_path: Path) -> None:
    with on_devices(1):
        RunFolder(tmp_path / "run").claim(tiny.experiment(), 0, 1, None)
        original, tiny.images = tiny.images, lambda count, seed: 255 - original(count, seed)
        try:
            with pytest.raises(VaeJaxError, match=r"data\.fingerprint"):
                train(tiny.experiment(), tmp_path / "run")
        finally:
            tiny.images = original


def test_a_folder_used_for_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with on_devices(1), pytest.raises(VaeJaxError, match="not empty and not a run folder"):
        train(tiny.experiment(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_file_managers_leave_is_no_other_use(tmp_path: Path) -> None:
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / name).touch()
    with on_devices(1):
        RunFolder(tmp_path).claim(tiny.experiment(), 0, 1, None)
    assert (tmp_path / "experiment.json").exists()


# Two processes, one folder


def test_the_second_process_in_a_run_folder_is_told_who_trains_there(tmp_path: Path) -> None:
    """Until the first one is gone, however it goes."""
    folder, arguments = tmp_path / "run", ARGUMENTS | {"checkpoint_every": 500}
    first = start(BARE, TINY, folder, json.dumps(arguments))
    wait_until(lambda: last_step(folder) > 100, first)
    first.send_signal(signal.SIGSTOP)  # so that it is still there
    with on_devices(1), pytest.raises(VaeJaxError) as raised:
        train_file(TINY, folder, arguments)
    holder = rf"process {first.pid} on \S+, since 20\S+"
    said = rf"{folder} is being trained in by {holder}: wait for its end, or choose another"
    assert re.match(said, str(raised.value))
    first.kill()
    finish(first)
    with on_devices(1):
        train_file(TINY, folder, arguments)
    assert summary(folder)["step"] == 1000


@pytest.mark.slow
def test_of_two_experiments_started_together_in_a_new_folder_one_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rates = (1e-3, 1e-2)
    arguments = [json.dumps({"num_steps": 40, "learning_rate": rate}) for rate in rates]
    processes = [start(BARE, TINY, folder, each) for each in arguments]
    done = [finish(process) for process in processes]
    assert sorted(run.returncode for run in done) == [0, 1], done
    winner = [run.returncode for run in done].index(0)
    record = json.loads((folder / "experiment.json").read_text())
    assert record["experiment"]["arguments"]["learning_rate"] == rates[winner]
    said = done[1 - winner].stderr.splitlines()[-1]
    other = (
        f"is the run of another experiment (experiment.arguments.learning_rate is {rates[winner]}"
    )
    trained = f"is being trained in by process {processes[winner].pid} on "
    assert other in said or trained in said
    alone = tmp_path / "alone"
    with on_devices(1):
        train_file(TINY, alone, json.loads(arguments[winner]))
    assert summary(folder) == summary(alone)


def test_the_record_is_written_by_one_of_many_claims(tmp_path: Path) -> None:
    """Threads that claim one folder at the same moment: one experiment has it."""
    experiments = [tiny.experiment(batch_size=size) for size in range(1, 9)]
    barrier, refused = threading.Barrier(len(experiments)), []

    def claim(experiment: Any) -> None:
        barrier.wait()
        try:
            RunFolder(tmp_path / "run").claim(experiment, 0, 1, None)
        except VaeJaxError as error:
            refused.append(str(error))

    with on_devices(1):
        threads = [threading.Thread(target=claim, args=(each,)) for each in experiments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(refused) == len(experiments) - 1
    for sentence in refused:
        assert "another experiment (batch_size" in sentence or "is being trained in by" in sentence


# What was damaged or lost


DAMAGES: dict[str, bytes | None] = {
    "lost": None,
    "empty": b"",
    "half": b'{"experiment": ',
    "encoding": b"\xff\xfe{",
    "list": b"[1]",
    "types": b'{"experiment": 3, "data": [], "num_seeds": "1", "step": "x"}',
}


def damaged(path: Path, damage: str) -> None:
    content = DAMAGES[damage]
    path.unlink() if content is None else path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_comes_back_from_its_copy(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    with on_devices(1):
        folder.claim(tiny.experiment(), 0, 1, None)
        with folder.lock():
            pass
        before = folder.record.read_bytes()
        damaged(folder.record, damage)
        with pytest.raises(VaeJaxError, match=r"another experiment \(batch_size"):
            folder.claim(tiny.experiment(batch_size=8), 0, 1, None)
        folder.claim(tiny.experiment(), 0, 1, None)
        assert "Its copy .experiment.json is used." in capsys.readouterr().err
        with folder.lock():
            pass
        assert folder.record.read_bytes() == before
        if DAMAGES[damage] is not None:  # it may have been the user's hand
            assert (folder.path / "experiment.damaged.json").read_bytes() == DAMAGES[damage]
        damaged(folder.record_copy, damage)
        with folder.lock():
            pass
    assert folder.record_copy.read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_summary_is_none(damage: str, straight: Straight, tmp_path: Path) -> None:
    shutil.copy(straight(1) / "summary.json", tmp_path)
    assert RunFolder(tmp_path).read_summary() is not None
    damaged(tmp_path / "summary.json", damage)
    assert RunFolder(tmp_path).read_summary() is None


SHORT = {"num_steps": 60, "log_every": 10, "checkpoint_every": 20}


@pytest.mark.slow
def test_a_run_goes_on_without_its_record_and_with_metrics_of_any_kind(tmp_path: Path) -> None:
    """And is finished again where its summary is damaged."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    with on_devices(1):
        train_file(TINY, whole, SHORT)
        with pytest.raises(Interrupted), interrupted_after(20):
            train_file(TINY, folder, SHORT)
        damaged(folder / "experiment.json", "half")
        lines = (folder / "metrics.jsonl").read_bytes()
        others = [b"[1]", b"3", b"null", b"\xff", b"{}", b'{"step": "1"}', b'{"step": ']
        others += [b'{"step": 1, "loss": %s}' % bad for bad in (b'"x"', b"[[1]]", b"{}")]
        (folder / "metrics.jsonl").write_bytes(b"\n".join([*others, lines, *others]))
        expected = list(map(json.loads, lines.splitlines()))
        assert RunFolder(folder).read_metrics() == expected
        train_file(TINY, folder, SHORT)
        assert rows(folder) == rows(whole)
        assert summary(folder) == summary(whole)
        damaged(folder / "summary.json", "types")
        train_file(TINY, folder, SHORT)
    assert summary(folder) == summary(whole)


def test_a_run_without_record_and_copy_is_a_sentence_that_destroys_nothing(
    straight: Straight, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight(1), folder)
    for name in ("experiment.json", ".experiment.json"):
        (folder / name).write_bytes(b"[]")
    before = content(folder)
    for function in (load_run, lambda folder: train_file(TINY, folder, ARGUMENTS)):
        with on_devices(1), pytest.raises(VaeJaxError, match=r"damaged .* Put a good copy back"):
            function(folder)
    assert content(folder) == before
    for name in ("experiment.json", ".experiment.json"):
        (folder / name).unlink()
    lost = r"no experiment\.json, .*: put it back, or choose"
    with on_devices(1), pytest.raises(VaeJaxError, match=lost):
        train_file(TINY, folder, ARGUMENTS)
    assert checkpoint_steps(folder) == checkpoint_steps(straight(1))


def test_experiment_json_says_what_the_run_is(straight: Straight) -> None:
    record = json.loads((straight(1) / "experiment.json").read_text())
    assert record["file"] == str(TINY)
    assert record["source"] == TINY.read_text()
    assert record["experiment"]["arguments"] == ARGUMENTS
    assert record["data"]["fingerprint"] == tiny.data().fingerprint
    assert "90 training, 21 validation and 21 test images" in record["data"]["description"]
    assert (record["seed"], record["num_seeds"]) == (0, 1)
    assert (record["num_steps"], record["batch_size"]) == (1000, 16)
    assert record["devices"] == {"platform": "cpu", "kind": "cpu", "devices": 1, "processes": 1}
    for package in ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "python"):
        assert record["versions"][package][0].isdigit()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode == 0:  # a release has no history
        assert len(record["git_commit"].removesuffix("+changes")) == 40


# The same bytes on GPUs


@pytest.mark.slow
def test_a_deterministic_run_is_recorded_and_does_not_go_on_as_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = "--xla_cpu_enable_xnnpack=false"
    monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr("vae_jax.standard_figures.plot_standard_figures", lambda run: [])
    command = ["train", str(TINY), "--workdir", str(tmp_path / "run"), "--num-steps", "10"]
    with on_devices(1):
        main([*command, "--deterministic"])
        record = json.loads((tmp_path / "run" / "experiment.json").read_text())
        flags = record["XLA_FLAGS"].split()
        assert flags[0] == before
        assert "--xla_gpu_deterministic_ops=true" in flags
        assert "--xla_gpu_autotune_level=0" in flags
        assert record["flags"]["XLA_FLAGS"].split() == sorted(flags[1:])

        monkeypatch.setenv("XLA_FLAGS", before)
        with pytest.raises(SystemExit):
            main(command)
    assert "is the run of another experiment (flags.XLA_FLAGS is " in capsys.readouterr().err


@pytest.mark.slow
def test_xla_knows_what_makes_it_deterministic(tmp_path: Path) -> None:
    """It would end the process at a flag that it does not know."""
    done = finish(
        start(CLI, "train", TINY, "--workdir", "run", "--deterministic", devices=2, cwd=tmp_path)
    )
    assert done.returncode == 0, done
    record = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert "--xla_gpu_deterministic_ops=true" in record["flags"]["XLA_FLAGS"]


@dataclasses.dataclass(frozen=True)
class Quiet(Objective):
    """A loss alone."""

    def __call__(self, terms: Any, step: Any, model: Any) -> Any:
        return -terms.log_px.mean(), {}


@pytest.mark.parametrize(("validates", "shown"), [(True, "negative ELBO"), (False, "loss")])
def test_figures_of_an_objective_that_reports_its_loss_alone(
    validates: bool, shown: str, tmp_path: Path
) -> None:
    experiment = dataclasses.replace(tiny.experiment(num_steps=10), objective=Quiet())
    if not validates:
        data = experiment.data
        none = dataclasses.replace(data.valid, images=data.valid.images[:0])
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(data, valid=none))
    figures = standard_figures.standard_figures(train(experiment, tmp_path))
    assert {"learning_curves", "samples"} <= figures.keys()
    assert "rate_and_distortion" not in figures
    assert figures["learning_curves"]().axes[0].get_ylabel() == f"{shown} [nats per image]"
