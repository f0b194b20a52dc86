"""One training step, and many of them in one scan: pure functions of one device's view.

Only a `TrainState` is carried between steps; everything else is a function of (seed, data, step).
"""

# The stubs of jax.numpy leave members partly unknown, and optax has none.
# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Int, Integer, Key, Num, UInt8

from vae_jax import compute, parallel, random
from vae_jax.cpu.sums import norm
from vae_jax.data.augment import augmented
from vae_jax.experiment import Experiment
from vae_jax.interfaces import Metrics, Model, Objective, Variables

Tree = TypeVar("Tree")


@struct.dataclass
class TrainState:
    """The state carried between steps.

    Attributes:
        step: the number of steps taken, skipped ones included.
        params: the parameters.
        model_state: the model's other variable collections.
        ema_params: the running average of the parameters, or None.
        opt_state: the state of the optimizer.
        skipped: the number of steps skipped because the loss or a gradient was not finite, or the
            gradient's norm above `skip_above`.
        skipped_in_a_row: the number of steps skipped since the last good one.
    """

    step: Int[Array, ""]
    params: Variables
    model_state: Variables
    ema_params: Variables | None
    opt_state: optax.OptState
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]

    @property
    def variables(self) -> Variables:
        """The variables to evaluate the model with: the running average if one is kept."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, **self.model_state}


@struct.dataclass
class Batch:
    """One device's share of a batch.

    Attributes:
        rows: the positions of its images in the training split.
        images: the images, or None if the whole split is on the device.
        y: the labels of a conditional model, else None.
    """

    rows: Integer[Array, "b"]
    images: UInt8[Array, "b H W C"] | None
    y: Int[Array, "b"] | None


TrainStep = Callable[..., tuple[TrainState, Metrics]]
"""A function of the state, images, a batch, a seed and the numbers in which experiments that share
the step differ."""


def train_step(
    experiment: Experiment,
    state: TrainState,
    images: UInt8[Array, "b H W C"],
    batch: Batch,
    seed: Integer[Array, ""],
    axis: str | None,
) -> tuple[TrainState, Metrics]:
    """One training step, a function of (seed, data, step).

    Args:
        experiment: the experiment to train.
        state: the state before the step.
        images: the batch's images, as stored.
        batch: their rows and labels.
        seed: the seed of the run.
        axis: the name of the axis of devices over which to average; None on a single device.

    Returns:
        The state after the step, and metrics.
    """
    found = loss_and_gradients(experiment, state, images, batch, seed, axis)
    return apply_gradients(experiment, state, *found)


def inputs(
    experiment: Experiment,
    step: Int[Array, ""],
    images: UInt8[Array, "b H W C"],
    batch: Batch,
    seed: Integer[Array, ""],
    axis: str | None,
) -> tuple[Float[Array, "b H W C"], Key[Array, "b"]]:
    """A batch's images in the form of the data's protocol, and a key for each.

    An example's noise depends on the seed, the step and its position in the global batch; that of a
    protocol that is not resampled depends on its row alone.

    Args: as in `train_step`.
    """
    position = jnp.arange(len(batch.rows))
    if axis is not None:
        position += lax.axis_index(axis) * len(batch.rows)
    step_key = random.indexed(random.purpose(random.key(seed), "step"), step)
    keys = random.indexed(step_key, position)
    if experiment.augment:
        images = augmented(experiment.augment, images, random.purpose(keys, "augment"))
    protocol = experiment.data.protocol
    image_keys = keys if protocol.resampled else random.image_keys("train", batch.rows)
    return protocol.apply(images, random.purpose(image_keys, "protocol")), keys


def loss_and_gradients(
    experiment: Experiment,
    state: TrainState,
    images: UInt8[Array, "b H W C"],
    batch: Batch,
    seed: Integer[Array, ""],
    axis: str | None,
) -> tuple[Float[Array, ""], Metrics, Variables, Variables]:
    """Loss, metrics, model state and gradients of one batch, the same on every device.

    Args: as in `train_step`.
    """
    x, keys = inputs(experiment, state.step, images, batch, seed, axis)
    gradient = partial(jax.value_and_grad(loss_of, has_aux=True), state.params, experiment, state)
    if experiment.accumulate > 1:
        gradient = in_parts(gradient, experiment.accumulate)
    (loss, (metrics, model_state)), gradients = gradient(x, keys, batch.y)
    found = loss, metrics, model_state, gradients
    return found if axis is None else lax.pmean(found, axis)


def loss_of(
    params: Variables,
    experiment: Experiment,
    state: TrainState,
    x: Float[Array, "b H W C"],
    keys: Key[Array, "b"],
    y: Int[Array, "b"] | None,
) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
    """The loss of one batch as a function of the parameters.

    Args:
        params: the parameters.
        experiment: the experiment to train.
        state: the state, of which the step and the model's state are read.
        x: images in the form of the data's protocol.
        keys: typed keys, one for each image.
        y: the labels of a conditional model, else None.

    Returns:
        The loss in nats per image, metrics and the new model state.
    """
    mutable = [] if experiment.objective.holds_state else list(state.model_state)
    apply = nn.apply(loss_at_terms, experiment.model, mutable=mutable)
    if jnp.dtype(experiment.compute_dtype) != jnp.float32 or experiment.remat:
        apply = compute.with_policy(apply, experiment.compute_dtype, experiment.remat)
    variables = {"params": params, **state.model_state}
    (loss, metrics), changed = apply(variables, experiment.objective, x, keys, y, state.step)
    return loss, (metrics, {**state.model_state, **changed})


def loss_at_terms(
    model: Model,
    objective: Objective,
    x: Float[Array, "b H W C"],
    keys: Key[Array, "b"],
    y: Int[Array, "b"] | None,
    step: Int[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """The objective at the model's Terms, in the model's scope, so that it can call its parts.

    Args:
        model: the model, within `nn.apply` or `nn.init`.
        objective: the objective.
        x: images in the form of the data's protocol.
        keys: typed keys, one for each image.
        y: the labels of a conditional model, else None.
        step: the step of training.

    Returns:
        The loss in nats per image, and metrics.
    """
    return objective(model(x, keys, objective.num_samples, y), step, model)


def apply_gradients(
    experiment: Experiment,
    state: TrainState,
    loss: Float[Array, ""],
    metrics: Metrics,
    model_state: Variables,
    gradients: Variables,
) -> tuple[TrainState, Metrics]:
    """One optimizer step, skipped if a number is not finite or the gradient's norm too large."""
    gradient_norm = norm(gradients)
    good = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    if experiment.skip_above is not None:
        good &= gradient_norm <= experiment.skip_above

    def updated() -> tuple[Variables, Variables, Variables | None, optax.OptState]:
        updates, opt_state = experiment.optimizer.update(gradients, state.opt_state, state.params)
        params = cast(Variables, optax.apply_updates(state.params, updates))
        ema = averaged(state.ema_params, params, experiment.ema_decay)
        return params, model_state, ema, opt_state

    old = (state.params, state.model_state, state.ema_params, state.opt_state)
    new = parallel.updated_if(good, updated, old)
    in_a_row = jnp.where(good, 0, state.skipped_in_a_row + 1)
    state = TrainState(state.step + 1, *new, state.skipped + ~good, in_a_row)
    counters = {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
    return state, metrics | counters | {"loss": loss, "gradient_norm": gradient_norm}


def averaged(ema: Variables | None, params: Variables, decay: float | None) -> Variables | None:
    """The running average of parameters after one more step, if one is kept.

    An average that equals its parameter does not drift.

    Args:
        ema: the average before the step, or None.
        params: the parameters after the step.
        decay: the weight of the old average, or None.
    """
    if ema is None or decay is None:
        return None
    moved = optax.incremental_update(params, ema, 1 - decay)

    def unless_equal(old: Array, new: Array, moved: Array) -> Array:
        return jnp.where(old == new, old, moved)

    return cast(Variables, jax.tree.map(unless_equal, ema, params, moved))


def in_parts(function: Callable[..., Tree], parts: int) -> Callable[..., Tree]:
    """The mean of a function over equal parts of its arguments, taken one after the other.

    Args:
        function: a function of arrays `[B, ...]` (or None) to a tree of arrays.
        parts: the number of parts, which divides B.

    Returns:
        A function of the same arguments that returns the mean over parts.
    """

    def split_up(argument: Array) -> Array:
        return argument.reshape(parts, -1, *argument.shape[1:])

    def first_of(argument: Array) -> Array:
        return argument[0]

    def zeros(leaf: jax.ShapeDtypeStruct) -> Array:
        return jnp.zeros(leaf.shape, leaf.dtype)

    def over_parts(leaf: Array) -> Array:
        return leaf / parts

    def mean(*arguments: Array | None) -> Tree:
        split = jax.tree.map(split_up, arguments)
        first = jax.tree.map(first_of, split)
        start = jax.tree.map(zeros, jax.eval_shape(function, *first))

        def add(total: Tree, part: tuple[Array | None, ...]) -> tuple[Tree, None]:
            return jax.tree.map(jnp.add, total, function(*part)), None

        total, _ = lax.scan(add, start, split)
        return jax.tree.map(over_parts, total)

    return mean


def scanned_steps(
    one_step: TrainStep,
    state: TrainState,
    images: UInt8[Array, "N H W C"] | None,
    batches: Batch,
    seed: Integer[Array, ""],
    *numbers: Num[Array, "..."],
) -> tuple[TrainState, dict[str, Num[Array, "steps"]]]:
    """One step for each batch, and the metrics of each step.

    Args:
        one_step: `train_step` of an experiment, or of several that differ in numbers alone.
        state: the state before the first step.
        images: the training split; None if the batches bring their images.
        batches: the batches of the steps, `[steps, b, ...]`.
        seed: the seed of the run.
        numbers: the numbers of one of several experiments.

    Returns:
        The state after the last step, and the metrics of each step.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        own = batch.images if images is None else images[batch.rows]
        assert own is not None
        return one_step(state, own, replace(batch, images=None), seed, *numbers)

    return lax.scan(step, state, batches)


def sharded_step(experiment: Experiment, layout: parallel.Sharded) -> TrainStep:
    """`train_step` of an `experiment` for all devices of a `layout`, each with its share."""
    gradients_of_share = partial(loss_and_gradients, experiment, axis=layout.axis)

    def step(
        state: TrainState, images: UInt8[Array, "B H W C"], batch: Batch, seed: Integer[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        lean = replace(state, opt_state=(), ema_params=None)  # gradients do not need them
        found = layout.on_shares(gradients_of_share)(lean, images, batch, seed)
        state, metrics = apply_gradients(experiment, state, *found)
        return layout.constrained(state), metrics

    return step


def make_train_chunk(
    experiment: Experiment, layout: parallel.Layout, one_step: TrainStep | None = None
) -> parallel.OnDevices[tuple[TrainState, Metrics]]:
    """Many steps in one call: scanned over steps, mapped over seeds, on every device.

    Args:
        experiment: the experiment to train.
        layout: the layout of its replicas on the devices.
        one_step: a step that the experiment shares with others; None takes its own.

    Returns:
        A function of the state `[D, S, ...]` (donated), the training images `[D, N, H, W, C]` or
        None, batches `[D, S, steps, b, ...]`, seeds `[D, S]` and the numbers of a shared step,
        `[D, S, ...]` each, for D devices with S seeds each. It returns the new state and the
        metrics of each step, `[D, S, steps]`.
    """
    if isinstance(layout, parallel.Sharded):
        one_step = sharded_step(experiment, layout)
    one_step = one_step or partial(train_step, experiment, axis=layout.axis)
    return layout.over_seeds(partial(scanned_steps, one_step))


def init_state(experiment: Experiment, seed: int | Integer[Array, ""]) -> TrainState:
    """The state of an `experiment` before its first step, a function of `seed` alone."""
    key = random.purpose(random.key(seed), "init")
    x = jnp.zeros((1, *experiment.data.image_shape))
    step = jnp.zeros((), jnp.int32)
    init = nn.init(loss_at_terms, experiment.model)  # which also calls a critic
    y = None if experiment.model.labels is None else jnp.zeros(1, jnp.int32)
    variables = dict(init(key, experiment.objective, x, key[None], y, step))
    params = variables.pop("params")
    return TrainState(
        step=step,
        params=params,
        model_state=variables,
        ema_params=None if experiment.ema_decay is None else jax.tree.map(jnp.copy, params),
        opt_state=experiment.optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def empty_batch(experiment: Experiment, size: int) -> tuple[UInt8[Array, "b H W C"], Batch]:
    """Images and a batch of `size` rows of an `experiment`, for their shapes and types alone."""
    split = experiment.data.train
    labels = None if experiment.model.labels is None else split.labels
    y = None if labels is None else jnp.zeros(size, labels.dtype)
    images = jnp.zeros((size, *split.images.shape[1:]), split.images.dtype)
    return images, Batch(rows=jnp.zeros(size, jnp.int32), images=None, y=y)
