"""Finished runs for the tests of unlucky situations, and what is done to their folders."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tiny
from running import TINY, on_devices

from vae_jax import Data, VaeJaxError, train
from vae_jax.experiment import Experiment
from vae_jax.run import RunFolder
from vae_jax.train import train_file

SHORT = {"num_steps": 20, "log_every": 10, "checkpoint_every": 10}
RUN = tiny.experiment(**SHORT)


@pytest.fixture(scope="session")
def from_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was trained from Python."""
    with on_devices(1):
        return train(RUN, tmp_path_factory.mktemp("python") / "run").folder.path


@pytest.fixture(scope="session")
def from_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a file, which leaves a trace wherever its code is run."""
    folder = tmp_path_factory.mktemp("file")
    file = folder / "experiment.py"
    trace = "import os, pathlib\npathlib.Path(os.environ['TRACE']).touch()\n"
    file.write_text(TINY.read_text().replace("import numpy", trace + "import numpy", 1))
    with on_devices(1), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACE", str(folder / "trace"))
        return train_file(file, folder / "run", SHORT).folder.path


@pytest.fixture
def copied(from_python: Path, tmp_path: Path) -> Path:
    shutil.copytree(from_python, tmp_path / "run")
    return tmp_path / "run"


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def claim(folder: Path, experiment: Experiment, seed: int = 0, num_seeds: int = 1) -> None:
    """What `train` does with a folder first."""
    RunFolder(folder).claim(experiment, seed, num_seeds, None)


def changed(**fields: Any) -> Experiment:
    return dataclasses.replace(RUN, **fields)


def data(**change: Any) -> Data:
    """The tiny data, of other arrays or under another protocol."""
    given: dict[str, Any] = {"protocol": "dynamic", "labels": {}}
    for name in ("train", "valid", "test"):
        given[name] = RUN.data[name].images
        given["labels"][name] = RUN.data[name].labels
    given |= change
    return Data.from_arrays("bars", **given)


def refusal(sentence: str) -> contextlib.AbstractContextManager[object]:
    """Expects a sentence with this in it, or none where this is ""."""
    return pytest.raises(VaeJaxError, match=sentence) if sentence else contextlib.nullcontext()


def some_slow(names: Iterable[str], quick: list[str]) -> list[Any]:
    """Rows, of which those that are like the quick ones run in the slow suite."""
    return [pytest.param(each, marks=() if each in quick else pytest.mark.slow) for each in names]


COMMANDS: dict[str, list[Any]] = {
    "evaluate": ["--num-samples", 2, "--num-images", 5],
    "sample": ["--out", "x.png", "--num", 2],
    "reconstruct": ["--out", "x.png"],
    "interpolate": ["--out", "x.png", "--pairs", 1],
    "traverse": ["--out", "x.png"],
}
