"""Learned features: those of a small network trained on the data set's own training images."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.typing import VariableDict
from jax import Array

from vae_jax import parallel, random
from vae_jax.checkpoint import Checkpoints
from vae_jax.data import Split, batch_indices
from vae_jax.distributions import Shape
from vae_jax.metrics.spaces import LEAST_SCALE, Features, in_chunks
from vae_jax.networks import MLP, ConvEncoder
from vae_jax.run import RunFolder

WIDTH, HIDDEN = 64, 256
MAPS = (32, 64, 64)
SIDE = 32  # pixels; larger images are reduced, their shorter side to no fewer
SCALED_BY = 1000  # training images, or a few more
NUM_STEPS, BATCH_SIZE, LEARNING_RATE, SEED = 1000, 64, 1e-3, 0


class FeatureNetwork(nn.Module):
    """A convolutional encoder to 64 features, trained as a classifier or as an autoencoder.

    Attributes:
        image_shape: (height, width, channels) after `shrunk`.
        num_classes: the number of classes; None makes it an autoencoder.
    """

    image_shape: Shape
    num_classes: int | None

    def setup(self):
        """Classes are read out by one layer, images by two."""
        self.encoder = ConvEncoder(MAPS, dense=None)
        self.project = nn.Dense(WIDTH)
        if self.num_classes is None:
            self.decoder = MLP((HIDDEN,), nn.relu)
            self.pixels = nn.Dense(math.prod(self.image_shape))
        else:
            self.classes = nn.Dense(self.num_classes)

    def __call__(self, images: Array) -> Array:
        """Images `[N, H, W, C]` from `shrunk` to features `[N, 64]`."""
        h = self.encoder(images)
        return self.project(h.reshape(len(h), -1))

    def loss(self, images: Array, labels: Array) -> Array:
        """Cross-entropy, or the mean squared error over pixels, `[N]`."""
        features = self(images)
        if self.num_classes is None:
            drawn = self.pixels(self.decoder(features))
            return ((drawn - images.reshape(len(images), -1)) ** 2).mean(-1)
        logits = self.classes(nn.relu(features))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def shrunk(images: Array) -> Array:
    """uint8 `[N, H, W, C]` to floats in [-1, 1], both sides divided by the same integer.

    Means over squares of pixels, the largest that leave 32 of them along the shorter side.
    """
    factor = max(1, min(images.shape[1:3]) // SIDE)
    return nn.avg_pool(images / 127.5 - 1, (factor, factor), (factor, factor))


def learned_features(folder: RunFolder, train: Split, num_steps: int = NUM_STEPS) -> Features:
    """Features from all layers of a `FeatureNetwork`, trained once and kept in the run folder.

    They are the spatial means of its three maps and its last layer, each layer scaled to a mean
    variance of 1 on training images. The last layer knows where things are but forgets what does
    not matter to the class, such as slight noise, which the maps see.

    It is a classifier if the training images have labels of two or more classes, else an
    autoencoder, trained by Adam with a cosine schedule, batches of 64 and seed 0, so that the
    features are the same each time.

    Args:
        folder: the run folder.
        train: the training images; no others are seen.
        num_steps: the number of optimizer steps.

    Returns:
        A function from uint8 images of the same shape to `[N, 32 + 64 + 64 + 64]`.
    """
    labels = np.zeros(len(train), np.int32) if train.labels is None else train.labels
    classes, targets = np.unique(labels, return_inverse=True)
    num_classes = len(classes) if len(classes) > 1 else None
    shape = jax.eval_shape(shrunk, train.images[:1]).shape[1:]
    network = FeatureNetwork(shape, num_classes)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))

    @parallel.jit
    def initial(images: Array, targets: Array) -> Any:
        return network.init(
            random.purpose(random.key(SEED), "learned features"),
            shrunk(images),
            targets,
            method="loss",
        )

    @parallel.jit
    def step(
        params: VariableDict, state: optax.OptState, images: Array, targets: Array
    ) -> tuple[Any, optax.OptState]:
        def loss(params: VariableDict) -> Array:
            return jnp.asarray(network.apply(params, shrunk(images), targets, method="loss")).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    @parallel.jit
    def layers(params: VariableDict, images: Array) -> Array:
        x, encoder = shrunk(images), {"params": params["params"]["encoder"]}
        maps = [
            jnp.asarray(ConvEncoder(MAPS[:depth], dense=None).apply(encoder, x))
            for depth in range(1, len(MAPS) + 1)
        ]
        last = jnp.asarray(network.apply(params, x))
        return jnp.concatenate([*(each.mean((1, 2)) for each in maps), last], -1)

    with Checkpoints(folder.path / "features") as checkpoints:
        first = train.images[:1], targets[:1]
        params = checkpoints.read(num_steps, jax.eval_shape(initial, *first))
        if params is None:
            params = initial(*first)
            state = optimizer.init(params)
            for rows in batch_indices(SEED, 0, num_steps, len(train), BATCH_SIZE):
                params, state = step(params, state, train.images[rows], targets[rows])
            checkpoints.save(num_steps, jax.tree.map(np.asarray, params), None)
            checkpoints.wait()

    def unscaled(images: np.ndarray) -> np.ndarray:
        return in_chunks(lambda chunk: layers(params, chunk), images)

    widths = (*MAPS, WIDTH)
    usual = unscaled(train.images[:: max(1, len(train) // SCALED_BY)])
    variances = [layer.var(0).mean() for layer in np.split(usual, np.cumsum(widths)[:-1], 1)]
    scales = np.repeat(np.maximum(np.sqrt(variances), LEAST_SCALE), widths)
    return lambda images: unscaled(images) / scales
