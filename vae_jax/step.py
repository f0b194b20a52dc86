"""One training step, and many of them in one scan: pure functions of one device's view.

The state carried between steps; everything else is a function of (seed, data, step).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array, lax

from vae_jax import compute, parallel, random
from vae_jax.data.augment import augmented
from vae_jax.experiment import Experiment
from vae_jax.interfaces import Metrics, Model, Objective


@struct.dataclass
class TrainState:
    """The state carried between steps.

    Attributes:
        step: the number of steps taken, skipped ones included.
        params: the parameters.
        model_state: the model's other variable collections.
        ema_params: the running average of the parameters, or None.
        opt_state: the state of the optimizer.
        skipped: the number of steps skipped because the loss or a gradient was not finite.
        skipped_in_a_row: those since the last good step.
    """

    step: Array
    params: Any
    model_state: Any
    ema_params: Any
    opt_state: Any
    skipped: Array
    skipped_in_a_row: Array

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables to evaluate with: the running average where one is kept."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, **self.model_state}


@struct.dataclass
class Batch:
    """One device's share of a batch.

    Attributes:
        rows: positions `[b]` of its images in the training split.
        images: uint8 `[b, H, W, C]`; None where the whole split is on the device.
        y: labels `[b]` of a conditional model, else None.
    """

    rows: Array
    images: Array | None
    y: Array | None


def loss_at_terms(
    model: Model, objective: Objective, x: Array, keys: Array, y: Array | None, step: Array
) -> tuple[Array, Metrics]:
    """The objective at the model's Terms, in the model's scope, so that it can call its parts."""
    return objective(model(x, keys, objective.num_samples, y), step, model)


def init_state(experiment: Experiment, seed: Array | int) -> TrainState:
    """The state before the first step, a function of the seed alone."""
    key = random.purpose(random.key(seed), "init")
    x = jnp.zeros((1, *experiment.data.image_shape))
    step = jnp.zeros((), jnp.int32)
    init = nn.init(loss_at_terms, experiment.model)  # which also calls a critic
    variables = dict(init(key, experiment.objective, x, key[None], None, step))
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


def loss_of(
    params: Any, experiment: Experiment, state: TrainState, x: Array, keys: Array, y: Array | None
) -> tuple[Array, tuple[Metrics, Any]]:
    """The loss (nats per image) of images in the form of the protocol, metrics, model state."""
    apply = nn.apply(loss_at_terms, experiment.model, mutable=list(state.model_state))
    if experiment.compute_dtype != jnp.float32 or experiment.remat:
        apply = compute.with_policy(apply, experiment.compute_dtype, experiment.remat)
    variables = {"params": params, **state.model_state}
    (loss, metrics), model_state = apply(variables, experiment.objective, x, keys, y, state.step)
    return loss, (metrics, model_state)


def loss_and_gradients(
    experiment: Experiment,
    state: TrainState,
    images: Array,
    batch: Batch,
    seed: Array,
    axis: str | None,
) -> tuple[Array, Metrics, Any, Any]:
    """Loss, metrics, model state and gradients of one batch, the same on every device.

    An example's noise depends on the seed, the step and its position in the global batch.
    """
    position = jnp.arange(len(batch.rows))
    if axis is not None:
        position += lax.axis_index(axis) * len(batch.rows)
    step_key = random.indexed(random.purpose(random.key(seed), "step"), state.step)
    keys = random.indexed(step_key, position)
    protocol = experiment.data.protocol
    if experiment.augment:
        images = augmented(experiment.augment, images, random.purpose(keys, "augment"))
    image_keys = keys if protocol.resampled else random.image_keys("train", batch.rows)
    x = protocol.apply(images, random.purpose(image_keys, "protocol"))

    def differentiated(x: Array, keys: Array, y: Array | None) -> Any:
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, aux), gradients = grad(state.params, experiment, state, x, keys, y)
        return loss, *aux, gradients

    if experiment.accumulate > 1:
        differentiated = in_parts(differentiated, experiment.accumulate)
    result = differentiated(x, keys, batch.y)
    return result if axis is None else lax.pmean(result, axis)


def train_step(
    experiment: Experiment,
    state: TrainState,
    images: Array,
    batch: Batch,
    seed: Array,
    axis: str | None,
) -> tuple[TrainState, Metrics]:
    """One optimizer step; where the loss or a gradient is not finite, no parameter changes."""
    loss, metrics, model_state, gradients = loss_and_gradients(
        experiment, state, images, batch, seed, axis
    )
    gradient_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)

    def updated() -> tuple[Any, Any, Any, Any]:
        updates, opt_state = experiment.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema_params
        if experiment.ema_decay is not None:
            ema = optax.incremental_update(params, ema, 1 - experiment.ema_decay)
        return params, model_state, ema, opt_state

    old = (state.params, state.model_state, state.ema_params, state.opt_state)
    state = TrainState(
        state.step + 1,
        *parallel.updated_if(finite, updated, old),
        skipped=state.skipped + ~finite,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )
    counters = {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
    return state, metrics | counters | {"loss": loss, "gradient_norm": gradient_norm}


def in_parts(function: Any, parts: int) -> Any:
    """The mean of a function over equal parts of its arguments, taken one after the other."""

    def mean(*arguments: Any) -> Any:
        split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), arguments)
        first = jax.tree.map(lambda a: a[0], split)
        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function, *first)
        )

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, function(*part)), None

        total, _ = lax.scan(add, zeros, split)
        return jax.tree.map(lambda a: a / parts, total)

    return mean


def scanned_steps(
    experiment: Experiment,
    axis: str | None,
    state: TrainState,
    images: Array | None,
    batches: Batch,
    seed: Array,
) -> tuple[TrainState, Metrics]:
    """One step for each batch, `[steps, b, ...]`, and each step's metrics `[steps]`.

    Args:
        experiment: what is trained.
        axis: the name of the devices' axis that shares the batch; None where none does.
        state: before the first step.
        images: the training split `[N, H, W, C]`; None where the batches bring their images.
        batches: the steps' batches.
        seed: the run's seed.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        own = batch.images if images is None else images[batch.rows]
        assert own is not None
        return train_step(experiment, state, own, batch, seed, axis)

    return lax.scan(step, state, batches)


def make_train_chunk(experiment: Experiment, layout: parallel.Layout) -> parallel.OnDevices:
    """Many steps in one call: scanned over steps, mapped over seeds, on every device.

    Returns:
        A function of state `[D, S, ...]` (donated), the training images `[D, N, H, W, C]` or None,
        batches `[D, S, steps, b, ...]` and seeds `[D, S]`, to the new state and each step's metrics
        `[D, S, steps]`; D devices, S seeds on each.
    """
    return layout.over_seeds(partial(scanned_steps, experiment, layout.axis))
