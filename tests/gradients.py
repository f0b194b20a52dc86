"""Gradients of one batch on any number of devices, and how close two results are."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from perturbation import normals
from running import on_devices

from vae_jax import parallel
from vae_jax.experiment import Experiment
from vae_jax.interfaces import Metrics, Model, Objective
from vae_jax.step import Batch, TrainState, init_state, loss_and_gradients, loss_at_terms


def params_of(model: Model, objective: Objective, x: Any, keys: Array) -> Any:
    """`normals` as the parameters of a model with its critic."""
    init, step = nn.init(loss_at_terms, model), jnp.int32(0)
    return normals(jax.eval_shape(lambda: init(keys[0], objective, x, keys, None, step))["params"])


def loss_and_metrics(
    params: Any, model: Model, objective: Objective, x: Any, keys: Array, step: Array | int = 0
) -> tuple[Array, Metrics]:
    """The objective in the model, as a function of the parameters."""
    apply = nn.apply(loss_at_terms, model)
    return apply({"params": params}, objective, x, keys, None, jnp.asarray(step))


@partial(jax.jit, static_argnums=(1, 2))
def gradients_of(
    params: Any, model: Model, objective: Objective, x: Any, keys: Array
) -> tuple[Any, Metrics]:
    """Those of the loss, and the metrics."""
    return jax.grad(loss_and_metrics, has_aux=True)(params, model, objective, x, keys)


def begun(experiment: Experiment) -> TrainState:
    """The state that training begins with."""
    return jax.tree.map(np.asarray, jax.jit(partial(init_state, experiment))(np.uint32(3)))


def one_batch(experiment: Experiment, *devices: int, state: TrainState | None = None) -> list[Any]:
    """Loss, metrics, model state and gradients of one batch, for each number of devices."""
    state = begun(experiment) if state is None else state
    return [parallel.unreplicate(on_each_device(experiment, state, count)) for count in devices]


def on_each_device(experiment: Experiment, state: TrainState, devices: int) -> Any:
    """The same at step 7, with the axis of devices."""
    rows = np.arange(20, 20 + experiment.batch_size, dtype=np.int32)
    images = experiment.data.train.images[rows]
    labels = None if experiment.model.labels is None else experiment.data.train.labels
    with on_devices(devices):
        layout = parallel.Layout.of(1, experiment.batch_size, experiment.accumulate)
        batch = Batch(
            rows=parallel.split(rows, 0),
            images=None,
            y=None if labels is None else parallel.split(labels[rows], 0),
        )

        def of_share(state: TrainState, images: Array, batch: Batch) -> Any:
            return loss_and_gradients(experiment, state, images, batch, jnp.uint32(3), layout.axis)

        function = parallel.on_every_device(of_share, axis=layout.axis)
        state = state.replace(step=np.asarray(7))  # pyright: ignore[reportAttributeAccessIssue]
        return function(parallel.replicate(state), parallel.split(images, 0), batch)


def norm(tree: Any) -> float:
    """The Euclidean norm of all leaves together."""
    return float(np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree))))


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Leaf by leaf: the difference's norm is within `tolerance` of the leaf's."""

    def compare(path: Any, actual: Array, expected: Array) -> None:
        difference = np.linalg.norm(np.subtract(actual, expected))
        allowed = tolerance * np.linalg.norm(expected) + 1e-12
        assert difference <= allowed, f"{jax.tree_util.keystr(path)}: {difference} > {allowed}"

    jax.tree_util.tree_map_with_path(compare, actual, expected)
