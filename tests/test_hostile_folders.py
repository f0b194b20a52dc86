"""Unlucky situations of run folders: the sentence that is said, and what the folder is afterwards.

Each table has a row for a situation. What a row expects is a part of the sentence, or "" where the
command goes on.
"""

import dataclasses
import functools
import importlib.metadata
import json
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from running import TINY, on_devices
from unlucky import COMMANDS, RUN, SHORT, changed, claim, content, data, refusal, some_slow

from vae_jax import (
    ELBO,
    IWAE,
    MLP,
    GaussianMixture,
    HorizontalFlip,
    RandomShift,
    VaeJaxError,
    VampPrior,
    evaluate,
    load,
    train,
)
from vae_jax.cli import main
from vae_jax.data import saved_arrays
from vae_jax.experiment import Experiment, Origin
from vae_jax.run import RunFolder
from vae_jax.train import load_run

pytestmark = pytest.mark.hostile


@pytest.fixture(autouse=True)
def one_device() -> Iterator[None]:
    with on_devices(1):
        yield


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
    "start": (lambda: changed(start="first"), "start is None there, first here"),
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
        one, other = opened.data[split], experiment.data[split]
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_a_run_from_python_evaluates_as_in_the_process_that_trained_it(from_python: Path) -> None:
    one = evaluate(load_run(from_python), num_samples=3)
    other = evaluate(load_run(from_python, experiment=RUN), num_samples=3)
    assert one.mean == other.mean
    assert one.data == other.data


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
    monkeypatch.setattr(saved_arrays, "KEPT_BYTES", 100)
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
