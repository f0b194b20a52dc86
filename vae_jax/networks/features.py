"""A small network whose features distinguish the images of one data set, and its training."""

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
from vae_jax.data import Split, batch_indices
from vae_jax.distributions import Shape
from vae_jax.networks.conv import ConvEncoder
from vae_jax.networks.mlp import MLP

WIDTH, HIDDEN = 64, 256
MAPS = (32, 64, 64)
SIDE = 32  # pixels; the least length of the shorter side to which larger images are reduced
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 1000, 64, 1e-3


class FeatureNetwork(nn.Module):
    """A convolutional encoder to 64 features, trained as a classifier or as an autoencoder.

    Attributes:
        image_shape: (height, width, channels) after `shrunk`.
        num_classes: the number of classes; None makes it an autoencoder.
    """

    image_shape: Shape
    num_classes: int | None

    @classmethod
    def of(cls, train: Split) -> "FeatureNetwork":
        """A classifier if `train` has labels of two or more classes, else an autoencoder."""
        shape = jax.eval_shape(shrunk, train.images[:1]).shape[1:]
        classes = 1 if train.labels is None else len(np.unique(train.labels))
        return cls(shape, classes if classes > 1 else None)

    def setup(self):
        """The layers: one from the features to classes, or two to images."""
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
        """The cross-entropy of labels, or the mean squared error over pixels of images, `[N]`."""
        features = self(images)
        if self.num_classes is None:
            drawn = self.pixels(self.decoder(features))
            return ((drawn - images.reshape(len(images), -1)) ** 2).mean(-1)
        logits = self.classes(nn.relu(features))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def initial(self, train: Split, seed: int) -> VariableDict:
        """Untrained variables for the images of `train`, a function of `seed`."""

        @parallel.jit
        def initial(images: Array, targets: Array) -> Any:
            key = random.purpose(random.key(seed), "learned features")
            return self.init(key, shrunk(images), targets, method="loss")

        return initial(train.images[:1], _targets(train)[:1])

    def trained(self, train: Split, num_steps: int, seed: int) -> VariableDict:
        """Variables trained by Adam with a cosine schedule, in batches of 64.

        Args:
            train: the training split.
            num_steps: the number of steps.
            seed: the seed of the initial variables and the batches.
        """
        optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))

        @parallel.jit
        def step(
            params: VariableDict, state: optax.OptState, images: Array, targets: Array
        ) -> tuple[Any, optax.OptState]:
            def loss(params: VariableDict) -> Array:
                return jnp.asarray(
                    self.apply(params, shrunk(images), targets, method="loss")
                ).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, updates), state

        params, targets = self.initial(train, seed), _targets(train)
        state = optimizer.init(params)
        for rows in batch_indices(seed, 0, num_steps, len(train), BATCH_SIZE):
            params, state = step(params, state, train.images[rows], targets[rows])
        return params


def _targets(train: Split) -> np.ndarray:
    """The class of each image, numbered from 0 among those that occur; zeros without labels."""
    labels = np.zeros(len(train), np.int32) if train.labels is None else train.labels
    return np.unique(labels, return_inverse=True)[1]


def shrunk(images: Array) -> Array:
    """Pixels 0 to 255, `[N, H, W, C]`, to floats in [-1, 1], both sides divided by one integer.

    Pixels are averaged over the largest squares that leave at least 32 along the shorter side.
    """
    factor = max(1, min(images.shape[1:3]) // SIDE)
    return nn.avg_pool(images / 127.5 - 1, (factor, factor), (factor, factor))


def maps(params: VariableDict, images: Array) -> list[Array]:
    """The three maps of a `FeatureNetwork`.

    Args:
        params: the network's variables.
        images: pixels 0 to 255, `[N, H, W, C]`.

    Returns:
        Maps `[N, h, w, F]`, the finest first.
    """
    x, encoder = shrunk(images), {"params": params["params"]["encoder"]}
    return [
        jnp.asarray(ConvEncoder(MAPS[:depth], dense=None).apply(encoder, x))
        for depth in range(1, len(MAPS) + 1)
    ]
