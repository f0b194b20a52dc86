"""Devices: the same gradients, noise and training on 1 to 8 of them, and in two processes."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import Array
from running import (
    interrupted_after,
    on_devices,
    rows,
)

from vae_jax import (
    ELBO,
    IWAE,
    Bernoulli,
    ConvDecoder,
    ConvEncoder,
    Experiment,
    VampPrior,
    train,
)
from vae_jax import evaluate as evaluate_run
from vae_jax.cpu import cores
from vae_jax.errors import Interrupted
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.parallel import (
    Replicated,
    are_finite,
    from_main_process,
    gather,
    gather_batch,
    on_every_device,
    replicate,
    split,
    unreplicate,
)
from vae_jax.run import Run
from vae_jax.step import Batch, init_state, loss_and_gradients
from vae_jax.vae import Terms


@dataclass(frozen=True)
class Exposed(Objective):
    """An objective whose metrics hold what depends on each example's noise, in global order."""

    objective: Objective
    num_samples: int = 1

    @property
    def requires(self) -> Requirements:
        return self.objective.requires

    def __call__(self, terms: Terms, step: Array, model: Model) -> tuple[Array, Metrics]:
        loss, metrics = self.objective(terms, step, model)
        whole: Any = partial(gather_batch, axis=1)
        # log_px depends on the binarization of x, z on that and on the posterior's noise.
        return loss, metrics | {"z": whole(terms.z[0]), "log_px": whole(terms.log_px)}


PLAIN = tiny.model()
MODELS = {
    "mlp": (PLAIN, ELBO()),
    "vamp_iwae": (PLAIN.clone(prior=VampPrior(5)), IWAE(num_samples=3)),
    "conv": (
        PLAIN.clone(
            encoder=ConvEncoder((3, 4), dense=6),
            decoder=ConvDecoder((4, 3), dense=6),
            likelihood=Bernoulli(),
        ),
        ELBO(num_samples=2),
    ),
}


def one_batch(experiment: Experiment, devices: int) -> Any:
    """Loss, metrics, model state and gradients of a batch of 8, with the axis of devices."""
    seed = np.uint32(3)
    with on_devices(devices):
        state = jax.jit(partial(init_state, experiment))(seed).replace(step=jnp.asarray(7))
        axis = Replicated().axis
        function = on_every_device(partial(loss_and_gradients, experiment, axis=axis))
        rows = np.arange(20, 28, dtype=np.int32)
        images = split(experiment.data.train.images[rows], 0)
        batch = Batch(rows=split(rows, 0), images=None, y=None)
        return function(replicate(state), images, batch, replicate(seed))


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Leaf by leaf: the difference's norm is within `tolerance` of the leaf's."""

    def compare(path: Any, actual: Array, expected: Array) -> None:
        difference = np.linalg.norm(np.subtract(actual, expected))
        allowed = tolerance * np.linalg.norm(expected) + 1e-12
        assert difference <= allowed, f"{jax.tree_util.keystr(path)}: {difference} > {allowed}"

    jax.tree_util.tree_map_with_path(compare, actual, expected)


@pytest.mark.others_slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "conv")) for n in MODELS]
)
def test_gradients_metrics_and_noise_are_the_same_on_1_2_and_8_devices(name: str) -> None:
    model, objective = MODELS[name]
    experiment = dataclasses.replace(
        tiny.experiment(),
        model=model,
        objective=Exposed(objective, objective.num_samples),
        batch_size=8,
    )
    results = [one_batch(experiment, devices) for devices in (1, 2, 8)]
    for leaf in jax.tree.leaves(results[-1]):
        assert (np.asarray(leaf) == np.asarray(leaf)[:1]).all(), "two devices disagree"
    one, two, eight = map(unreplicate, results)
    _, metrics, _, gradients = one
    assert metrics["z"].shape == (objective.num_samples, 8, 2)
    assert len(np.unique(metrics["z"])) == metrics["z"].size, "two examples share their noise"
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradients))
    assert_close(two, one, 1e-5)
    assert_close(eight, one, 1e-5)


def test_the_main_process_keeps_its_own_arrays() -> None:
    """A copy would double the host's memory of a state when a run begins or is resumed."""
    tree = {"kernel": np.arange(6.0).reshape(2, 3), "step": np.asarray(3)}
    received = from_main_process(tree)
    assert all(received[name] is tree[name] for name in tree)


def test_replicate_split_and_gather_undo_each_other() -> None:
    batch = np.arange(48).reshape(2, 24)
    with on_devices(4):
        shares = split(batch, 1)
        assert shares.shape == (4, 2, 6)
        np.testing.assert_array_equal(shares[1], batch[:, 6:12])
        np.testing.assert_array_equal(gather(shares, 1), batch)
        np.testing.assert_array_equal(replicate({"x": batch})["x"][3], batch)
        np.testing.assert_array_equal(unreplicate(replicate(batch)), batch)


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on 8 devices, never interrupted."""
    return train(tiny.experiment(), tmp_path_factory.mktemp("runs") / "run")


def assert_same_run(run: Run, expected: Run) -> None:
    """To float tolerance: the parameters, their average, the optimizer, and every metric."""
    assert_close(run.state, expected.state, 1e-4)
    ours, theirs = (rows(run.folder.path) for run in (run, expected))
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4)


def test_training_on_one_device_is_training_on_eight(on_eight: Run, tmp_path: Path) -> None:
    with on_devices(1):
        run = train(tiny.experiment(), tmp_path / "run")
    assert_same_run(run, on_eight)


@pytest.mark.others_slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_checkpoint_of_eight_devices_goes_on_on_fewer(
    devices: int, on_eight: Run, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted), interrupted_after(15):
        train(tiny.experiment(), tmp_path / "run")
    with on_devices(devices):
        run = train(tiny.experiment(), tmp_path / "run")
    assert_same_run(run, on_eight)


def test_evaluation_does_not_depend_on_devices(on_eight: Run) -> None:
    eight = evaluate_run(on_eight, num_samples=5)
    with on_devices(2):
        two = evaluate_run(on_eight, num_samples=5)
    assert eight.num_images == 21  # not a multiple of 8 or of 2: nothing dropped, nothing twice
    for name, mean in eight.mean.items():
        np.testing.assert_allclose(two.mean[name], mean, rtol=1e-5)
        np.testing.assert_allclose(
            two.standard_error[name], eight.standard_error[name], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    ("num_replicas", "flags", "devices"),
    [
        (4, "", 4),
        (8, "--xla_a=1", 4),
        (6, "", 2),
        (3, "", None),
        (1, "", None),
        (4, "--xla_force_host_platform_device_count=8", None),
    ],
)
def test_replicas_get_cores_of_their_own(
    num_replicas: int, flags: str, devices: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of four; a number of devices that the user has set stays."""
    set_to: dict[str, object] = {}
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("jax.config.update", set_to.__setitem__)
    monkeypatch.setenv("XLA_FLAGS", flags)
    cores.give_replicas_cores(num_replicas)
    assert set_to == ({} if devices is None else {"jax_num_cpu_devices": devices})


@pytest.mark.parametrize("unusual", [0.0, np.inf, np.nan])
def test_whether_numbers_are_finite_is_found_on_the_device(
    unusual: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of host arrays on the host."""
    on_host = [np.ones(3, np.float32), np.array([1.0, unusual], np.float32)]
    on_devices = jax.tree.map(replicate, on_host)

    def copied(self: Array, *_: Any, **__: Any) -> None:
        raise AssertionError(f"an array of shape {self.shape} moved to the host")

    monkeypatch.setattr(type(on_devices[0]), "__array__", copied)
    assert are_finite(on_devices) == are_finite(on_host) == (unusual == 0)
