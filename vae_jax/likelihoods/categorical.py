"""Categorical pixels: a free probability for each level."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.nn.initializers import Initializer
from jaxtyping import Float, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Distribution, Shape, on_unit, sum_event
from vae_jax.likelihoods.base import OfLevels


@struct.dataclass
class CategoricalPixelsDistribution(Distribution):
    """P(x_i = k/(L - 1)) = softmax(logits_i)_k, k = 0, ..., L - 1.

    Attributes:
        logits: the logits of the levels.
    """

    logits: Float[Array, "*batch H W C L"]

    event_ndims = 3

    @property
    @override
    def shape(self) -> Shape:
        return self.logits.shape[:-1]

    @property
    def levels(self) -> int:
        """The number L of levels."""
        return self.logits.shape[-1]

    @property
    def mean(self) -> Float[Array, "*batch H W C"]:
        """sum_k P(k/(L - 1)) k/(L - 1)."""
        levels = jnp.arange(self.levels) / (self.levels - 1)
        return jnp.matmul(jax.nn.softmax(self.logits), levels, precision=lax.Precision.HIGHEST)

    def sample(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> Float[Array, "*draws H W C"]:
        """Levels, each the largest of logits plus Gumbel noise; not reparameterized."""
        gumbel = random.draw(jax.random.gumbel, key, sample_shape, self.logits.shape)
        return (self.logits + gumbel).argmax(-1) / (self.levels - 1)

    def log_prob(self, value: Float[Array, "*draws H W C"]) -> Float[Array, "..."]:
        """The summed log-probabilities of the levels nearest to the values; -inf beyond [0, 1]."""
        level, levels = jnp.round(value * (self.levels - 1))[..., None], jnp.arange(self.levels)
        chosen = jnp.where(level == levels, jax.nn.log_softmax(self.logits), 0.0).sum(-1)
        return sum_event(on_unit(value, chosen), 3)


class CategoricalPixels(OfLevels):
    """p(x|z) = prod softmax(logits_i)_{x_i}: free probabilities.

    The distribution of a pixel can have any form and ignores the order of the levels; the decoder
    needs an output for each level of each pixel and channel.

    Attributes:
        kernel_init: the initializer of the affine map to logits.
        levels: the number of levels, 256 or 32.

    References:
        van den Oord et al. (2016), "Pixel recurrent neural networks".
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    @override
    def __call__(
        self, features: Float[Array, "N ..."], image_shape: Shape
    ) -> CategoricalPixelsDistribution:
        logits = self.per_pixel(features, (*image_shape, self.levels), "logits", self.kernel_init)
        return CategoricalPixelsDistribution(logits)
