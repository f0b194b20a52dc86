"""Gradients of one batch on any number of devices, and how close two results are."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from running import on_devices

from vae_jax import parallel
from vae_jax.experiment import Experiment
from vae_jax.step import Batch, TrainState, init_state, loss_and_gradients


def one_batch(experiment: Experiment, *devices: int) -> list[Any]:
    """Loss, metrics, model state and gradients of one batch, for each number of devices."""
    state = jax.tree.map(np.asarray, jax.jit(partial(init_state, experiment))(np.uint32(3)))
    return [parallel.unreplicate(on_each_device(experiment, state, count)) for count in devices]


def on_each_device(experiment: Experiment, state: TrainState, devices: int) -> Any:
    """The same at step 7, with the axis of devices."""
    rows = np.arange(20, 20 + experiment.batch_size, dtype=np.int32)
    images, labels = experiment.data.train.images[rows], experiment.data.train.labels
    with on_devices(devices):
        layout = parallel.Layout.of(1, experiment.batch_size, experiment.accumulate)
        batch = Batch(
            rows=parallel.split(rows, 0),
            images=None,
            y=None if experiment.model.labels is None else parallel.split(labels[rows], 0),
        )

        def of_share(state: TrainState, images: Array, batch: Batch) -> Any:
            return loss_and_gradients(experiment, state, images, batch, jnp.uint32(3), layout.axis)

        function = parallel.on_every_device(of_share, axis=layout.axis)
        state = state.replace(step=np.asarray(7))  # pyright: ignore[reportAttributeAccessIssue]
        return function(parallel.replicate(state), parallel.split(images, 0), batch)


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Leaf by leaf: the difference's norm is within `tolerance` of the leaf's."""

    def compare(path: Any, actual: Array, expected: Array) -> None:
        difference = np.linalg.norm(np.subtract(actual, expected))
        allowed = tolerance * np.linalg.norm(expected) + 1e-12
        assert difference <= allowed, f"{jax.tree_util.keystr(path)}: {difference} > {allowed}"

    jax.tree_util.tree_map_with_path(compare, actual, expected)
