"""Training: every step against what it should do, resumption against the run never interrupted."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax import Array
from running import checkpoint_steps, interrupted_after, on_devices, rows, summary

from vae_jax import (
    ELBO,
    IWAE,
    Data,
    Experiment,
    Gaussian,
    Split,
    VaeJaxError,
    evaluate,
    load_run,
    parallel,
    train,
)
from vae_jax.checkpoint import fingerprint
from vae_jax.data import batch_indices
from vae_jax.errors import Interrupted
from vae_jax.interfaces import Metrics, Model, Objective
from vae_jax.parallel import (
    AXIS,
    Layout,
    OnDevices,
    Replicated,
    batch_mean,
    on_every_device,
    replicate,
    split,
    unreplicate,
)
from vae_jax.step import Batch, TrainState, init_state, loss_and_gradients, make_train_chunk
from vae_jax.train import is_streamed, make_validation
from vae_jax.vae import Terms

TINY = tiny.experiment()
UNVALIDATED = dataclasses.replace(
    TINY, data=dataclasses.replace(TINY.data, valid=Split(TINY.data.valid.images[:0], None))
)


@pytest.fixture(autouse=True)
def two_devices() -> Iterator[None]:
    """The smallest number of devices that has to agree."""
    with on_devices(2):
        yield


def walk(experiment: Experiment, num_steps: int) -> list[tuple[TrainState, dict[str, Any]]]:
    """The state after each of 0, 1, ..., `num_steps` steps, and the metrics of the last of them."""
    train_chunk = make_train_chunk(experiment, Replicated())
    seeds = np.zeros(1, np.uint32)
    count, batch = len(experiment.data.train), experiment.batch_size
    state = jax.jit(jax.vmap(partial(init_state, experiment)))(seeds)
    on_devices = replicate(state)
    walked: list[tuple[TrainState, dict[str, Any]]] = [(jax.tree.map(np.asarray, state), {})]
    for step in range(num_steps):
        indices = split(batch_indices(0, step, 1, count, batch)[None], 2)
        images = replicate(experiment.data.train.images)
        batches = Batch(rows=indices, images=None, y=None)
        on_devices, metrics = train_chunk(on_devices, images, batches, replicate(seeds))
        walked.append((unreplicate(on_devices), jax.tree.map(np.squeeze, unreplicate(metrics))))
    return walked


@pytest.mark.slow
def test_a_batch_is_drawn_once() -> None:
    """And not again in each operation that reads it: the left shifts of the compiled step."""
    images = np.random.default_rng(0).integers(0, 256, (32, 28, 28, 1), np.uint8)
    model = tiny.model().clone(image_shape=images.shape[1:])

    def shifts(protocol: str) -> int:
        data = Data.from_arrays("noise", images, test=images, protocol=protocol)
        made = dataclasses.replace(TINY, data=data, model=model, objective=IWAE(5), batch_size=32)
        batch = Batch(rows=split(np.arange(32, dtype=np.int32), 0), images=None, y=None)
        begun = jax.eval_shape(partial(init_state, made), 0)
        state, seed = Replicated().shapes(begun), replicate(np.uint32(0))
        step = on_every_device(partial(loss_and_gradients, made, axis=AXIS))
        program = step.compiled(state, split(images, 0), batch, seed)
        return (program.as_text() or "").count(" shift-left(")

    assert shifts("dynamic") - shifts("threshold") == 2 * 20  # rounds: for keys, and for pixels


def change(before: Any, after: Any) -> float:
    """The norm of the difference of two trees."""
    return float(optax.tree.norm(jax.tree.map(np.subtract, after, before)))


def equal(one: Any, other: Any) -> bool:
    return fingerprint(one) == fingerprint(other)


# Optimization


@pytest.fixture(scope="module")
def walked() -> list[tuple[TrainState, dict[str, Any]]]:
    """Twelve plain steps."""
    with on_devices(2):
        return walk(TINY, 12)


def test_ema_is_the_running_average_of_the_parameters(walked: list) -> None:
    params = [state.params for state, _ in walked]
    expected = params[0]
    for new in params[1:]:
        expected = jax.tree.map(lambda average, p: 0.9 * average + 0.1 * p, expected, new)
    actual = walked[-1][0].ema_params
    assert change(params[-1], actual) > 1e-2
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), actual, expected)


@pytest.mark.slow
def test_ema_starts_in_memory_of_its_own() -> None:
    state = init_state(TINY, 0)  # donated to a step, one buffer must not stand for two leaves
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_a_clipped_step_is_as_long_as_the_limit() -> None:
    limit = optax.chain(optax.clip_by_global_norm(1e-2), optax.sgd(1.0))
    walked = walk(dataclasses.replace(TINY, optimizer=limit), 2)
    for (before, _), (after, metrics) in pairwise(walked):
        assert metrics["gradient_norm"] > 1e-2  # as it was before clipping
        assert change(before.params, after.params) == pytest.approx(1e-2, rel=1e-4)


def test_a_learned_decoder_variance_is_trained() -> None:
    experiment = dataclasses.replace(
        TINY, data=tiny.data("grey"), model=tiny.model().clone(likelihood=Gaussian())
    )
    log_scales = [
        float(state.params["likelihood"]["log_scale"][0]) for state, _ in walk(experiment, 5)
    ]
    assert log_scales[0] == 0
    assert log_scales == sorted(log_scales, reverse=True)  # the data's deviation is far below 1
    assert log_scales[-1] < -0.02


def test_beta_warms_up_in_training_while_the_bound_keeps_beta_one() -> None:
    warm_up = ELBO(beta=optax.linear_schedule(0.0, 1.0, 8))
    metrics = [m for _, m in walk(dataclasses.replace(TINY, objective=warm_up), 10)[1:]]
    for step, m in enumerate(metrics):
        assert m["beta"] == pytest.approx(min(1.0, step / 8))
        assert m["loss"] == pytest.approx(m["distortion"] + m["beta"] * m["kl"], rel=1e-5)
        assert m["neg_elbo"] == pytest.approx(m["distortion"] + m["kl"], rel=1e-5)
        assert m["kl"] > 0.01


@pytest.mark.slow
def test_validation_has_beta_one_whatever_training_has(tmp_path: Path) -> None:
    experiment = dataclasses.replace(TINY, objective=ELBO(beta=0.0))
    run = train(experiment, tmp_path / "run")
    mean = evaluate(run, split="valid", num_samples=1).mean
    validation = [row["valid_neg_elbo"] for row in rows(tmp_path / "run") if "valid_nll" in row]
    assert mean["kl_sampled"] > 1  # which a validation with beta = 0 would leave out
    assert validation[-1] == pytest.approx(mean["distortion"] + mean["kl_sampled"], rel=1e-5)
    assert validation[-1] == summary(tmp_path / "run")["valid_neg_elbo"]


@pytest.mark.slow
def test_evaluation_uses_the_average_where_one_is_kept(straight: Path, tmp_path: Path) -> None:
    run = load_run(straight, experiment=TINY)
    assert equal(run.variables, {"params": run.state.ema_params})
    assert not equal(run.state.ema_params, run.state.params)
    plain = train(dataclasses.replace(UNVALIDATED, ema_decay=None), tmp_path / "plain")
    assert equal(plain.variables, {"params": plain.state.params})
    # Averaging does not touch training; another program may round differently.
    assert change(plain.state.params, run.state.params) < 1e-5
    ours, plains = (evaluate(each, num_samples=1).mean["nll"] for each in (run, plain))
    assert ours != plains


# Steps that are not finite


@dataclass(frozen=True)
class Faulty(Objective):
    """The ELBO, but for steps at which the loss, or its gradient alone, is NaN."""

    bad: Callable[[Array], Array]
    bad_gradient: Callable[[Array], Array] | None = None

    def __call__(self, terms: Terms, step: Array, model: Model) -> tuple[Array, Metrics]:
        loss, metrics = ELBO()(terms, step, model)
        if self.bad_gradient is not None:
            # sqrt is 0 at 0, its derivative infinite, and infinity times 0 is NaN.
            finite = jnp.where(self.bad_gradient(step), 0.0, 1.0)
            loss += jnp.sqrt(finite * jnp.square(loss))
        return jnp.where(self.bad(step), jnp.nan, 1.0) * loss, metrics


@pytest.mark.others_slow
@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # a branch or a choice
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_does(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    bad_loss, bad_gradient = (2, 3, 7), (4, 9)
    bad = bad_loss + bad_gradient
    faulty = Faulty(
        *(partial(jnp.isin, test_elements=jnp.array(b)) for b in (bad_loss, bad_gradient))
    )
    walked = walk(dataclasses.replace(TINY, objective=faulty), 11)
    in_a_row = 0
    for step, ((before, _), (after, metrics)) in enumerate(pairwise(walked)):
        in_a_row = in_a_row + 1 if step in bad else 0
        assert np.isfinite(metrics["loss"]) == (step not in bad_loss)
        assert np.isfinite(metrics["gradient_norm"]) == (step not in bad)
        assert after.step == step + 1
        assert after.skipped == metrics["skipped"] == sum(b <= step for b in bad)
        assert after.skipped_in_a_row == metrics["skipped_in_a_row"] == in_a_row
        for part in ("params", "opt_state", "ema_params"):
            unchanged = equal(getattr(before, part), getattr(after, part))
            assert unchanged == (step in bad), f"{part} at step {step}"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(walked[-1][0]))


@dataclass(frozen=True)
class Steep(Objective):
    """The ELBO, a million times as large at some steps."""

    steep: Callable[[Array], Array]

    def __call__(self, terms: Terms, step: Array, model: Model) -> tuple[Array, Metrics]:
        loss, metrics = ELBO()(terms, step, model)
        return jnp.where(self.steep(step), 1e6, 1.0) * loss, metrics


def test_a_step_whose_gradient_is_too_large_is_skipped_and_counted() -> None:
    objective = Steep(partial(jnp.isin, test_elements=jnp.array((1, 2, 5))))
    walked = walk(dataclasses.replace(TINY, objective=objective, skip_above=1e4), 7)
    for step, ((before, _), (after, metrics)) in enumerate(pairwise(walked)):
        assert (metrics["gradient_norm"] > 1e4) == (step in (1, 2, 5))
        assert after.skipped == sum(steep <= step for steep in (1, 2, 5))
        for part in ("params", "opt_state", "ema_params"):
            unchanged = equal(getattr(before, part), getattr(after, part))
            assert unchanged == (step in (1, 2, 5)), f"{part} at step {step}"


def test_training_stops_when_every_gradient_is_too_large(tmp_path: Path) -> None:
    """It neither goes on for ever without moving nor calls the loss not finite alone."""
    locked = dataclasses.replace(UNVALIDATED, skip_above=1e-3, max_nonfinite=10)
    with pytest.raises(VaeJaxError, match=r"above skip_above=0.001 .*raise skip_above"):
        train(locked, tmp_path / "run")
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(VaeJaxError, match="give a number above 0, or None"):
            dataclasses.replace(TINY, skip_above=wrong)


@pytest.mark.slow
def test_seeds_of_one_device_take_the_same_steps_in_turns_and_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turns on a CPU, at once on an accelerator."""
    runs = []
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        with on_devices(1):
            runs.append(train(UNVALIDATED, tmp_path / platform, num_seeds=2).state.params)
    for one, other in zip(*map(jax.tree.leaves, runs), strict=True):
        assert len(one) == 2
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_run_of_skipped_steps_alone_is_not_finished(tmp_path: Path) -> None:
    """No summary; and again not when it is called again, with nothing left to do."""
    faulty = dataclasses.replace(UNVALIDATED, objective=Faulty(lambda step: step >= 0))
    for _ in range(2):
        with pytest.raises(VaeJaxError, match=r"Every one of the 40 steps .* was skipped"):
            train(faulty, tmp_path / "run")
        assert not (tmp_path / "run" / "summary.json").exists()


def test_a_run_counts_the_steps_it_skipped_and_ends(tmp_path: Path) -> None:
    faulty = dataclasses.replace(UNVALIDATED, objective=Faulty(lambda step: step % 10 == 3))
    train(faulty, tmp_path / "run")
    assert summary(tmp_path / "run")["skipped_steps"] == 4
    losses = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert [row["skipped"] for row in losses] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert np.isfinite([row["loss"] for row in losses]).all()  # means over the finite steps


def test_training_stops_when_nothing_is_finite_any_more(tmp_path: Path) -> None:
    faulty = dataclasses.replace(TINY, objective=Faulty(lambda step: step >= 20), max_nonfinite=7)
    for _ in range(2):  # the same command again ends the same way
        with pytest.raises(VaeJaxError, match="not finite in the 7 steps before step 30"):
            train(faulty, tmp_path / "run")
        assert checkpoint_steps(tmp_path / "run") == [10, 20]
        assert not (tmp_path / "run" / "summary.json").exists()
    run = load_run(tmp_path / "run", experiment=faulty)
    assert run.state.step == [20]
    assert run.state.skipped == [0]
    assert np.isfinite(evaluate(run).mean["nll"]).all()


# Resumption


def assert_same_bytes(folder: Path, expected: Path, experiment: Experiment) -> None:
    """The whole state and every metric."""
    assert equal(*(load_run(path, experiment=experiment).state for path in (folder, expected)))
    assert rows(folder) == rows(expected)
    assert summary(folder) == summary(expected)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run never interrupted."""
    with on_devices(2):
        return train(TINY, tmp_path_factory.mktemp("runs") / "run").folder.path


@pytest.mark.others_slow
# The signal after the chunk that ends at `step` stops the next one: between two checkpoints, at
# one, at the end.
@pytest.mark.parametrize(("step", "stopped_at"), [(10, 15), (15, 20), (30, 35)])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    step: int, stopped_at: int, straight: Path, tmp_path: Path
) -> None:
    with (
        interrupted_after(step),
        pytest.raises(Interrupted, match=f"SIGTERM after step {stopped_at}; its state is saved"),
    ):
        train(TINY, tmp_path / "run")
    assert load_run(tmp_path / "run", experiment=TINY).state.step == [stopped_at]
    train(TINY, tmp_path / "run")
    assert_same_bytes(tmp_path / "run", straight, TINY)


def test_a_signal_at_the_end_leaves_the_run_finished(straight: Path, tmp_path: Path) -> None:
    with interrupted_after(35):
        train(TINY, tmp_path / "run")
    assert_same_bytes(tmp_path / "run", straight, TINY)


def test_metrics_have_every_step_once(straight: Path) -> None:
    training = [row["step"] for row in rows(straight) if "loss" in row]
    validation = [row["step"] for row in rows(straight) if "valid_nll" in row]
    assert training == list(range(5, 41, 5))
    assert validation == [10, 20, 30, 40]


def test_validation_at_its_own_steps_on_a_part_of_its_split(straight: Path, tmp_path: Path) -> None:
    """Each fifth step, on 6 images; the parameters are those of a run that validates otherwise."""
    often = dataclasses.replace(TINY, validate_every=5, validate_images=6, checkpoint_every=20)
    run = train(often, tmp_path / "run")
    validation = {
        row["step"]: row["valid_nll"] for row in rows(run.folder.path) if "valid_nll" in row
    }
    assert list(validation) == list(range(5, 41, 5))
    assert checkpoint_steps(run.folder.path) == [20, 40]
    some = evaluate(run, split="valid", num_samples=1, num_images=6).mean["nll"]
    assert validation[40] == pytest.approx(some, rel=1e-5)
    assert summary(run.folder.path)["valid_nll"] == validation[40]
    assert summary(run.folder.path)["params_sha256"] == summary(straight)["params_sha256"]
    seldom = dataclasses.replace(often, validate_every=40, validate_images=None)
    train(seldom, tmp_path / "run")  # the same run


def test_validation_is_float32_and_brings_back_no_more_than_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of training in bfloat16; JAX says in the program how each product is rounded."""
    experiment = dataclasses.replace(TINY, compute_dtype=jnp.bfloat16)
    texts: list[str] = []
    gathered: list[int] = []
    compiled, gather = OnDevices.compiled, parallel.gather

    def recorded(self: OnDevices[Any], *arguments: object) -> Any:
        texts.append(self.mapped.lower(*arguments).as_text())
        return compiled(self, *arguments)

    def counted(sharded: Any, axis: int) -> np.ndarray:
        gathered.append(sharded.nbytes)
        return gather(sharded, axis)

    monkeypatch.setattr(OnDevices, "compiled", recorded)
    monkeypatch.setattr(parallel, "gather", counted)
    with on_devices(2):
        state = jax.jit(jax.vmap(partial(init_state, experiment)))(np.zeros(1, np.uint32))
        result = make_validation(experiment)(state.variables)
    assert result.keys() == {"valid_neg_elbo", "valid_nll"}
    assert sum(gathered) == 2 * 4 * 22  # of 21 images, on two devices
    products = [line for line in texts[0].splitlines() if "dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    assert "bf16" not in texts[0]


@pytest.mark.slow
def test_the_step_count_of_a_schedule_survives_resumption(tmp_path: Path) -> None:
    once = optax.sgd(lambda count: jnp.where(count == 25, 0.1, 0.0))
    experiment = dataclasses.replace(UNVALIDATED, optimizer=once, num_steps=30)
    with pytest.raises(Interrupted), interrupted_after(10):
        train(experiment, tmp_path / "run")
    interrupted = load_run(tmp_path / "run", experiment=experiment).state
    final = train(experiment, tmp_path / "run").state
    assert change(interrupted.params, final.params) > 1e-3
    count = jax.tree.leaves(final.opt_state)
    assert [leaf.item() for leaf in count] == [30]


def test_another_seed_is_another_run(straight: Path, tmp_path: Path) -> None:
    train(TINY, tmp_path / "run", seed=1)
    assert summary(tmp_path / "run")["params_sha256"] != summary(straight)["params_sha256"]


def test_params_sha256_is_that_of_the_checkpoint(straight: Path) -> None:
    params = load_run(straight, experiment=TINY).state.params
    assert summary(straight)["params_sha256"] == fingerprint(params)


# Seeds


def test_two_seeds_at_once_are_the_two_runs(straight: Path, tmp_path: Path) -> None:
    both = train(TINY, tmp_path / "both", seed=0, num_seeds=2).state
    assert {leaf.shape[0] for leaf in jax.tree.leaves(both)} == {2}
    one = load_run(straight, experiment=TINY).state
    other = train(TINY, tmp_path / "other", seed=1).state
    separate = jax.tree.map(lambda *leaves: np.concatenate(leaves), one, other)
    assert change(separate, both) < 1e-4 < 1e-1 < change(one.params, other.params)
    for row, expected in zip(rows(tmp_path / "both"), rows(straight), strict=True):
        for name in row.keys() - {"step"}:
            assert len(row[name]) == 2
            assert row[name][0] == pytest.approx(expected[name], rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_two_seeds_are_resumed_together(tmp_path: Path) -> None:
    for name, step in (("straight", None), ("resumed", 10)):
        if step is not None:
            with pytest.raises(Interrupted), interrupted_after(step):
                train(TINY, tmp_path / name, num_seeds=2)
        train(TINY, tmp_path / name, num_seeds=2)
    assert_same_bytes(tmp_path / "resumed", tmp_path / "straight", TINY)


@pytest.mark.slow
def test_replicas_on_devices_of_their_own_are_those_that_share_devices(tmp_path: Path) -> None:
    with on_devices(2):  # which divide four replicas, and do not divide three
        four, three = (train(UNVALIDATED, tmp_path / str(n), num_seeds=n).state for n in (4, 3))
    assert Layout.of(4, 1).apart
    assert not Layout.of(3, 2).apart
    first_three = jax.tree.map(lambda leaf: leaf[:3], four)
    assert change(three, first_three) < 1e-4
    assert (first_three.step == 40).all()


# Streaming


@pytest.mark.others_slow
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_a_streamed_run_is_the_resident_run_to_the_byte(
    num_seeds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in chunks that end between two lines of metrics: of a step or so, of 5 that are due."""
    monkeypatch.setattr("vae_jax.train.STREAMED_BYTES", 1000)
    for name in ("streamed", "resident"):
        train(TINY, tmp_path / name, num_seeds=num_seeds, streamed=name == "streamed")
    assert_same_bytes(tmp_path / "streamed", tmp_path / "resident", TINY)


@pytest.mark.slow
def test_a_streamed_run_goes_on_to_the_same_bytes(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted), interrupted_after(15):
        train(TINY, tmp_path / "run", streamed=True)
    train(TINY, tmp_path / "run", streamed=True)
    assert_same_bytes(tmp_path / "run", straight, TINY)


def test_images_too_large_for_a_device_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_streamed(TINY.data)
    monkeypatch.setattr(parallel, "device_memory", lambda: 4 * TINY.data.train.images.nbytes - 1)
    assert is_streamed(TINY.data)


@pytest.mark.parametrize(("seed", "num_seeds"), [(0, 0), (-1, 1), (2**32 - 1, 2)])
def test_seeds_that_do_not_exist_are_refused(seed: int, num_seeds: int, tmp_path: Path) -> None:
    with pytest.raises(VaeJaxError, match="take at least one seed"):
        train(TINY, tmp_path / "run", seed=seed, num_seeds=num_seeds)
    assert not (tmp_path / "run").exists()


# Other variable collections


class Centered(nn.Module):
    """An encoder that subtracts a running mean of its inputs, as batch normalization does."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(len(x), -1)
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[1:])
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * batch_mean(x.mean(0))
        return nn.tanh(nn.Dense(8)(x - mean.value))


@pytest.fixture
def centered() -> Experiment:
    model = tiny.model().clone(encoder=Centered())
    return dataclasses.replace(TINY, data=tiny.data("threshold"), model=model)


def running_mean(experiment: Experiment, num_steps: int) -> np.ndarray:
    """What `Centered` has after these steps, by hand."""
    x = (experiment.data.train.images > 127).reshape(90, -1).astype(np.float32)
    mean = np.zeros(16)
    for batch in batch_indices(0, 0, num_steps, 90, experiment.batch_size):
        mean = 0.9 * mean + 0.1 * x[batch].mean(0)
    return mean


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_model_state_is_trained_saved_and_restored(
    devices: int, centered: Experiment, tmp_path: Path
) -> None:
    with on_devices(devices):
        with pytest.raises(Interrupted), interrupted_after(10):
            train(centered, tmp_path / "run")
        half = load_run(tmp_path / "run", experiment=centered)
        train(centered, tmp_path / "run")
    final = load_run(tmp_path / "run", experiment=centered)
    for run, num_steps in ((half, 15), (final, 40)):
        mean = run.variables["batch_stats"]["encoder"]["mean"][0]
        np.testing.assert_allclose(mean, running_mean(centered, num_steps), rtol=1e-5, atol=1e-6)
    assert np.isfinite(evaluate(final).mean["nll"]).all()  # which does not change the mean


@pytest.mark.slow
def test_every_device_has_the_same_model_state(centered: Experiment) -> None:
    images = replicate(centered.data.train.images)
    seeds = np.zeros(1, np.uint32)
    state = replicate(jax.jit(jax.vmap(partial(init_state, centered)))(seeds))
    batches = Batch(rows=split(batch_indices(0, 0, 3, 90, 16)[None], 2), images=None, y=None)
    train_chunk = make_train_chunk(centered, Replicated())
    state, _ = train_chunk(state, images, batches, replicate(seeds))
    for leaf in jax.tree.leaves(state):
        assert (np.asarray(leaf[0]) == np.asarray(leaf[1])).all()


# Best and latest


@pytest.fixture(scope="module")
def overtrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Experiment]:
    """A run that climbs the loss after step 20."""
    uphill = optax.adam(lambda count: jnp.where(jnp.asarray(count) < 20, 1e-2, -1e-2))
    experiment = dataclasses.replace(TINY, optimizer=uphill, ema_decay=None, keep_checkpoints=1)
    folder = tmp_path_factory.mktemp("runs") / "run"
    with on_devices(2):
        train(experiment, folder)
    return folder, experiment


def test_the_best_checkpoint_is_of_the_step_that_validated_best(
    overtrained: tuple[Path, Experiment],
) -> None:
    folder, experiment = overtrained
    validation = {row["step"]: row["valid_nll"] for row in rows(folder) if "valid_nll" in row}
    assert min(validation, key=validation.__getitem__) == 20
    assert checkpoint_steps(folder) == [20, 40]
    assert load_run(folder, "latest", experiment).state.step == [40]
    best = load_run(folder, "best", experiment)
    assert best.state.step == [20]
    assert evaluate(best, split="valid", num_samples=1).mean["nll"] == pytest.approx(validation[20])


def test_the_best_checkpoint_pairs_parameters_and_optimizer_of_one_step(
    overtrained: tuple[Path, Experiment],
) -> None:
    folder, experiment = overtrained
    best = load_run(folder, "best", experiment).state
    expected, _ = walk(experiment, 20)[-1]
    assert best.opt_state[0].count == [20]
    for part in ("params", "opt_state"):
        assert change(getattr(expected, part), getattr(best, part)) < 1e-4, part


def test_experiment_json_says_what_a_run_from_python_was(straight: Path) -> None:
    record = json.loads((straight / "experiment.json").read_text())
    assert record["experiment"] is None
    assert record["data"]["fingerprint"] == TINY.data.fingerprint
    assert equal(load_run(straight).state, load_run(straight, experiment=TINY).state)
