"""Beta pixels: a bounded density on [0, 1] whose mode and concentration the decoder chooses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer
from jax.scipy.special import betaln

from vae_jax import random
from vae_jax.distributions import Elementwise, Shape
from vae_jax.interfaces import Likelihood

# A standard deviation of less than one of 256 levels.
MAX_LOG_CONCENTRATION = 10.0
# The least value that dequantized data take; 1 less this is the greatest.
NEAREST_TO_EDGE = 2.0**-24


@struct.dataclass
class BetaDistribution(Elementwise):
    """Beta(1 + k m, 1 + k (1 - m)): `loc` holds the modes m, `concentration` the k >= 0.

    Both parameters are at least one, so that the density has a bound, and no edge of the range an
    infinite one: with k = 0 it is uniform.
    """

    concentration: Array

    @property
    def alpha(self) -> Array:
        """The first parameter, `[*batch, *event]`."""
        return 1 + self.concentration * self.loc

    @property
    def beta(self) -> Array:
        """The second parameter."""
        return 1 + self.concentration * (1 - self.loc)

    @property
    def mean(self) -> Array:
        """(1 + k m) / (2 + k)."""
        return self.alpha / (2 + self.concentration)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """By JAX's sampler, with a key for each component."""
        shape = sample_shape + self.loc.shape
        keys = random.draw_keys(key, sample_shape, self.loc.shape).ravel()
        alpha, beta = (jnp.broadcast_to(p, shape).ravel() for p in (self.alpha, self.beta))
        return jax.vmap(jax.random.beta)(keys, alpha, beta).reshape(shape)

    def component_log_prob(self, value: Array) -> Array:
        """k m ln x + k (1 - m) ln(1 - x) - ln B, nats; at 0 and 1 as at the nearest datum."""
        x = jnp.clip(value, NEAREST_TO_EDGE, 1 - NEAREST_TO_EDGE)
        kernel = self.loc * jnp.log(x) + (1 - self.loc) * jnp.log1p(-x)
        return self.concentration * kernel - betaln(self.alpha, self.beta)


class Beta(Likelihood):
    """p(x|z) = prod Beta(x_i), for reals in [0, 1] such as dequantized data.

    Attributes:
        kernel_init: of the two affine maps, to the logit of the mode and to the logarithm of the
            concentration of each pixel.
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()

    supports = frozenset({"unit"})

    @nn.compact
    def __call__(self, features: Array, image_shape: Shape) -> BetaDistribution:
        """Features `[N, ...]` to batch `[N]`, event `[H, W, C]`."""
        logits = self.per_pixel(features, image_shape, "mode", self.kernel_init)
        log_concentration = self.per_pixel(features, image_shape, "concentration", self.kernel_init)
        concentration = jnp.exp(jnp.minimum(log_concentration, MAX_LOG_CONCENTRATION))
        return BetaDistribution(jax.nn.sigmoid(logits), concentration, event_ndims=3)
