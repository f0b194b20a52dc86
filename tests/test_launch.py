"""Programs of a grid in processes of their own: as many at once as asked, stopped, resumed, left.

Under Slurm they are submitit's; its local executor stands for Slurm, and interrupts as that does.
"""

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import submitit
import tiny
from running import TINY, checkpoint_steps, on_devices, summary
from submitit.core.utils import FailedJobError

from vae_jax import VaeJaxError, processes, train_grid
from vae_jax.cli import launch, main
from vae_jax.cli.flags import TrainOptions, parse
from vae_jax.grid import cells_of_flags, names_of, unfinished_programs

# A program that notes when it begins and ends, saves when it is told to stop, and then goes on.
STEPS = """
import os, signal, sys, time
from pathlib import Path
notes, seconds, status = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
def note(what):
    with notes.open("a") as file:
        file.write(f"{what} {time.monotonic()} {os.getppid()}\\n")
def stop(number, frame):
    note("saved")
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
resumed = notes.exists()
note("begun")
time.sleep(0 if resumed else seconds)
note("ended")
sys.exit(status)
"""


def program(notes: Path, seconds: float, status: int = 0) -> list[str]:
    return [sys.executable, "-c", STEPS, str(notes), str(seconds), str(status)]


def noted(notes: Path) -> list[str]:
    return [line.split()[0] for line in notes.read_text().splitlines()]


def most_at_once(files: Sequence[Path]) -> int:
    """The most programs that ran at the same time."""
    changes = []
    for file in files:
        times = dict(line.split()[:2] for line in file.read_text().splitlines())
        changes += [(float(times["begun"]), 1), (float(times["ended"]), -1)]
    running = [sum(change for _, change in sorted(changes)[: n + 1]) for n in range(len(changes))]
    return max(running)


@pytest.mark.parametrize(("jobs", "most"), [(None, 1), (2, 2)])
def test_as_many_run_at_once_as_asked(
    jobs: int | None, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "visible_gpus", lambda environment: 0)
    files = [tmp_path / str(n) for n in range(4)]
    logs = [file.with_suffix(".log") for file in files]
    launch.launch_here([program(file, 0.7) for file in files], logs, jobs)
    assert most_at_once(files) == most


def test_each_program_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many at once as there are; the names are those that this process was given."""
    monkeypatch.setattr(processes, "visible_gpus", lambda environment: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    say = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.5)"
    logs = [tmp_path / f"{n}.log" for n in range(2)]
    launch.launch_here([[sys.executable, "-c", say]] * 2, logs, None)
    assert {log.read_text().strip() for log in logs} == {"5", "GPU-7"}


def test_a_program_that_fails_stops_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / str(n) for n in range(3)]
    logs = [file.with_suffix(".log") for file in files]
    commands = [program(file, 0, status=3 * (n == 0)) for n, file in enumerate(files)]
    with pytest.raises(VaeJaxError, match="1 of the 3 programs ended too early"):
        launch.launch_here(commands, logs, 1)
    assert all(noted(file) == ["begun", "ended"] for file in files)
    assert f"ended with 3; {logs[0]} says why: give the same command" in capfd.readouterr().err


def test_a_signal_stops_what_runs_and_begins_nothing(tmp_path: Path) -> None:
    files = [tmp_path / str(n) for n in range(3)]

    def stop() -> None:
        while not files[0].exists() or not files[1].exists():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    logs = [file.with_suffix(".log") for file in files]
    with pytest.raises(SystemExit) as stopped:
        launch.launch_here([program(file, 60) for file in files], logs, 2)
    thread.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert [noted(file) for file in files[:2]] == [["begun", "saved"]] * 2
    assert not files[2].exists()


# Slurm


def test_jobs_are_submitted_as_an_array_and_requeued(tmp_path: Path) -> None:
    """Told that its time is over, a job saves, goes back into the queue, and goes on."""
    executor = submitit.LocalExecutor(tmp_path / "logs")
    files = [tmp_path / str(n) for n in range(2)]
    commands = [program(files[0], 60), program(files[1], 0, status=3)]
    jobs: Any = launch.submit(executor, commands, None, ["timeout_min=30"])
    while not (files[0].exists() and files[0].read_text().endswith("\n")):
        time.sleep(0.1)
    os.kill(int(files[0].read_text().split()[2]), signal.SIGUSR2)  # as Slurm does
    jobs[0].result()
    assert noted(files[0]) == ["begun", "saved", "begun", "ended"]
    with pytest.raises(FailedJobError, match="ended with 3"):
        jobs[1].result()


def test_parameters_of_slurm_are_submitits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda executor: 2)
    executor: Any = launch.slurm_executor(tmp_path)
    submitted: list[Any] = []
    monkeypatch.setattr(executor, "_internal_process_submissions", submitted.extend)
    launch.submit(executor, [["a"], ["b"]], 3, ["time=240", "partition=gpu"])
    assert executor.parameters == {"array_parallelism": 3, "time": 240, "partition": "gpu"}
    assert [each.args for each in submitted] == [(["a"],), (["b"],)]
    for setting, sentence in (("tme=3", "does not suit submitit"), ("time", "as name=value")):
        with pytest.raises(VaeJaxError, match=sentence) as refusal:
            launch.submit(executor, [["a"]], None, [setting])
        assert "\n" not in str(refusal.value)


def test_slurm_that_is_not_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(VaeJaxError, match=r"finds no Slurm here .* or --launch local"):
        launch.slurm_executor(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(VaeJaxError, match=r"pip install 'vae_jax\[slurm\]'"):
        launch.slurm_executor(tmp_path)


# Grids


SHORT = {"num_steps": 10, "log_every": 5, "checkpoint_every": 5}
CELLS: list[dict[str, object]] = [
    {**SHORT, "hidden": hidden, "beta": beta} for hidden in (4, 6) for beta in (0.5, 2.0)
]
FLAGS = [
    *(f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()),
    *("--hidden", "4", "6", "--beta", "0.5", "2.0"),
]


@pytest.mark.slow
def test_the_programs_of_a_grid_are_those_that_differ_in_more_than_numbers(tmp_path: Path) -> None:
    names = names_of(CELLS)
    with on_devices(1):
        assert unfinished_programs(TINY, tmp_path, CELLS) == [names[:2], names[2:]]
        assert not list(tmp_path.iterdir())
        train_grid(TINY, tmp_path, CELLS, only=names[1:3])
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:3])
        assert unfinished_programs(TINY, tmp_path, CELLS) == [names[:1], names[3:]]
        assert unfinished_programs(TINY, tmp_path, CELLS, only=names[1:]) == [names[3:]]
        more = [cell | {"learning_rate": 1.0} for cell in CELLS]
        with pytest.raises(VaeJaxError, match="another experiment"):
            unfinished_programs(TINY, tmp_path, more)
        with pytest.raises(VaeJaxError, match=r"no cell beta=7: choose among hidden=4,beta=0\.5"):
            train_grid(TINY, tmp_path, CELLS, only=["beta=7"])


@pytest.mark.parametrize(
    "typed", ["--launch=local", "--launch local --jobs 2", "--jobs=1 --launch slurm --slurm time=3"]
)
def test_commands_are_the_same_for_some_cells_alone(typed: str) -> None:
    """And start no others, with flags that fit."""
    flags = ["--num-steps", "5", "7", *typed.split()]
    (command,) = launch.commands(str(TINY), flags, [["num_steps=5", "num_steps=7"]])
    assert command[:5] == [sys.executable, "-m", "vae_jax.cli", "train", str(TINY)]
    cells = cells_of_flags(tiny.experiment, command[5:])
    defaults = TrainOptions(workdir=Path("runs"))
    parsed = [parse(tiny.experiment, "train", cell, defaults) for cell in cells]
    assert [arguments["num_steps"] for _, arguments in parsed] == [5, 7]
    options = parsed[0][0]
    assert options == dataclasses.replace(defaults, cells=("num_steps=5", "num_steps=7"))
    options.check(len(cells), distributed=False)


UNFIT = [
    (["--launch", "local"], "starts the programs of a grid, and this is a single run"),
    (["--cells", "beta=1.0"], "--cells chooses among the programs of a grid, and this is a single"),
    (["--beta", "1", "2", "--jobs", "2"], "add --launch local"),
    (["--beta", "1", "2", "--launch", "local", "--jobs", "0"], "--jobs is 0: it must be at least"),
    (["--beta", "1", "2", "--slurm", "time=3"], "add --launch slurm"),
    (["--beta", "1", "2", "--launch", "local", "--distributed"], "leave out --distributed"),
]


@pytest.mark.parametrize(("flags", "sentence"), UNFIT)
def test_flags_that_do_not_fit_are_a_sentence(
    flags: list[str], sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", str(TINY), "--workdir", str(tmp_path / "run"), *flags])
    assert ended.value.code == 2
    assert sentence in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["local", "slurm"])
def test_a_launched_grid_is_the_grid(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And given again, it starts nothing; one cell taken away, that one's program alone."""
    with on_devices(1):
        train_grid(TINY, tmp_path / "straight", CELLS)
    jobs: list[Any] = []

    def submit(*arguments: Any) -> list[Any]:
        jobs.extend(submitted(*arguments))
        return jobs

    submitted = launch.submit
    monkeypatch.setattr(launch, "slurm_executor", submitit.LocalExecutor)
    monkeypatch.setattr(launch, "submit", submit)
    monkeypatch.setattr("vae_jax.parallel.leave_to_others", lambda: None)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    settings = ["--jobs", "2"] if how == "local" else ["--slurm", "timeout_min=10"]
    command = ["train", str(TINY), *FLAGS, "--workdir", str(tmp_path / "grid"), "--launch", how]
    main([*command, *settings])
    for job in jobs:
        job.result()

    def assert_is_the_grid() -> None:
        for name in names_of(CELLS):
            own, expected = (summary(tmp_path / each / name) for each in ("grid", "straight"))
            assert own["valid_nll"] == pytest.approx(expected["valid_nll"], rel=1e-4)
            assert checkpoint_steps(tmp_path / "grid" / name) == [5, 10]

    assert_is_the_grid()
    assert "2 programs have to be run for the 4 cells" in capfd.readouterr().err
    main([*command, *settings])
    assert "0 programs have to be run for the 4 cells" in capfd.readouterr().err
    cells = [tmp_path / "grid" / name for name in names_of(CELLS)]
    lost = cells.pop(1)
    before = {file: file.stat().st_mtime_ns for cell in cells for file in cell.rglob("*")}
    shutil.rmtree(lost)
    main([*command, *settings])
    for job in jobs:
        job.result()
    assert "1 program has to be run for the 4 cells" in capfd.readouterr().err
    assert_is_the_grid()
    assert {file: file.stat().st_mtime_ns for cell in cells for file in cell.rglob("*")} == before
    record = json.loads((cells[0] / "experiment.json").read_text())
    assert record["num_steps"] == 10
