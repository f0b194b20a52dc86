"""A free probability for each of the 256 levels of a pixel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.nn.initializers import Initializer
from jaxtyping import Float, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Distribution, Shape, on_unit
from vae_jax.interfaces import Likelihood


@struct.dataclass
class CategoricalPixelsDistribution(Distribution):
    """P(x_i = k/255) = softmax(logits_i)_k, k = 0, ..., 255.

    Attributes:
        logits: the logits of the levels.
    """

    logits: Float[Array, "*batch H W C 256"]

    event_ndims = 3

    @property
    @override
    def shape(self) -> Shape:
        return self.logits.shape[:-1]

    @property
    def mean(self) -> Float[Array, "*batch H W C"]:
        """sum_k P(k/255) k/255."""
        levels = jnp.arange(256) / 255
        return jnp.matmul(jax.nn.softmax(self.logits), levels, precision=lax.Precision.HIGHEST)

    def sample(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> Float[Array, "*draws H W C"]:
        """Levels k/255, each the largest of logits plus Gumbel noise; not reparameterized."""
        gumbel = random.draw(jax.random.gumbel, key, sample_shape, self.logits.shape)
        return (self.logits + gumbel).argmax(-1) / 255

    def log_prob(self, value: Float[Array, "*draws H W C"]) -> Float[Array, "..."]:
        """The sum of the logarithms of the nearest levels' probabilities; -inf beyond [0, 1]."""
        level = jnp.round(value * 255)[..., None]
        chosen = jnp.where(level == jnp.arange(256), jax.nn.log_softmax(self.logits), 0.0).sum(-1)
        return on_unit(value, chosen).sum((-3, -2, -1))


class CategoricalPixels(Likelihood):
    """p(x|z) = prod softmax(logits_i)_{x_i}: 256 free probabilities (van den Oord et al. 2016).

    It can take any form and does not know the order of the levels; it needs 256 outputs for each
    pixel and channel.

    Attributes:
        kernel_init: the initializer of the affine map to logits.
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()

    supports = frozenset({"uint8"})
    measure = "mass"

    @nn.compact
    @override
    def __call__(
        self, features: Float[Array, "N ..."], image_shape: Shape
    ) -> CategoricalPixelsDistribution:
        logits = self.per_pixel(features, (*image_shape, 256), "logits", self.kernel_init)
        return CategoricalPixelsDistribution(logits)
