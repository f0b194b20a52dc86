"""A probability of its own for each of the 256 levels of a pixel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Distribution, Shape
from vae_jax.interfaces import Likelihood


@struct.dataclass
class CategoricalPixelsDistribution(Distribution):
    """P(x_i = k/255) = softmax(logits_i)_k, k = 0..255.

    Attributes:
        logits: `[*batch, H, W, C, 256]`.
    """

    logits: Array

    event_ndims = 3

    @property
    @override
    def shape(self) -> Shape:
        return self.logits.shape[:-1]

    @property
    def mean(self) -> Array:
        """sum_k P(k/255) k/255, `[*batch, H, W, C]`."""
        return jax.nn.softmax(self.logits) @ (jnp.arange(256) / 255)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Levels k/255, by the largest of logits plus Gumbel noise."""
        gumbel = random.draw(jax.random.gumbel, key, sample_shape, self.logits.shape)
        return (self.logits + gumbel).argmax(-1) / 255

    def log_prob(self, value: Array) -> Array:
        """Sum of the logarithms of the levels' probabilities, nats."""
        level = jnp.round(value * 255)[..., None]
        chosen = jnp.where(level == jnp.arange(256), jax.nn.log_softmax(self.logits), 0.0)
        return chosen.sum((-4, -3, -2, -1))


class CategoricalPixels(Likelihood):
    """p(x|z) = prod softmax(logits_i)_{x_i}: 256 free probabilities (van den Oord et al. 2016).

    The levels' order means nothing to it; it can be of any shape, at 256 outputs a pixel and
    channel.

    Attributes:
        kernel_init: of the affine map to logits.
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()

    supports = frozenset({"uint8"})
    measure = "mass"

    @nn.compact
    def __call__(self, features: Array, image_shape: Shape) -> CategoricalPixelsDistribution:
        """Features `[N, ...]` to batch `[N]`, event `[H, W, C]`."""
        logits = self.per_pixel(features, (*image_shape, 256), "logits", self.kernel_init)
        return CategoricalPixelsDistribution(logits)
