"""What one process finds out and tells the others, so that they need not look: a folder's files."""

import itertools
import json
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jax._src import distributed
from jax.errors import JaxRuntimeError
from PIL import Image
from running import CLI, ROOT, finish, start
from test_processes import addresses

from vae_jax.processes import agreement, signals
from vae_jax.processes.agreement import told_by_main
from vae_jax.processes.signals import Left, unless_stopped


class Store(dict[str, str]):
    """JAX's store of keys and values, of one process."""

    def key_value_set(self, key: str, value: str) -> None:
        if key in self:
            raise JaxRuntimeError(f"ALREADY_EXISTS: {key}")
        self[key] = value

    def key_value_try_get(self, key: str) -> str:
        if key not in self:
            raise JaxRuntimeError(f"NOT_FOUND: {key}")
        return self[key]

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        if key not in self:
            raise JaxRuntimeError("DEADLINE_EXCEEDED: nobody has set it")
        return self[key]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """That of two processes, of which this is process 1 first."""
    made = Store()
    state = SimpleNamespace(client=made, num_processes=2, process_id=1)
    monkeypatch.setattr(distributed, "global_state", state)
    monkeypatch.setattr(agreement, "_tellings", iter([0, 0, 1, 1]))
    monkeypatch.setattr(agreement, "_round", 3)
    return made


def test_the_others_are_told(store: Store) -> None:
    distributed.global_state.process_id = 0
    assert told_by_main(lambda: "found") == "found"
    distributed.global_state.process_id = 1
    assert told_by_main(lambda: "not called") == "found"
    store["vae_jax/agreement/2/content"] = "of the round before"
    store["vae_jax/agreement/3/content"] = "process 0 does not look"
    assert told_by_main(lambda: "not called") is None


def test_all_processes_leave_or_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one has chosen holds for the others, however far they are."""
    monkeypatch.setattr(agreement, "_choices", itertools.count())
    monkeypatch.setattr(signals, "SECONDS_TO_END", 0.0)
    monkeypatch.setattr(signals, "_LOOK", 0.02)
    key = "vae_jax/choice/{}"
    store[key.format(0)] = "15"
    with pytest.raises(Left) as left:
        unless_stopped(lambda: 3, [])  # this one was told nothing, and has ended
    assert left.value.signal_number == signal.SIGTERM
    store[key.format(1)] = ""  # another has ended, and goes on
    assert unless_stopped(lambda: time.sleep(0.2), [signal.SIGTERM]) is None
    assert unless_stopped(lambda: 4, []) == 4
    assert store[key.format(2)] == ""
    waiting = threading.Event()
    with pytest.raises(Left):
        unless_stopped(waiting.wait, [signal.SIGUSR2])
    assert store[key.format(3)] == "12"
    waiting.set()


LOADS = """
import sys
from vae_jax import load_folder
from vae_jax.processes import together
with together({}, start_timeout=100):
    data = load_folder(sys.argv[1], 8, data_dir=sys.argv[2])
    print(len(data.train), data.split_rule, data.fingerprint, flush=True)
"""


@pytest.mark.slow
def test_one_process_asks_for_the_state_of_each_picture(tmp_path: Path) -> None:
    """By strace: the others open their folder no more, and ask for no file in it."""
    pictures = tmp_path / "pictures"
    for n in range(30):
        (pictures / f"class {n % 3}").mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8, 3), 8 * n, np.uint8)
        Image.fromarray(pixels).save(pictures / f"class {n % 3}" / f"{n}.png")

    def load(folders: list[Path], data: list[Path]) -> tuple[list[str], list[int]]:
        traces = [tmp_path / "trace 0", tmp_path / "trace 1"]
        begun = [
            start(
                ("-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"),
                *("strace", "-f", "-qq", "-e", "trace=%file", "-o", trace),
                *(sys.executable, "-c", LOADS, folder, own),
                **variables,
            )
            for trace, folder, own, variables in zip(
                traces, folders, data, addresses(2), strict=True
            )
        ]
        done = [finish(process) for process in begun]
        assert [process.returncode for process in done] == [0, 0], done
        asked = [len(re.findall(r"class \d", trace.read_text())) for trace in traces]
        said = [each.stdout.splitlines()[-1] for each in done]
        return said, asked

    one = tmp_path / "data"
    for _ in range(2):  # prepared, and found
        said, asked = load([pictures, pictures], [one, one])
        assert said[0] == said[1]
        assert "30 usable files" in said[0]
        assert asked[0] >= 30
        assert asked[1] == 0, "process 1 looked"
    # Process 1 has files of its own, of other times, prepared where process 0's are not.
    copied = tmp_path / "elsewhere" / "pictures"
    for path in pictures.rglob("*.png"):
        copy = copied / path.relative_to(pictures)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    said, asked = load([pictures, copied], [one, tmp_path / "data 1"])
    assert said[0] == said[1]
    assert min(asked) >= 30


MORE_IMAGES = """
import dataclasses
import tiny
from vae_jax import Data, Experiment

def experiment() -> Experiment:
    images = {split: tiny.images(48, n) for n, split in enumerate(("train", "valid", "test"))}
    labels = {split: tiny.labels(48, n) for n, split in enumerate(images)}
    data = Data.from_arrays("bars", *images.values(), protocol="dynamic", labels=labels)
    return dataclasses.replace(tiny.experiment(num_steps=10), data=data)
"""
COMMANDS = {
    "evaluate": ("--num-samples", 5, "--quality-images", 48),
    "sample": ("--num", 4, "--prior", "mixture", "--out", "{}.png"),
}


@pytest.mark.slow
def test_two_processes_measure_quality_and_fit_a_prior(tmp_path: Path) -> None:
    """The numbers and pictures of one process; what is learned for them is kept once."""
    (tmp_path / "more.py").write_text(MORE_IMAGES)
    path = {"pythonpath": f"{ROOT}:{ROOT / 'tests'}"}

    def done(count: int, *words: Any, **variables: Any) -> None:
        flags = ("--distributed",) if count > 1 else ()
        begun = [
            start(CLI, *words, *flags, devices=2 // count, cwd=tmp_path, **path, **own)
            for own in (addresses(count) if count > 1 else [{}])
        ]
        every = [finish(process) for process in begun]
        assert [process.returncode for process in every] == [0] * count, every

    done(1, "train", "more.py", "--workdir", "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for count, run in enumerate(("one", "two"), start=1):
        for command, flags in COMMANDS.items():
            done(count, command, run, *(str(flag).format(run) for flag in flags))
    found = [json.loads((tmp_path / run / "evaluation.json").read_text()) for run in ("one", "two")]
    (one,), (two,) = found
    assert numbers(two["quality"]) == pytest.approx(numbers(one["quality"]), rel=1e-3)
    assert len(numbers(one["quality"])) > 20
    for kept in ("features", "priors"):
        files = list((tmp_path / "two" / kept).rglob("manifest.json"))
        assert len(files) == 1
    ours, theirs = (np.asarray(Image.open(tmp_path / f"{run}.png")) for run in ("two", "one"))
    np.testing.assert_allclose(ours, theirs, atol=1.01)  # levels of 255


def numbers(content: Any) -> list[float]:
    """All numbers in JSON, in order."""
    if isinstance(content, dict | list):
        values = content.values() if isinstance(content, dict) else content
        return [number for value in values for number in numbers(value)]
    return [content] if isinstance(content, int | float) else []
