"""Arguments that the functions of the road do not take, and folders in which no run can be."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import tiny

import vae_jax as vj
from hostile import Row
from vae_jax.data import load, load_folder
from vae_jax.experiment import Origin
from vae_jax.run import RunFolder

TINY = tiny.experiment()
FILE = Path(tiny.__file__)


def train(folder: object, experiment: Any = TINY, **named: Any) -> object:
    """The tiny experiment in a folder."""
    return vj.train(experiment, folder, **named)  # type: ignore[arg-type]


def batch_norm(_: Path) -> object:
    """An encoder whose variables every call changes."""
    flat = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(8)])
    encoder = nn.Sequential([flat, nn.BatchNorm(use_running_average=False)])
    return dataclasses.replace(TINY, model=TINY.model.clone(encoder=encoder))


def in_the_way(kind: str, name: str, folder: Path) -> object:
    """Something else where a run has a folder or a file."""
    match kind:
        case "link":
            (folder / name).symlink_to("nowhere")
        case "file":
            (folder / name).touch()
        case _:
            (folder / name).mkdir()
    return RunFolder(folder).claim(TINY, 0, 1, None)


def stays(folder: Path) -> None:
    """What was in the way is still there, and nothing else."""
    assert len(list(folder.iterdir())) == 1


CALLS: dict[str, tuple[Any, str]] = {
    "train: no folder": (lambda _: train(None), "folder of train is None: give a str, or a Path"),
    "train: a number for a folder": (lambda _: train(3), "folder of train is 3"),
    "train: bytes for a folder": (lambda _: train(b"runs"), "folder of train is a bytes"),
    "train: a zero byte": (
        lambda _: train("a\0b"),
        "is not a valid file name (it has a zero",
    ),
    "train: a long name": (lambda f: train(f / ("a" * 300)), "is not a valid file name (File name"),
    "train: swapped": (lambda f: train(TINY, f), "experiment of train is a PosixPath"),
    "train: a broken seed": (lambda f: train(f, seed=1.5), "seed of train is 1.5: give a whole"),
    "train: a seed in words": (lambda f: train(f, seed="1"), "seed of train is '1'"),
    "train: a truth for a seed": (lambda f: train(f, seed=True), "seed of train is True"),
    "train: half a replica": (lambda f: train(f, num_seeds=2.0), "num_seeds of train is 2.0"),
    "train: streamed in words": (lambda f: train(f, streamed="no"), "streamed of train is 'no'"),
    "train: another share": (lambda f: train(f, shard="x"), "shard of train is 'x'"),
    "train: a callback that is none": (lambda f: train(f, callback=3), "callback of train is 3"),
    "train: an origin in words": (lambda f: train(f, origin="x"), "origin of train is 'x'"),
    "train_file: no file": (lambda f: vj.train_file(None, f), "file of train_file is None"),  # type: ignore[arg-type]
    "train_file: a list": (lambda f: vj.train_file(FILE, f, [1]), "arguments of train_file is ("),  # type: ignore[arg-type]
    "train_file: a slip": (
        lambda f: vj.train_file(FILE, f, {"hiden": 3}),
        "got an unexpected keyword argument 'hiden', and it takes num_steps",
    ),
    "Origin: no arguments that fit": (
        lambda _: Origin("own.py", "def experiment(*, a: int): ...", {}).make(),
        "argument: 'a', and it takes a.",  # Python 3.13 calls it keyword-only
    ),
    "load_run: trust in words": (
        lambda f: vj.load_run(f, trust="no"),  # type: ignore[arg-type]
        "trust of load_run is 'no': give True or False",
    ),
    "load_run: a checkpoint of no name": (
        lambda f: vj.load_run(f, "Best"),  # type: ignore[arg-type]
        "checkpoint of load_run is 'Best': give 'latest' or 'best'",
    ),
    "load_run: a number": (lambda f: vj.load_run(f, 7), "checkpoint of load_run is 7"),  # type: ignore[arg-type]
    "load_run: no experiment": (
        lambda f: vj.load_run(f, experiment=3),  # type: ignore[arg-type]
        "experiment of load_run is 3: give an Experiment, or None",
    ),
    "load_variables: a number": (
        lambda _: vj.load_variables(3),  # type: ignore[arg-type]
        "file of load_variables is 3",
    ),
    "load: a number": (lambda _: load(3), "name of load is 3"),  # type: ignore[arg-type]
    "load: a number for a folder": (
        lambda _: load("mnist_5k", data_dir=3),  # type: ignore[arg-type]
        "data_dir of load is 3",
    ),
    "load_folder: nothing": (lambda _: load_folder(None), "path of load_folder is None"),  # type: ignore[arg-type]
    "load_folder: half a pixel": (lambda f: load_folder(f, 8.0), "size of load_folder is 8.0"),  # type: ignore[arg-type]
    "load_folder: a truth": (lambda f: load_folder(f, True), "size of load_folder is True"),
    "load_folder: a shape": (lambda f: load_folder(f, (8, 8, 3)), "size of load_folder is (8, 8"),  # type: ignore[arg-type]
    "load_folder: a true channel": (
        lambda f: load_folder(f, channels=True),  # type: ignore[arg-type]
        "channels of load_folder is True: give 1 or 3",
    ),
    "with_missing: a number": (
        lambda _: TINY.data.with_missing(-1),  # type: ignore[arg-type]
        "missing of with_missing is -1",
    ),
    "batch normalization": (batch_norm, "normalize within each image, as nn.LayerNorm"),
    "quality of few images": (
        lambda _: vj.metrics.measure_quality(run_of_few(), "test", 4),
        "leave --quality-images out",
    ),
}
IN_THE_WAY = {
    "checkpoints that are a link to nothing": ("link", "checkpoints", "by mounting its disk"),
    "checkpoints that are a file": ("file", "checkpoints", "is a file, and a run has a folder"),
    "figures that are a file": ("file", "figures", "is a file, and a run has a folder"),
    "metrics that are a folder": ("folder", "metrics.jsonl", "is a folder, and a run has a file"),
    "a summary that is a folder": ("folder", "summary.json", "is a folder, and a run has a file"),
}


def run_of_few() -> vj.Run:
    """A run whose test split has too few images for quality."""
    data = vj.Data.from_arrays("few", tiny.images(9, 0), test=tiny.images(7, 1), protocol="dynamic")
    experiment = dataclasses.replace(TINY, data=data)
    return vj.Run(RunFolder(Path("run")), experiment, np.zeros(()), "latest")  # type: ignore[arg-type]


ROWS = [Row(name, act, said) for name, (act, said) in CALLS.items()] + [
    Row(name, partial(in_the_way, kind, where), said, stays)
    for name, (kind, where, said) in IN_THE_WAY.items()
]
