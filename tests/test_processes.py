"""Several processes: how they start, compare what they run, stop, and end when one of them does."""

import contextlib
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agreeing
import numpy as np
import pytest
import tiny
from matplotlib import image
from running import (
    BRIEF,
    ROOT,
    TINY,
    checkpoint_steps,
    finish,
    last_step,
    on_devices,
    start,
    wait_until,
)
from test_parallel import assert_same_run

from vae_jax import evaluate, load_run, sample, train
from vae_jax.checkpoint import fingerprint
from vae_jax.cli import main
from vae_jax.errors import VaeJaxError
from vae_jax.processes import Launch, meet

VERSIONS = {"jax": "1.0", "vae_jax": "2.0"}


def free_port() -> int:
    """Of those that no system gives away by itself before process 0 takes it."""
    while True:
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", random.randrange(10_000, 30_000)))
            return found.getsockname()[1]


# Meeting


class Meeting:
    """Processes, a thread each, that meet; what they said in the end, by their numbers."""

    def __init__(self, *launches: Launch, seconds: float = 0.6, versions: Any = VERSIONS):
        self.said: dict[int, str | None] = {}
        self.threads = [
            threading.Thread(target=self._run, args=(number, each, seconds, versions))
            for number, each in enumerate(launches)
        ]

    def _run(self, place: int, one: Launch, seconds: float, versions: Any) -> None:
        own = versions[place] if isinstance(versions, list) else versions
        try:
            for connection in meet(one, own, seconds).values():
                connection.close()
            self.said[place] = None
        except VaeJaxError as error:
            self.said[place] = str(error)

    def held(self, apart: float = 0.0) -> dict[int, str | None]:
        """What each said, the processes started some seconds apart."""
        for thread in self.threads:
            thread.start()
            time.sleep(apart)
        for thread in self.threads:
            thread.join()
        return self.said


def processes(*numbers: int, count: int, host: str = "127.0.0.1") -> list[Launch]:
    port = free_port()
    return [Launch(host, port, count, number) for number in numbers]


def test_processes_meet_whoever_comes_first() -> None:
    for order in ((0, 1, 2), (2, 1, 0)):
        said = Meeting(*processes(*order, count=3), seconds=10).held(apart=0.1)
        assert said == {0: None, 1: None, 2: None}


def test_a_process_that_never_comes_is_named() -> None:
    said = Meeting(*processes(0, 2, count=4)).held()
    sentence = said[0]
    assert sentence is not None
    assert "Of 4 processes 2 (number 1, 3) did not come to 127.0.0.1:" in sentence
    assert "within 0.6 s" in sentence
    assert "--start-timeout" in sentence
    assert said[1] == sentence or "Process 2 of 4 did not find the others" in str(said[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "::1", "a..b"])
def test_a_process_zero_that_is_not_there(host: str) -> None:
    said = Meeting(*processes(1, count=2, host=host)).held()
    assert "Process 1 of 2 did not find the others at " in str(said[0])
    assert "start process 0 there, give all processes its address" in str(said[0])


def test_one_process_needs_no_other() -> None:
    assert Meeting(*processes(0, count=1)).held() == {0: None}


@contextlib.contextmanager
def stranger(answer: bytes | None) -> Iterator[int]:
    """A program that listens on a port; it answers, or keeps silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        kept: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    kept.append(connection)
                    if answer is not None:
                        connection.sendall(answer)
                        connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        for connection in kept:
            connection.close()


def test_a_busy_port() -> None:
    with stranger(None) as port:
        said = Meeting(Launch("127.0.0.1", port, 2, 0)).held()
    assert f"Process 0 cannot listen on port {port} (another program has it)" in str(said[0])


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\xff\n"])
def test_an_address_at_which_another_program_answers(answer: bytes | None) -> None:
    with stranger(answer) as port:
        said = Meeting(Launch("127.0.0.1", port, 2, 1)).held()
    assert "what answers there does not say that all processes have come" in str(said[0])


def test_a_stranger_at_process_zero_is_ignored() -> None:
    first, second = processes(0, 1, count=2)
    meeting = Meeting(first, second, seconds=20)
    meeting.threads[0].start()
    for content in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\n", b'{"process": true}\n', b""):
        while True:
            try:
                visitor = socket.create_connection(("127.0.0.1", first.port))
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        visitor.sendall(content)
        visitor.close()
    meeting.threads[1].start()
    for thread in meeting.threads:
        thread.join()
    assert meeting.said == {0: None, 1: None}


def test_two_processes_of_one_number_and_two_counts() -> None:
    port = free_port()
    twice = [Launch("127.0.0.1", port, 4, number) for number in (0, 1, 1)]
    said = Meeting(*twice, seconds=5).held(apart=0.1)
    assert "Two processes were told that they are process 1 of 4" in str(said[0])
    said = Meeting(
        Launch("127.0.0.1", port, 3, 0), Launch("127.0.0.1", port, 2, 1), seconds=5
    ).held()
    assert "told that there are 2 processes, process 0 that there are 3" in str(said[0])
    assert said[1] == said[0]


def test_other_versions_are_refused_before_jax_connects_them() -> None:
    versions = [VERSIONS, VERSIONS | {"jax": "1.1"}]
    said = Meeting(*processes(0, 1, count=2), seconds=5, versions=versions).held()
    assert "Process 1 was given another run than process 0 (versions.jax is 1.1" in str(said[0])
    assert said[1] == said[0]


# Agreement


def addresses(count: int) -> list[dict[str, Any]]:
    """The variables of processes that meet at an address of their own."""
    address = f"127.0.0.1:{free_port()}"
    return [
        {
            "jax_coordinator_address": address,
            "jax_num_processes": count,
            "jax_process_id": number,
        }
        for number in range(count)
    ]


DIFFERENCES = {
    "the same": None,
    "learning rate": "(arguments.learning_rate is 0.1 instead of 0.01)",
    "steps": "(arguments.num_steps is 80 instead of 40)",
    "lines of metrics": "(log_every is 10 instead of 5)",
    "seed": "(seed is 1 instead of 0)",
    "seeds": "(num_seeds is 2 instead of 1)",
    "objective": "objective",
    "optimizer": "optimizer",
    "own code": "optimizer",
    "data": "data.fingerprint is ",
    "file or Python": "arguments",
    "jax": "versions.jax is 0.1.2 instead of ",
    "vae_jax": "versions.vae_jax is 9.9 instead of ",
    "devices": "(devices.number is 7 instead of 2)",
    "TF32": "(flags.NVIDIA_TF32_OVERRIDE is 0 instead of None)",
    "the same again": None,
}


def test_processes_that_were_given_different_runs_say_what_differs() -> None:
    assert DIFFERENCES.keys() == agreeing.CASES.keys()
    begun = [start((agreeing.__file__,), devices=2, **variables) for variables in addresses(2)]
    done = [finish(process) for process in begun]
    assert [process.returncode for process in done] == [0, 0], done
    assert "2 processes \N{MULTIPLICATION SIGN} 2 devices (cpu)\n" in done[0].stderr
    first, second = ([json.loads(line) for line in each.stdout.splitlines()] for each in done)
    assert first == second
    said = dict(first)
    for case, expected in DIFFERENCES.items():
        if expected is None:
            assert said[case] is None, case
        else:
            assert said[case].startswith("Process 1 was given another run than process 0 ("), (
                case,
                said[case],
            )
            assert expected in said[case]
            assert said[case].endswith("with the same command, files and packages.")


# Training


def start_two(
    folders: tuple[Path, Path], streamed: bool = False, second: tuple[Any, ...] = ()
) -> list[subprocess.Popen[str]]:
    """`vae-jax train --distributed` in two processes of two devices, each in its own folder.

    Args:
        folders: the folders.
        streamed: whether they read images batch by batch.
        second: further flags of process 1.
    """
    return [
        start(
            BRIEF,
            *("train", TINY, "--distributed", "--workdir", "run", "--num-steps", 100),
            *("--streamed", streamed),
            *second * number,
            devices=2,
            cwd=folder,
            **variables,
        )
        for number, (folder, variables) in enumerate(zip(folders, addresses(2), strict=True))
    ]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder for each of two processes."""
    made = tmp_path / "0", tmp_path / "1"
    for folder in made:
        folder.mkdir()
    return made


def test_two_processes_train_stop_together_and_go_on(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    workdir = folders[0] / "run"

    first, second = start_two(folders)
    wait_until(lambda: last_step(workdir), first)
    second.send_signal(signal.SIGTERM)  # only one of them is told
    stopped = [finish(process) for process in (first, second)]
    assert [process.returncode for process in stopped] == [143, 143], stopped
    (step,) = checkpoint_steps(workdir)[-1:]
    assert step < 100

    done = [finish(process) for process in start_two(folders)]
    assert [process.returncode for process in done] == [0, 0], done
    assert f"Going on from step {step}" in done[0].stderr
    assert (workdir / "figures" / "samples.png").exists()  # when the other has left
    assert (workdir / "figures" / "report.html").exists()
    assert not [path for path in folders[1].rglob("*") if path.is_file()], "process 1 wrote"
    with on_devices(4):
        expected = train(tiny.experiment(num_steps=100), tmp_path / "one_process")
    assert_same_run(load_run(workdir), expected)


# Counts the bytes that processes send each other, in a run, where it is resumed, and where it is
# opened to be evaluated.
COUNTED = """
import json, sys
import jax, numpy as np, tiny
from jax.experimental import multihost_utils
from vae_jax import parallel, train
from vae_jax.processes import together
from vae_jax.run import load_together

counts = {"broadcast_one_to_all": [], "process_allgather": []}

def counted(name):
    send = getattr(multihost_utils, name)
    def sending(tree, *arguments, **more):
        counts[name].append(sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree)))
        return send(tree, *arguments, **more)
    setattr(multihost_utils, name, sending)

for name in counts:
    counted(name)
with together({}, start_timeout=100):
    odd = np.array([0x80000000, 0x7FC00001, 1, 0x3F800000], np.uint32).view(np.float32)
    for array in (odd, odd[::2], odd[0], odd.reshape(2, 2).T, np.array([True, False])):
        like = jax.ShapeDtypeStruct(array.shape, array.dtype)
        found = parallel.from_main_process(array if parallel.is_main_process() else like)
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        assert found.tobytes() == array.tobytes(), (found, array)
    for opened in ("begun", "resumed", "evaluated"):
        for sent in counts.values():
            sent.clear()
        if opened == "evaluated":
            run = load_together(sys.argv[2])
            step = run.state.step, run.state.skipped, run.state.skipped_in_a_row
            needed = run.variables, step
        else:
            needed = train(tiny.experiment(num_steps=20, hidden=64), sys.argv[1]).state
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(needed))
        most = max(counts["process_allgather"], default=0)
        print(json.dumps([size, sum(counts["broadcast_one_to_all"]), most]), flush=True)
"""


@pytest.mark.slow
def test_a_state_is_sent_once_when_it_is_begun_or_read_and_never_to_be_saved(
    folders: tuple[Path, Path],
) -> None:
    """To the bit, also -0.0, to which a sum with other processes' zeros would give another sign.

    Process 1 reads no checkpoint: its folder has none. Evaluation gets the variables alone, of a
    state that has Adam's moments and a running average.
    """
    begun = [
        start(
            ("-c", COUNTED),
            folder / "run",
            folders[0] / "run",
            devices=2,
            pythonpath=f"{ROOT}:{ROOT / 'tests'}",
            **variables,
        )
        for folder, variables in zip(folders, addresses(2), strict=True)
    ]
    for done in map(finish, begun):
        assert done.returncode == 0, done
        lines = [json.loads(line) for line in done.stdout.splitlines() if re.match(r"\[\d", line)]
        for size, sent, gathered in lines:
            assert sent == size > 10_000
            assert gathered < 1_000  # numbers of steps, and two for each image of a validation
        trained, resumed, evaluated = (size for size, *_ in lines)
        assert trained == resumed > 3.9 * evaluated
    assert not [path for path in folders[1].rglob("*") if path.is_file()]


# Hashes slowly, so that both processes come at once, and notes what is hashed.
HASHED = """
import os, time
from vae_jax import standard_figures, storage
from vae_jax.cli import main
from vae_jax.data import datasets

def noted(function, name):
    def slowly(given):
        with open(os.environ["LOG"], "a") as log:
            log.write(f"{os.getpid()} {name(given)}\\n")
        time.sleep(1)
        return function(given)
    return slowly

storage._entry = noted(storage._entry, lambda path: path.name)
datasets._fingerprint = noted(datasets._fingerprint, lambda splits: "splits")
standard_figures.standard_figures = lambda run: {}
main()
"""
OF_DIGITS = """
import dataclasses
import tiny
from vae_jax import load

def experiment():
    model = tiny.model().clone(image_shape=(28, 28, 1))
    return dataclasses.replace(tiny.experiment(num_steps=5), data=load("mnist_5k"), model=model)
"""


@pytest.mark.slow
def test_of_two_processes_that_load_data_one_hashes_them(data_dir: Path, tmp_path: Path) -> None:
    """Data that nobody has verified; the other waits for the result, and neither fails."""
    cached = tmp_path / "data" / "mnist_5k" / "vae_jax"
    shutil.copytree(data_dir / "mnist_5k" / "vae_jax", cached)
    for note in cached.glob(".*"):
        note.unlink()
    (tmp_path / "digits.py").write_text(OF_DIGITS)
    begun = [
        start(
            ("-c", HASHED),
            *("train", "digits.py", "--distributed", "--workdir", "run"),
            cwd=tmp_path,
            log=tmp_path / "log",
            vae_jax_data_dir=tmp_path / "data",
            pythonpath=f"{ROOT}:{ROOT / 'tests'}",
            **variables,
        )
        for variables in addresses(2)
    ]
    done = [finish(process) for process in begun]
    assert [process.returncode for process in done] == [0, 0], done
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    hashed = [name for _, name in lines if name.endswith(".npy") or name == "splits"]
    assert sorted(hashed) == sorted([*(path.name for path in cached.glob("*.npy")), "splits"])
    assert (tmp_path / "run" / "summary.json").exists()


# Of two machines, one has memory for next to nothing.
UNLIKE = """
import json, sys
import numpy as np, tiny
from vae_jax import parallel, train
from vae_jax.checkpoint import fingerprint
from vae_jax.cpu import platform
from vae_jax.processes import together

platform.floats_at_once = lambda most: most  # as an accelerator's memory allows
training = sys.modules["vae_jax.train"]
chunks, streamed = training.chunks_of_batches, []
def noted(experiment, layout, seeds, step, is_streamed, longest):
    streamed.append(is_streamed)
    return chunks(experiment, layout, seeds, step, is_streamed, longest)
training.chunks_of_batches = noted
with together({}, start_timeout=100):
    memory = 2**40 if parallel.is_main_process() else 4_000
    parallel.device_memory = lambda: memory
    experiment = tiny.experiment(num_steps=20)
    own = training.is_streamed(experiment.data)
    run = train(experiment, sys.argv[1])
    pictures = [fingerprint(run.sample(num)) for num in (3, 12, 5)]
    same = [len(run.sample(12)), fingerprint(run.state), *pictures]
print(json.dumps([own, streamed[0], same]))
"""


@pytest.mark.slow
def test_processes_of_unlike_memory_choose_alike(folders: tuple[Path, Path]) -> None:
    """Where one can hold neither the images nor more than one picture, none does."""
    begun = [
        start(
            ("-c", UNLIKE),
            folder / "run",
            devices=2,
            pythonpath=f"{ROOT}:{ROOT / 'tests'}",
            **variables,
        )
        for folder, variables in zip(folders, addresses(2), strict=True)
    ]
    done = [finish(process) for process in begun]
    assert [process.returncode for process in done] == [0, 0], done
    first, second = (json.loads(process.stdout.splitlines()[-1]) for process in done)
    assert (first[0], second[0]) == (False, True)
    assert first[1:] == second[1:]
    assert first[1] is True


@pytest.mark.slow
def test_two_processes_evaluate_and_draw_together(folders: tuple[Path, Path]) -> None:
    """Numbers and pictures are those of one process; process 0 alone writes and prints them.

    It alone reads the checkpoint, which the folder of process 1 lacks.
    """
    tmp_path, other = folders
    with on_devices(4):
        run = train(tiny.experiment(), tmp_path / "run")
        alone = evaluate(run, num_samples=5)
        drawn = sample(run, num=6)
        main(["reconstruct", str(tmp_path / "run"), "--num", "6", "--out", str(tmp_path / "a.png")])
    shutil.copytree(tmp_path / "run", other / "run", ignore=lambda *_: ["checkpoints"])
    copied = sorted(other.rglob("*"))
    for command in (
        ("evaluate", "--num-samples", 5),
        ("sample", "--num", 6, "--out", "s{}.png"),
        ("reconstruct", "--num", 6, "--out", "r.png"),
    ):
        name, *flags = command
        begun = [
            start(BRIEF, name, "run", *flags, "--distributed", devices=2, cwd=folder, **variables)
            for folder, variables in zip(folders, addresses(2), strict=True)
        ]
        done = [finish(process) for process in begun]
        assert [process.returncode for process in done] == [0, 0], done
        assert "Gloo" in done[1].stdout or not done[1].stdout
    (entry,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert entry["mean"]["nll"] == pytest.approx(float(alone.mean["nll"][0]), rel=1e-5)
    assert len(list(tmp_path.glob("s*.png"))) == len(drawn) == 6
    one, both = (image.imread(tmp_path / name) for name in ("a.png", "r.png"))
    np.testing.assert_allclose(both, one, atol=2 / 255)
    assert sorted(other.rglob("*")) == copied


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_process_is_killed_the_other_ends_and_both_go_on(
    killed: int, tmp_path: Path
) -> None:
    """SIGKILL after a checkpoint: the other says so in ten seconds; the same bytes at the end."""
    runs = {}
    for name in ("whole", "killed"):
        runs[name] = tmp_path / name / "0", tmp_path / name / "1"
        for folder in runs[name]:
            folder.mkdir(parents=True)
    workdir = runs["killed"][0] / "run"

    streamed = killed == 1  # the program of streamed images rounds otherwise in two processes
    processes = start_two(runs["killed"], streamed)
    wait_until(lambda: (workdir / "checkpoints" / "10").exists(), processes[0])
    processes[killed].kill()
    begun = time.monotonic()
    survivor = finish(processes[1 - killed])
    assert time.monotonic() - begun < 10
    assert survivor.returncode == 1, survivor
    assert f"vae-jax: Process {killed} of this run has died" in survivor.stderr
    finish(processes[killed])
    assert not (workdir / "summary.json").exists()

    for folders in runs.values():
        done = [finish(process) for process in start_two(folders, streamed)]
        assert [process.returncode for process in done] == [0, 0], done
    whole, resumed = (load_run(folders[0] / "run") for folders in runs.values())
    assert fingerprint(resumed.state) == fingerprint(whole.state)


@pytest.mark.slow
def test_when_one_process_fails_the_other_ends(folders: tuple[Path, Path]) -> None:
    """Process 0 cannot write its run folder: its own sentence, and no waiting in process 1."""
    (folders[0] / "run").write_text("a file")
    first, second = map(finish, start_two(folders))
    assert first.returncode == 2, first
    assert "run" in first.stderr.splitlines()[-1]
    assert second.returncode == 1, second
    assert "vae-jax: Process 0 of this run has died" in second.stderr


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--learning-rate", 0.1), ("--num-steps", 50)])
def test_processes_of_two_runs_end_before_anything_is_written(
    flags: tuple[Any, ...], folders: tuple[Path, Path]
) -> None:
    for done in map(finish, start_two(folders, second=flags)):
        assert done.returncode == 2, done
        assert "vae-jax: Process 1 was given another run than process 0 (arguments." in done.stderr
    assert not [path for folder in folders for path in folder.rglob("*")]


# Plots for longer than the others would wait for process 0 in JAX's own goodbye.
SLOW_FIGURES = """
import time
from vae_jax import cli, standard_figures
plot = standard_figures.plot_standard_figures
def slowly(run):
    time.sleep(5)
    return plot(run)
standard_figures.plot_standard_figures = slowly
cli.main()
"""


@pytest.mark.slow
def test_the_others_do_not_wait_for_figures(tmp_path: Path) -> None:
    begun = [
        start(
            ("-c", SLOW_FIGURES),
            *("train", TINY, "--distributed", "--workdir", tmp_path / "run", "--num-steps", 10),
            *("--shutdown-timeout", 2),
            devices=2,
            **variables,
        )
        for variables in addresses(2)
    ]
    second = finish(begun[1])
    assert not (tmp_path / "run" / "figures").exists()
    first = finish(begun[0])
    assert (first.returncode, second.returncode) == (0, 0), (first, second)
    assert (tmp_path / "run" / "figures" / "samples.png").exists()


# Process 1 prepares its data for ever.
WAITING = """
import os, sys, time
from vae_jax import parallel
from vae_jax.processes import agree, together
with together({}, start_timeout=100, heartbeat_timeout=int(sys.argv[1])):
    print("together", flush=True)
    if parallel.is_main_process():
        agree({})
    time.sleep(100)
"""


@pytest.mark.slow
def test_a_process_that_waits_for_another_can_be_stopped() -> None:
    """JAX's own notice of preemption would take the signal."""
    begun = [start(("-c", WAITING), 100, **variables) for variables in addresses(2)]
    for process in begun:
        assert process.stdout is not None
        assert process.stdout.readline() == "together\n"
    time.sleep(1)
    begun[0].send_signal(signal.SIGTERM)
    first, second = map(finish, begun)
    assert first.returncode == -signal.SIGTERM
    assert second.returncode == 1, second
    assert "vae-jax: Process 0 of this run has died" in second.stderr


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1, 2])
def test_all_that_wait_say_which_process_has_died(killed: int) -> None:
    begun = [start(("-c", WAITING), 100, **variables) for variables in addresses(3)]
    for process in begun:
        assert process.stdout is not None
        assert process.stdout.readline() == "together\n"
    begun[killed].kill()
    for number, done in enumerate(map(finish, begun)):
        if number != killed:
            assert done.returncode == 1, done
            assert f"vae-jax: Process {killed} of this run has died" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("hung", [0, 1])
def test_all_end_when_one_process_hangs(hung: int) -> None:
    """Stopped by a signal: its machine goes on to answer for its connections."""
    begun = [start(("-c", WAITING), 4, **variables) for variables in addresses(3)]
    for process in begun:
        assert process.stdout is not None
        assert process.stdout.readline() == "together\n"
    begun[hung].send_signal(signal.SIGSTOP)
    since = time.monotonic()
    others = [finish(process) for number, process in enumerate(begun) if number != hung]
    assert time.monotonic() - since < 8
    begun[hung].kill()
    finish(begun[hung])
    for done in others:
        assert done.returncode == 1, done
        said = f"vae-jax: Process {hung} of this run has shown no sign of life for 4 s"
        assert said in done.stderr
        assert "stack trace" not in done.stderr


# An experiment whose data one process prepares for longer than all times that are waited.
SLOWLY = """
import os, time
import tiny

def experiment():
    until = time.monotonic() + 10 * (os.environ["JAX_PROCESS_ID"] == os.environ["SLOW"])
    while time.monotonic() < until:  # as busy as Python can be
        pass
    return tiny.experiment(num_steps=10)
"""


@pytest.mark.slow
@pytest.mark.parametrize("slow", [0, 1])
def test_the_others_wait_for_a_process_that_prepares_its_data(slow: int, tmp_path: Path) -> None:
    (tmp_path / "slowly.py").write_text(SLOWLY)
    begun = [
        start(
            BRIEF,
            *("train", "slowly.py", "--distributed", "--start-timeout", 8),
            *("--heartbeat-timeout", 4, "--shutdown-timeout", 4),
            cwd=tmp_path,
            pythonpath=f"{ROOT}:{ROOT / 'tests'}",
            slow=slow,
            **variables,
        )
        for variables in addresses(2)
    ]
    done = [finish(process) for process in begun]
    assert [process.returncode for process in done] == [0, 0], done
    assert (tmp_path / "runs" / "slowly" / "summary.json").exists()


# What JAX does by itself, for which this package's own code stands.
BY_JAX = """
import os, sys, time, jax
number = int(os.environ["JAX_PROCESS_ID"])
jax.distributed.initialize(
    os.environ["JAX_COORDINATOR_ADDRESS"], 2, number, cluster_detection_method="deactivate",
    initialization_timeout=2, heartbeat_timeout_seconds=3,
)
print("together", flush=True)
time.sleep(30)
"""


def two_by_jax(program: str) -> list[subprocess.Popen[str]]:
    """Two processes that JAX has connected."""
    begun = [start(("-c", program), **variables) for variables in addresses(2)]
    for process in begun:
        assert process.stdout is not None
        assert process.stdout.readline() == "together\n"
    return begun


@pytest.mark.slow
def test_jax_alone_ends_processes_by_an_abort_and_keeps_sigterm_to_itself() -> None:
    """Where this fails, JAX may have learned what `meet`, `together` and `stop_signals` do."""
    alone, *_ = (start(("-c", BY_JAX), **variables) for variables in addresses(2)[:1])
    done = finish(alone)
    assert done.returncode == -signal.SIGABRT
    assert "Check failure stack trace" in done.stderr

    for number in (signal.SIGKILL, signal.SIGSTOP):  # it dies, or it hangs
        begun = two_by_jax(BY_JAX)
        begun[0].send_signal(signal.SIGTERM)
        time.sleep(1)
        assert begun[0].poll() is None
        begun[1].send_signal(number)
        survivor = finish(begun[0])
        begun[1].kill()
        finish(begun[1])
        assert survivor.returncode == -signal.SIGABRT
        assert "Check failure stack trace" in survivor.stderr


# The processes stop after the same step, by JAX's own agreement.
BY_SYNC_POINTS = BY_JAX.replace(
    "time.sleep(30)",
    """
from jax.experimental.multihost_utils import reached_preemption_sync_point
for step in range(100_000):
    if reached_preemption_sync_point(step):
        print(step)
        break
    time.sleep(0.001)
""",
)


@pytest.mark.slow
def test_jaxs_sync_point_hears_of_sigterm_alone() -> None:
    """Not of what schedulers send before a time limit, for which there is `stop_signals`."""
    begun = two_by_jax(BY_SYNC_POINTS)
    begun[0].send_signal(signal.SIGTERM)
    done = [finish(process) for process in begun]
    assert [process.returncode for process in done] == [0, 0], done
    assert done[0].stdout == done[1].stdout != ""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        begun = two_by_jax(BY_SYNC_POINTS)
        begun[0].send_signal(number)
        told = finish(begun[0])
        begun[1].kill()
        assert (told.returncode, told.stdout, finish(begun[1]).stdout) == (-number, "", "")
