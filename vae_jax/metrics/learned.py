"""Learned features: those of a small network trained on the data set's own training images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict
from jax import Array

from vae_jax import parallel
from vae_jax.checkpoint import made_once
from vae_jax.data import Split
from vae_jax.metrics.spaces import LEAST_SCALE, Features, in_chunks
from vae_jax.networks.features import MAPS, NUM_STEPS, WIDTH, FeatureNetwork, maps, shrunk
from vae_jax.run import RunFolder

SCALED_BY = 1000  # training images, or up to twice this number, set the scales
SEED = 0


def learned_features(folder: RunFolder, train: Split, num_steps: int = NUM_STEPS) -> Features:
    """Features from all layers of a `FeatureNetwork`, trained once and kept in the run folder.

    They are the spatial means of its three maps and its last layer, each layer scaled to a mean
    variance of 1 on training images. The last layer retains positions but discards details that do
    not matter to its task, such as slight noise, which the maps retain.

    It is a classifier if the training images have labels of two or more classes, else an
    autoencoder, trained by Adam with a cosine schedule, batches of 64 and seed 0, so that the
    features are the same each time.

    Args:
        folder: the run folder.
        train: the training images, the only ones used.
        num_steps: the number of optimizer steps.

    Returns:
        A function from uint8 images of the same shape to `[N, 32 + 64 + 64 + 64]`.
    """
    network = FeatureNetwork.of(train)

    @parallel.jit
    def layers(params: VariableDict, images: Array) -> Array:
        last = jnp.asarray(network.apply(params, shrunk(images)))
        return jnp.concatenate([*(each.mean((1, 2)) for each in maps(params, images)), last], -1)

    like = jax.eval_shape(partial(network.initial, train, SEED))
    trained = partial(network.trained, train, num_steps, SEED)
    params = made_once(folder.path / "features", num_steps, like, trained)

    def unscaled(images: np.ndarray) -> np.ndarray:
        return in_chunks(lambda chunk: layers(params, chunk), images)

    widths = (*MAPS, WIDTH)
    usual = unscaled(train.images[:: max(1, len(train) // SCALED_BY)])
    variances = [layer.var(0).mean() for layer in np.split(usual, np.cumsum(widths)[:-1], 1)]
    scales = np.repeat(np.maximum(np.sqrt(variances), LEAST_SCALE), widths)
    return lambda images: unscaled(images) / scales
