"""Unlucky situations of run folders: the sentence that is said, and what the folder is afterwards.

Each table has a row for a situation. What a row expects is a part of the sentence, or "" where the
command goes on.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
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

from vae_jax import (
    ELBO,
    IWAE,
    MLP,
    Data,
    GaussianMixture,
    HorizontalFlip,
    RandomShift,
    VaeJaxError,
    VampPrior,
    evaluate,
    load,
    plots,
    train,
)
from vae_jax.checkpoint import Checkpoints
from vae_jax.cli import main
from vae_jax.data import kept as kept_data
from vae_jax.errors import Interrupted, legible
from vae_jax.experiment import Experiment, Origin
from vae_jax.progress import Counter, Progress
from vae_jax.run import RunFolder
from vae_jax.train import load_run, train_file

pytestmark = pytest.mark.hostile

SHORT = {"num_steps": 20, "log_every": 10, "checkpoint_every": 10}
RUN = tiny.experiment(**SHORT)


@pytest.fixture(autouse=True)
def one_device() -> Iterator[None]:
    with on_devices(1):
        yield


@pytest.fixture(scope="module")
def from_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was trained from Python."""
    with on_devices(1):
        return train(RUN, tmp_path_factory.mktemp("python") / "run").folder.path


@pytest.fixture(scope="module")
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
    arrays = {name: getattr(RUN.data, name).images for name in ("train", "valid", "test")}
    labels = {name: getattr(RUN.data, name).labels for name in arrays}
    given: dict[str, Any] = {"protocol": "dynamic", "labels": labels} | arrays | change
    return Data.from_arrays("bars", **given)


def refusal(sentence: str) -> contextlib.AbstractContextManager[object]:
    """Expects a sentence with this in it, or none where this is ""."""
    return pytest.raises(VaeJaxError, match=sentence) if sentence else contextlib.nullcontext()


def some_slow(names: Iterable[str], quick: list[str]) -> list[Any]:
    """Rows, of which those that are like the quick ones run in the slow suite."""
    return [pytest.param(each, marks=() if each in quick else pytest.mark.slow) for each in names]


# The same run?


def model(**parts: Any) -> Any:
    return tiny.model().clone(**parts)


cosine = optax.cosine_decay_schedule

ANOTHER: dict[str, tuple[Callable[[], Experiment], str]] = {
    "objective": (lambda: changed(objective=IWAE(5)), "objective is vae_jax.ELBO there, vae_jax.I"),
    "beta": (lambda: changed(objective=ELBO(beta=0.5)), "objective.beta is 1 there, 0.5 here"),
    "warm-up": (
        lambda: changed(objective=ELBO(beta=optax.linear_schedule(0.0, 1.0, 9))),
        "objective.beta",
    ),
    "samples": (lambda: changed(objective=ELBO(num_samples=2)), "objective.num_samples is 1"),
    "optimizer": (lambda: changed(optimizer=optax.sgd(cosine(1e-2, 20))), "optimizer"),
    "rate": (
        lambda: changed(optimizer=optax.adam(cosine(1e-3, 20))),
        "init_value is 0.01 there, 0.001 here",
    ),
    "schedule": (
        lambda: changed(optimizer=optax.adam(cosine(1e-2, 30))),
        "decay_steps is 20 there, 30 here",
    ),
    "no schedule": (lambda: changed(optimizer=optax.adam(1e-2)), "optimizer"),
    "betas": (lambda: changed(optimizer=optax.adam(cosine(1e-2, 20), b1=0.5)), "b1 is 0.9 there"),
    "clipping": (
        lambda: changed(optimizer=optax.chain(optax.clip(1.0), RUN.optimizer)),
        "optimizer",
    ),
    "lambda": (lambda: changed(optimizer=optax.adam(lambda step: 1e-2)), "optimizer"),
    "width": (lambda: changed(model=tiny.model(9)), "model.encoder.features.0 is 8 there, 9 here"),
    "depth": (lambda: changed(model=model(encoder=MLP((8, 8)))), "encoder.features.1 is absent"),
    "activation": (
        lambda: changed(model=model(encoder=MLP((8,), activation=jax.nn.relu))),
        "activation.import is jax.nn.tanh there, jax.nn.relu here",
    ),
    "prior": (
        lambda: changed(model=model(prior=GaussianMixture(3, 2))),
        "model.prior is vae_jax.StandardNormal there, vae_jax.GaussianMixture here",
    ),
    "name of a part": (lambda: changed(model=model(encoder=MLP((8,), name="b"))), "encoder.name"),
    "flip": (lambda: changed(augment=(HorizontalFlip(),)), "augment"),
    "shift": (lambda: changed(augment=(RandomShift(1),)), "augment"),
    "average": (lambda: changed(ema_decay=0.8), "ema_decay is 0.9 there, 0.8 here"),
    "no average": (lambda: changed(ema_decay=None), "ema_decay is 0.9 there, None here"),
    "dtype": (lambda: changed(compute_dtype=jnp.bfloat16), "compute_dtype is float32 there, bflo"),
    "order": (lambda: changed(shuffle=False), "shuffle is True there, False here"),
    "batch": (lambda: changed(batch_size=8), "batch_size is 16 there, 8 here"),
    "fewer steps": (lambda: changed(num_steps=10), "num_steps is 20 there, 10 here"),
    "patience": (lambda: changed(patience=3), "patience is None there, 3 here"),
    "pixel": (
        lambda: changed(data=data(train=RUN.data.train.images ^ np.uint8(1))),
        "data.fingerprint is",
    ),
    "labels": (
        lambda: changed(data=data(labels={"train": np.zeros(90, int)})),
        "data.fingerprint is",
    ),
    "a split replaced": (
        lambda: changed(data=dataclasses.replace(RUN.data, train=RUN.data.valid)),
        "data.description is",
    ),
    "pixels replaced": (
        lambda: changed(
            data=dataclasses.replace(
                RUN.data,
                train=dataclasses.replace(RUN.data.train, images=255 - RUN.data.train.images),
            )
        ),
        "data.fingerprint is",
    ),
    "protocol": (lambda: changed(data=data(protocol="fixed")), "data.description is"),
    "a protocol of one's own": (
        lambda: changed(
            data=dataclasses.replace(
                RUN.data, protocol=dataclasses.replace(RUN.data.protocol, apply=lambda v, keys: v)
            )
        ),
        "data.protocol.apply",
    ),
}


@pytest.mark.parametrize("situation", ANOTHER)
def test_another_experiment_from_python_is_refused(
    situation: str, from_python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, sentence = ANOTHER[situation]
    before = content(from_python)
    with pytest.raises(VaeJaxError, match="is the run of another experiment") as raised:
        claim(from_python, experiment())
    assert sentence in str(raised.value)
    assert str(raised.value).endswith("choose another --workdir.")
    assert content(from_python) == before


def test_the_trained_parameters_are_not_returned_as_those_of_another(from_python: Path) -> None:
    with pytest.raises(VaeJaxError, match="another experiment"):
        train(changed(objective=IWAE(5)), from_python)


@pytest.mark.parametrize(("seed", "num_seeds", "said"), [(1, 1, "seed is 0"), (0, 2, "num_seeds")])
def test_other_seeds_are_refused(seed: int, num_seeds: int, said: str, from_python: Path) -> None:
    with pytest.raises(VaeJaxError, match=said):
        claim(from_python, RUN, seed, num_seeds)


SETTINGS = {
    "x64": ("jax_enable_x64", True),
    "precision": ("jax_default_matmul_precision", "bfloat16"),
    "keys": ("jax_default_prng_impl", "rbg"),
    "promotion": ("jax_numpy_dtype_promotion", "strict"),
}


@pytest.mark.parametrize("situation", SETTINGS)
def test_a_setting_of_jax_that_changes_numbers_is_refused(
    situation: str, from_python: Path
) -> None:
    name, value = SETTINGS[situation]
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        with pytest.raises(VaeJaxError, match=rf"flags\.{name} is {before} there, {value} here"):
            claim(from_python, RUN)
    finally:
        jax.config.update(name, before)
    claim(from_python, RUN)


FLAGS = {
    "--xla_cpu_enable_fast_math=true": "flags.XLA_FLAGS",
    "--xla_allow_excess_precision=false": "flags.XLA_FLAGS",
    "--xla_gpu_deterministic_ops=true": "flags.XLA_FLAGS",
    "--xla_force_host_platform_device_count=3": "",
    "--xla_dump_to=/tmp/nowhere": "",
    "--xla_gpu_enable_latency_hiding_scheduler=true": "",
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_of_xla_is_refused_where_it_changes_numbers(
    flag: str, from_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {flag}")
    with refusal(FLAGS[flag]):
        claim(from_python, RUN)


def test_tensor_cores_overridden_are_another_run(
    from_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with pytest.raises(VaeJaxError, match=r"flags\.NVIDIA_TF32_OVERRIDE is None there, 0 here"):
        claim(from_python, RUN)


SAME: dict[str, Callable[[], Experiment]] = {
    "made again": lambda: tiny.experiment(**SHORT),
    "parts of a device's share": lambda: changed(accumulate=2),
    "layers computed again": lambda: changed(remat=True),
    "metrics more often": lambda: changed(log_every=5),
    "checkpoints more often": lambda: changed(log_every=5, checkpoint_every=5),
    "more checkpoints": lambda: changed(keep_checkpoints=5),
    "more patience": lambda: changed(max_nonfinite=7),
    "dtype by name": lambda: changed(compute_dtype="float32"),
    "arrays again": lambda: changed(data=data()),
}


@pytest.mark.parametrize("situation", SAME)
def test_what_does_not_change_the_result_is_the_same_run(situation: str, from_python: Path) -> None:
    claim(from_python, SAME[situation]())


def test_a_run_of_a_file_goes_on_from_python_and_the_other_way_round(
    from_python: Path, tmp_path: Path
) -> None:
    origin = Origin(str(TINY), TINY.read_text(), dict(SHORT))
    RunFolder(from_python).claim(origin.make(), 0, 1, origin)
    RunFolder(tmp_path / "run").claim(origin.make(), 0, 1, origin)
    claim(tmp_path / "run", RUN)


def test_a_file_names_the_argument_first(tmp_path: Path) -> None:
    origin = Origin(str(TINY), TINY.read_text(), dict(SHORT))
    RunFolder(tmp_path).claim(origin.make(), 0, 1, origin)
    other = dataclasses.replace(origin, arguments=SHORT | {"num_steps": 30})
    with pytest.raises(
        VaeJaxError,
        match=r"\(experiment\.arguments\.num_steps is 20 there, 30 here, on which its steps",
    ):
        RunFolder(tmp_path).claim(other.make(), 0, 1, other)


CODE = [
    (
        "        return nn.tanh(",
        "        return nn.relu(",
        r"the code of model\.encoder is not what",
    ),
    ("FACTOR = 1.0", "FACTOR = 2.0", r"the code of model\.encoder is not what"),
    ("        # as it is\n", "        # as it was\n", ""),
    ('"""A network."""', '"""A network of one layer."""', ""),
    ("def figures", "def other_figures", ""),
]


@pytest.mark.parametrize(("old", "new", "said"), CODE)
def test_code_of_the_users_own_is_part_of_the_run(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    own = textwrap.dedent('''
        import flax.linen as nn
        FACTOR = 1.0

        def scaled(x):
            return FACTOR * x

        class Own(nn.Module):
            """A network."""

            @nn.compact
            def __call__(self, x):
                # as it is
                return nn.tanh(scaled(nn.Dense(8)(x.reshape(len(x), -1))))

        def figures():
            return []

        of_tiny = model

        def model(hidden: int = 8):
            return of_tiny().clone(encoder=Own())
        ''')
    source = TINY.read_text() + own
    assert old in source
    sources = source, source.replace(old, new)
    one, other = (Origin("own.py", each, dict(SHORT)) for each in sources)
    RunFolder(tmp_path).claim(one.make(), 0, 1, one)
    with refusal(said):
        RunFolder(tmp_path).claim(other.make(), 0, 1, other)


def test_a_record_of_the_first_edition_is_named(tmp_path: Path) -> None:
    claim(tmp_path, RUN)
    record = json.loads((tmp_path / "experiment.json").read_text())
    del record["model"]
    (tmp_path / "experiment.json").write_text(json.dumps(record))
    with pytest.raises(VaeJaxError, match="did not note what its model is: choose another"):
        claim(tmp_path, RUN)


@pytest.mark.parametrize("part", ["model", "objective", "optimizer", "augment", "flags", "seed"])
@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [[1]]])
def test_a_record_of_any_types_is_another_experiment(part: str, value: Any, tmp_path: Path) -> None:
    claim(tmp_path, RUN)
    record = json.loads((tmp_path / "experiment.json").read_text())
    said = "" if record[part] == value else "another experiment"
    record[part] = value
    (tmp_path / "experiment.json").write_text(json.dumps(record))
    with refusal(said):
        claim(tmp_path, RUN)


def test_other_versions_are_said_when_a_run_goes_on(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((copied / "experiment.json").read_text())
    record["versions"]["optax"] = "0.0.1"
    (copied / "experiment.json").write_text(json.dumps(record))
    shutil.rmtree(copied / "checkpoints" / "20")
    train(RUN, copied)
    said = capsys.readouterr().err
    assert f"Going on from step 10 of {copied}." in said
    now = importlib.metadata.version("optax")
    assert f"began with other versions (optax is 0.0.1 there, {now} here): its numbers" in said


LITTER = ["Thumbs.db", ".DS_Store", "desktop.ini", "._run", ".nfs0001", "Desktop.ini", "THUMBS.DB"]


@pytest.mark.parametrize("name", LITTER)
def test_litter_is_no_other_experiment(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    claim(tmp_path, RUN)
    claim(tmp_path, RUN)
    assert (tmp_path / name).read_bytes() == b"x"


# A run from Python, from its folder alone


@functools.partial(jax.jit, static_argnums=1)
def of_a_module(x: Any, power: int = 1) -> Any:
    return x**power


IMPORTABLE: dict[str, Callable[[], Experiment]] = {
    "as it is": lambda: RUN,
    "warm-up": lambda: changed(objective=ELBO(beta=optax.linear_schedule(0.0, 1.0, 9))),
    "pseudo-inputs": lambda: changed(
        model=model(prior=VampPrior(5, images=RUN.data.train.images[:50]))
    ),
    "many pseudo-inputs": lambda: changed(
        model=model(prior=VampPrior(5, images=RUN.data.train.images))
    ),
    "function of a module": lambda: changed(model=model(encoder=MLP((8,), activation=of_a_module))),
    "optimizer": lambda: changed(
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(optax.exponential_decay(1e-2, 10, 0.9))
        )
    ),
    "half precision": lambda: changed(compute_dtype=jnp.bfloat16),
    "augmentation": lambda: changed(augment=(HorizontalFlip(), RandomShift(1))),
}


@pytest.mark.parametrize("situation", IMPORTABLE)
def test_a_run_from_python_is_described_by_its_folder(situation: str, tmp_path: Path) -> None:
    experiment, folder = IMPORTABLE[situation](), RunFolder(tmp_path)
    claim(tmp_path, experiment)
    folder.keep_data(experiment, None)
    opened = folder.stored_experiment(folder.read_record(), trust=False)
    assert opened.description == experiment.description
    for split in ("train", "valid", "test"):
        one, other = getattr(opened.data, split), getattr(experiment.data, split)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_a_run_from_python_evaluates_as_in_the_process_that_trained_it(from_python: Path) -> None:
    one = evaluate(load_run(from_python), num_samples=3)
    other = evaluate(load_run(from_python, experiment=RUN), num_samples=3)
    assert one.mean == other.mean
    assert one.data == other.data


COMMANDS: dict[str, list[Any]] = {
    "evaluate": ["--num-samples", 2, "--num-images", 5],
    "sample": ["--out", "x.png", "--num", 2],
    "reconstruct": ["--out", "x.png"],
    "interpolate": ["--out", "x.png", "--pairs", 1],
    "traverse": ["--out", "x.png"],
}


@pytest.mark.slow
def test_data_that_can_be_loaded_again_are_not_kept(data_dir: Path, tmp_path: Path) -> None:
    mnist = load("mnist_5k", data_dir=data_dir)
    experiment = changed(data=mnist, model=model(image_shape=()))
    claim(tmp_path / "run", experiment)
    folder = RunFolder(tmp_path / "run")
    folder.keep_data(experiment, None)
    assert not folder.data.exists()
    opened = folder.stored_experiment(folder.read_record(), trust=False)
    assert opened.description == experiment.description
    cut = dataclasses.replace(mnist, train=mnist.valid)  # which no call loads
    assert cut.source is None
    assert cut.fingerprint != mnist.fingerprint


@pytest.mark.parametrize("command", some_slow([*COMMANDS, "export"], quick=["sample", "evaluate"]))
def test_every_command_works_on_a_run_from_python(
    command: str, from_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main([str(each) for each in (command, from_python, *COMMANDS.get(command, ["--out", "x.npz"]))])


class Local(MLP):
    """A network of a class that this module has."""


def local_class() -> Any:
    class Own(MLP):
        pass

    return Own((8,))


def of_main() -> Any:
    """A network of a class of a script."""
    return type("Own", (MLP,), {"__module__": "__main__", "__qualname__": "Own"})((8,))


NOT_IMPORTABLE: dict[str, tuple[Callable[[], Experiment], str]] = {
    "lambda": (lambda: changed(optimizer=optax.adam(lambda step: 1e-2)), "<lambda>"),
    "schedule": (lambda: changed(objective=ELBO(beta=lambda step: 1.0)), "<lambda>"),
    "class in a function": (
        lambda: changed(model=model(encoder=local_class())),
        "local_class.<locals>.Own",
    ),
    "class of a script": (lambda: changed(model=model(encoder=of_main())), "__main__.Own"),
    "large array": (
        lambda: changed(model=model(prior=VampPrior(2, images=np.ones((90, 4, 4, 1), np.uint8)))),
        "an array of shape",
    ),
}


@pytest.mark.parametrize("situation", NOT_IMPORTABLE)
def test_what_cannot_be_imported_is_one_sentence(situation: str, tmp_path: Path) -> None:
    made, part = NOT_IMPORTABLE[situation]
    experiment, folder = made(), RunFolder(tmp_path)
    claim(tmp_path, experiment)
    folder.keep_data(experiment, None)
    with pytest.raises(VaeJaxError, match=re.escape(part)) as raised:
        load_run(tmp_path)
    said = str(raised.value)
    assert said.startswith(f"{tmp_path} was trained from Python, and cannot be opened from its fol")
    assert said.endswith("call load_run(folder, experiment=...) where that is at hand.")


def test_large_arrays_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kept_data, "KEPT_BYTES", 100)
    claim(tmp_path, RUN)
    folder = RunFolder(tmp_path)
    folder.keep_data(RUN, None)
    assert not (tmp_path / "data").exists()
    opened = folder.stored_experiment(folder.read_record(), trust=False)
    assert "is open without its data, bars (given as arrays)" in capsys.readouterr().err
    assert len(opened.data.train.images) == 0


@pytest.mark.parametrize("file", ["train_images.npy", "manifest.json", "test_labels.npy"])
@pytest.mark.parametrize("damage", ["lost", "half", "other"])
def test_damaged_data_are_a_sentence(file: str, damage: str, copied: Path) -> None:
    path = copied / "data" / file
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink() if damage == "lost" else path.write_bytes({"half": half, "other": b"[]"}[damage])
    before = content(copied)
    with pytest.raises(
        VaeJaxError, match=r"The data of this run in .*data are damaged \(.*\): put"
    ):
        load_run(copied)
    assert content(copied) == before
    load_run(copied, experiment=RUN)


OPENED_AS = {
    "activation": (model(encoder=MLP((8,), activation=jax.nn.relu)), "encoder.activation.import"),
    "width": (tiny.model(9), "model.encoder.features.0|encoder.features.0"),
    "prior": (model(prior=GaussianMixture(3, 2)), "prior is vae_jax.StandardNormal there"),
}


@pytest.mark.parametrize("situation", OPENED_AS)
def test_a_run_opened_as_another_model_is_refused(situation: str, from_python: Path) -> None:
    other, said = OPENED_AS[situation]
    with pytest.raises(VaeJaxError, match=r"was trained with another model \(.*version") as raised:
        load_run(from_python, experiment=changed(model=other))
    assert re.search(said, str(raised.value))


# Code from elsewhere


class Owner(NamedTuple):
    """Who wrote a folder, as a change to a copy that this account wrote."""

    change: Callable[[Path, pytest.MonkeyPatch], object]
    sentence: str


def as_another_account(folder: Path, patch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    patch.setattr(os, "geteuid", lambda: mine + 1)


def owned_by_another(*names: str) -> Callable[[Path, pytest.MonkeyPatch], object]:
    def change(folder: Path, patch: pytest.MonkeyPatch) -> None:
        look = Path.stat

        def other(self: Path, **options: Any) -> Any:
            found = look(self, **options)
            if self.name not in names:
                return found
            return os.stat_result((*found[:4], found.st_uid + 1, *found[5:10]))

        patch.setattr(Path, "stat", other)

    return change


def for_all(name: str) -> Callable[[Path, pytest.MonkeyPatch], object]:
    return lambda folder, patch: (folder / name).chmod(0o666)


OWNERS = {
    "another account": Owner(as_another_account, r"belongs to another account \(number \d+\)"),
    "another's folder": Owner(owned_by_another("run"), r"run belongs to another account"),
    "another's record": Owner(owned_by_another("experiment.json"), r"experiment\.json belongs to"),
    "another's copy": Owner(owned_by_another(".experiment.json"), r"\.experiment\.json belongs to"),
    "everybody's record": Owner(for_all("experiment.json"), "can be written by every account"),
    "everybody's copy": Owner(for_all(".experiment.json"), "can be written by every account"),
}


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("origin", ["from_python", "from_file"])
def test_code_of_another_account_is_not_run(
    owner: str,
    origin: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(request.getfixturevalue(origin), tmp_path / "run")
    trace = tmp_path / "trace"
    monkeypatch.setenv("TRACE", str(trace))
    OWNERS[owner].change(tmp_path / "run", monkeypatch)
    with pytest.raises(VaeJaxError, match=OWNERS[owner].sentence) as raised:
        load_run(tmp_path / "run")
    assert "--trust (in Python trust=True)" in str(raised.value)
    assert "vae-jax export" in str(raised.value)
    assert not trace.exists()
    RunFolder(tmp_path / "run").export(tmp_path / "model.npz")  # needs no trust
    assert not trace.exists()
    load_run(tmp_path / "run", trust=True)
    assert trace.exists() == (origin == "from_file")


@pytest.mark.parametrize("command", some_slow(COMMANDS, quick=["sample"]))
def test_every_command_asks_for_trust(
    command: str,
    from_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    as_another_account(from_file, monkeypatch)
    arguments = [str(each) for each in (command, from_file, *COMMANDS[command])]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "belongs to another account" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    main([*arguments, "--trust"])
    assert (tmp_path / "trace").exists()


EXPORTED: dict[str, Callable[[Path], object]] = {
    "as it is": lambda run: None,
    "code that fails": lambda run: rewrite(run, source="raise SystemExit('run')"),
    "no code": lambda run: rewrite(run, source=None, file=None, experiment=None),
    "a record that is damaged": lambda run: (run / "experiment.json").write_bytes(b"\xff"),
    "no record": lambda run: [(run / f"{dot}experiment.json").unlink() for dot in ("", ".")],
}


def rewrite(run: Path, **entries: Any) -> None:
    for name in ("experiment.json", ".experiment.json"):
        record = json.loads((run / name).read_text()) | entries
        (run / name).write_text(json.dumps(record))


@pytest.mark.parametrize("situation", EXPORTED)
def test_parameters_are_read_without_code(
    situation: str, from_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    shutil.copytree(from_file, tmp_path / "run")
    EXPORTED[situation](tmp_path / "run")
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "new" / "model.npz")])
    assert not (tmp_path / "trace").exists()
    variables = load_run(from_file).seed_variables
    with np.load(tmp_path / "new" / "model.npz", allow_pickle=False) as arrays:
        assert len(arrays) == len(jax.tree.leaves(variables))
        for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            np.testing.assert_array_equal(arrays[name], leaf)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "model.pkl"], "must end in .npz"),
        (["--out", "file/model.npz"], "cannot be written"),
        (["--out", "model.npz", "--checkpoint", "best"], ""),
    ],
)
def test_an_export_that_is_not_possible(
    arguments: list[str],
    said: str,
    from_python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) if said else contextlib.nullcontext():
        main(["export", str(from_python), *arguments])
    assert (tmp_path / "model.npz").exists() == (not said)


def test_an_export_of_an_empty_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VaeJaxError, match="has no latest checkpoint"):
        RunFolder(tmp_path).export(tmp_path / "model.npz")


def test_seeds_and_no_average_are_exported(tmp_path: Path) -> None:
    run = train(changed(ema_decay=None, num_steps=10), tmp_path / "run", num_seeds=2)
    with np.load(run.folder.export(tmp_path / "model.npz")) as arrays:
        kernel = arrays["params/encoder/Dense_0/kernel"]
    np.testing.assert_array_equal(kernel, run.state.params["encoder"]["Dense_0"]["kernel"])


def test_a_repository_is_asked_for_its_commit_without_its_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git = functools.partial(subprocess.run, check=True, capture_output=True)
    git(["git", "init", "."])
    (tmp_path / "program").write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\n")
    (tmp_path / "program").chmod(0o755)
    git(["git", "add", "program"])
    git(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "one"])
    git(["git", "config", "core.fsmonitor", str(tmp_path / "program")])
    claim(tmp_path / "run", RUN)
    assert not (tmp_path / "trace").exists()
    record = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert len(record["git_commit"].removesuffix("+changes")) == 40


# Names


NAMES = [
    "$a$",
    "$5 and $6",
    "a_{b$",
    "[red]x[/red]",
    "[/]",
    "\udc80\udcff",
    "科幻小说",
    "_hidden",
    "two\nlines",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\r over",
    "\u202ereversed",
    r"\frac{1}",
    "100 %",
    "🙂",
    "العربية",
    "{}",
    "{pid}",
]


def obeyed(text: str) -> list[str]:
    """What a terminal would do rather than print."""
    return [each for each in text if not each.isprintable() and each != "\n"]


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_spells_what_a_terminal_obeys(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", f"no/{name}"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not obeyed(said)
    assert said == f"vae-jax: no/{legible(name)} is no run folder: it has no experiment.json.\n"


@pytest.mark.parametrize("name", NAMES)
def test_progress_spells_it_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Counter(f"Preparing {name}"):
        pass
    with Progress(1, 1) as progress:
        progress.say(f"Going on with {name}.")
    said = capsys.readouterr().err
    assert said == f"Preparing {legible(name)} (once)...\nGoing on with {legible(name)}.\n"


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """And warnings are errors here."""
    images = np.zeros((len(NAMES), 2, 4, 4, 1))
    z, labels = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % len(NAMES)
    rows, scatter = plots.named_rows(images, NAMES), plots.latent_scatter(z, labels, NAMES)
    title = plots.reconstructions(images[:, 0], images[:, 1], title=plots.plain("".join(NAMES)))
    for number, figure in enumerate((rows, scatter, title)):
        plots.save(figure, tmp_path / f"{number}.png")
    shown = [text.get_text() for text in scatter.legends[0].get_texts()]
    assert shown == [plots.plain(name) for name in NAMES]


@pytest.mark.parametrize("name", ["[red]bars[/red]", "$a$", "\x1b[31mbars", "科幻", "[/]"])
def test_a_table_shows_names_as_they_are(
    name: str, tmp_path: Path, from_python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / name
    shutil.copytree(from_python, run)
    main(["evaluate", str(run), "--num-samples", "2", "--num-images", "5"])
    said = capsys.readouterr().out
    assert legible(name) in "".join(said.split())  # the path may be broken anywhere
    assert not obeyed(said)


@pytest.mark.parametrize("name", ["a\udc80.npz", "科幻.npz", "[x].npz", "$a$.npz"])
def test_a_path_for_a_pipe_is_the_path(
    name: str, from_python: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    main(["export", str(from_python), "--out", str(tmp_path / name)])
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == os.fsencode(tmp_path / name) + b"\n"


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

    def __call__(self, terms: Any, step: Any, model: Any = None) -> Any:
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
