"""Unlucky ends: skipped steps, files of others beside ours, and what surrounds a process."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from running import (
    CLI,
    ROOT,
    TINY,
    checkpoint_steps,
    finish,
    has_ended,
    on_devices,
    start,
    wait_until,
)
from unlucky import changed, data, some_slow

from vae_jax import ELBO, VaeJaxError, train
from vae_jax.checkpoint import Checkpoints
from vae_jax.errors import Interrupted
from vae_jax.progress import Counter, Progress
from vae_jax.run import RunFolder
from vae_jax.train import load_run

pytestmark = pytest.mark.hostile


@pytest.fixture(autouse=True)
def one_device() -> Iterator[None]:
    with on_devices(1):
        yield


# Steps that were skipped

FINITE: dict[str, tuple[str, list[float | None], list[int], list[int]]] = {
    # what the states are (good, skipped), validations, kept of the latest 2, then after giving up
    "no validation": ("ggsss", [None] * 5, [20, 40, 50], [20]),
    "validated": ("ggsss", [3.0, 4.0, None, None, None], [10, 20, 40, 50], [10, 20]),
    "all good": ("ggggg", [None] * 5, [40, 50], [40, 50]),
    "the latest good": ("gsssg", [None] * 5, [40, 50], [40, 50]),
    "one before": ("gggsg", [None] * 5, [40, 50], [40, 50]),
    "one after": ("ggggs", [None] * 5, [40, 50], [40]),
    "none good": ("sssss", [None] * 5, [40, 50], [40, 50]),
    "best is skipped": ("ggsss", [3.0, 3.0, 1.0, 2.0, 2.0], [20, 30, 40, 50], [20]),
}


@pytest.mark.parametrize("situation", FINITE)
def test_the_last_good_state_stays(situation: str, tmp_path: Path) -> None:
    states, validations, kept, left = FINITE[situation]
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        for number, (each, validation) in enumerate(zip(states, validations, strict=True), start=1):
            state = {"step": np.asarray(10 * number), "params": np.zeros(3)}
            checkpoints.save(10 * number, state, validation, finite=each == "g")
        checkpoints.wait()
        assert checkpoint_steps(tmp_path) == kept
        good = checkpoints.back_to_finite()
    assert good == (None if "g" not in states else 10 * (states.rindex("g") + 1))
    assert checkpoint_steps(tmp_path) == left


@dataclasses.dataclass(frozen=True)
class Diverging(ELBO):
    """The ELBO, and NaN from a step on."""

    first: int = 25

    def __call__(self, terms: Any, step: Any, model: Any) -> Any:
        loss, metrics = super().__call__(terms, step, model)
        return jnp.where(step >= self.first, jnp.nan, 1.0) * loss, metrics


@pytest.mark.parametrize(
    ("first", "said", "left"),
    [
        (25, "the checkpoint of step 20, before they began, stays in", [20]),
        pytest.param(0, "no checkpoint is from before them", [40, 50], marks=pytest.mark.slow),
    ],
)
def test_divergence_without_validation_leaves_the_good_state(
    first: int, said: str, left: list[int], tmp_path: Path
) -> None:
    diverging = changed(
        objective=Diverging(first=first),
        data=data(valid=None, test=None, labels=None),
        num_steps=100,
        max_nonfinite=35 if first else 60,
    )
    for _ in range(2):  # the same command again ends the same way
        with pytest.raises(VaeJaxError, match="were not finite in the") as raised:
            train(diverging, tmp_path / "run")
        assert said in str(raised.value)
        assert checkpoint_steps(tmp_path / "run") == left
    lines = RunFolder(tmp_path / "run").read_metrics()
    assert lines[-1]["step"] == 60  # what it was like is logged
    run = load_run(tmp_path / "run", experiment=diverging)
    assert run.state.step == [left[-1]]


def test_a_signal_while_steps_are_skipped_loses_neither_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunFolder.append_metrics

    def and_stop(self: RunFolder, line: dict[str, Any]) -> None:
        append(self, line)
        if line["step"] == 40:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "append_metrics", and_stop)
    diverging = changed(
        objective=Diverging(), data=data(valid=None, labels=None), num_steps=100, keep_checkpoints=1
    )
    with pytest.raises(Interrupted):
        train(diverging, tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run")[0] == 20
    assert checkpoint_steps(tmp_path / "run")[-1] > 40


# Nothing is deleted that is not ours

FOREIGN = ["40.bak", "best", "notes.txt", "10.old/a", "07/a", "1e3/a", "²/a", "-1/a", ".git/a"]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_beside_checkpoints_stays(name: str, tmp_path: Path) -> None:
    mine = tmp_path / "checkpoints" / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    with Checkpoints(tmp_path / "checkpoints", 1) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, {"a": np.asarray(step)}, None)
        checkpoints.wait()
        checkpoints.clean_up(30)
        assert checkpoints.steps() == [30]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "notes.txt", "d/.DS_Store"])
def test_what_is_in_a_checkpoint_neither_damages_it_nor_goes(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, 1) as checkpoints:
        checkpoints.save(10, {"a": np.asarray(10)}, None)
        checkpoints.wait()
        (folder / "10" / name).write_text("mine")
        state, warnings = checkpoints.restore({"a": np.asarray(0)}) or pytest.fail("nothing")
        assert (state["a"], warnings) == (10, [])
        checkpoints.save(20, {"a": np.asarray(20)}, None)
        checkpoints.wait()
    left = list(folder.rglob(Path(name).name))
    assert bool(left) == (name == "notes.txt")


# Environment


def test_training_in_a_thread(tmp_path: Path) -> None:
    found: list[Any] = []

    def work() -> None:
        try:
            with on_devices(1):
                found.append(train(changed(num_steps=10), tmp_path / "run").state.step)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[10]]


STREAMS: dict[str, Any] = {"None": None, "closed": "closed", "reader gone": "gone"}


@pytest.mark.parametrize("stream", STREAMS)
def test_progress_goes_on_where_nobody_reads_it(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = os.pipe()
    os.close(theirs)
    file = open(ours, "w", buffering=1)  # noqa: SIM115
    if stream == "closed":
        with contextlib.suppress(OSError):
            file.close()
    monkeypatch.setattr(sys, "stderr", None if stream == "None" else file)
    with Progress(20, 8) as progress:
        progress.say("Going on.")
        progress.update(20, 1.0)
    with Counter("Preparing") as counter:
        counter.update(1, 2)
    monkeypatch.undo()
    with contextlib.suppress(OSError):
        file.close()


class Environment(NamedTuple):
    """A command in a shell, in an environment; what it says and its exit code."""

    shell: str
    sentence: str
    code: int = 0
    environment: Mapping[str, str] = MappingProxyType({})


ENVIRONMENTS = {
    "as a module": Environment("{python} -m vae_jax.cli export {run} --out {out}", ""),
    "stdout closed": Environment("{vae_jax} export {run} --out {out} >&-", ""),
    "stderr closed": Environment("{vae_jax} export {run} --out {out} 2>&-", ""),
    "both closed": Environment("{vae_jax} export {run} --out {out} >&- 2>&-", ""),
    "all closed": Environment("{vae_jax} export {run} --out {out} <&- >&- 2>&-", ""),
    "a sentence without stderr": Environment("{vae_jax} export nothing --out {out} 2>&-", "", 2),
    "another locale": Environment(
        "{vae_jax} export {run} --out {out}", "", 0, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    ),
    "a sentence in another locale": Environment(
        "{vae_jax} export 科幻 --out {out}",
        r"vae-jax: \u79d1\u5e7b has no latest checkpoint",
        2,
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    ),
    "no such device": Environment(
        "{vae_jax} evaluate {run} --num-samples 2",
        "vae-jax: JAX finds no device (JAX_PLATFORMS is cuda): set JAX_PLATFORMS=cpu",
        2,
        {"JAX_PLATFORMS": "cuda"},
    ),
    "training without a device": Environment(
        "{vae_jax} train {tiny} --workdir {out}.run",
        "JAX finds no device (JAX_PLATFORMS is nonsense)",
        2,
        {"JAX_PLATFORMS": "nonsense"},
    ),
    "no home": Environment(
        "unset HOME; {nobody} data list",
        "~/tensorflow_datasets is in a home folder, and this account has none: set HOME, or name",
        2,
    ),
    "no home, no need of one": Environment(
        "unset HOME; {nobody} data list --data-dir /tmp", "mnist_5k"
    ),
    "no home, a file": Environment(
        "unset HOME; {nobody} evaluate {run} --num-samples 2", "negative ELBO"
    ),
    "no home, training": Environment(
        "unset HOME; {nobody} train {tiny} --num-steps 10 --workdir {out}.new", "samples.png"
    ),
}
# An account that has no entry in the table of accounts.
NOBODY = """
import pwd
def nobody(_):
    raise KeyError
pwd.getpwuid = pwd.getpwnam = nobody
from vae_jax.cli import main
main()
"""


@pytest.mark.others_slow
@pytest.mark.parametrize("situation", some_slow(ENVIRONMENTS, quick=["all closed", "no home"]))
def test_an_environment_is_no_reason_to_fail(situation: str, copied: Path, tmp_path: Path) -> None:
    shell, sentence, code, environment = ENVIRONMENTS[situation]
    out = tmp_path / ("科幻.npz" if "locale" in situation else "model.npz")
    python = sys.executable
    names = {"python": python, "vae_jax": f"{python} {CLI[0]} '{CLI[1]}'", "run": copied}
    names |= {"out": out, "tiny": TINY, "nobody": f"{python} -c '{NOBODY}'"}
    done = subprocess.run(
        ["sh", "-c", shell.format(**names)],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        | dict(environment),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == code, done
    assert sentence in done.stdout + done.stderr, done
    assert "Traceback" not in done.stderr
    if "export {run}" in shell:
        with np.load(out) as arrays:
            assert len(arrays) == 10
    assert not (tmp_path / "model.npz.run").exists()


def test_pictures_in_folders_deeper_than_the_stack(tmp_path: Path) -> None:
    from vae_jax.data.folder import Files

    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1300):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(os.open("a.png", os.O_CREAT, dir_fd=here))
    os.close(here)
    (tmp_path / "d" / "link").symlink_to(tmp_path)  # which has no end
    assert [name.count("/") for name in Files.of(tmp_path).names] == [1300]
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # pytest's own way recurses


BENCHMARK = """
import sys
sys.path.insert(0, sys.argv[1])
import benchmark, works
from pathlib import Path
benchmark.everything = lambda: [works.Work("one", [works.Contender("a", [sys.argv[2]], 1)], [])]
benchmark.main(peers=Path(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("number", "lines"),
    [
        (signal.SIGTERM, 0),
        *(
            pytest.param(number, lines, marks=pytest.mark.slow)
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
            for lines in (0, 3)
        ),
    ],
)
def test_an_interrupted_benchmark_leaves_no_process(
    number: signal.Signals, lines: int, tmp_path: Path
) -> None:
    contender = tmp_path / "contender.py"
    contender.write_text(
        "import os, time, json\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        f"for step in range({lines}):\n"
        "    print(json.dumps({'step': step, 'time': time.time()}), flush=True)\n"
        "time.sleep(300)\n"
    )
    process = start(("-c", BENCHMARK), ROOT / "scripts", contender, tmp_path)
    wait_until(lambda: (tmp_path / "pid").read_text(), process)
    process.send_signal(number)
    assert finish(process).returncode != 0
    wait_until(lambda: has_ended((tmp_path / "pid").read_text()))
