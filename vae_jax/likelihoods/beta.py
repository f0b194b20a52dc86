"""Beta pixels: a bounded density on [0, 1], its mode and concentration from the decoder."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer
from jax.scipy.special import gammaln
from jaxtyping import Float, Key, Num
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Elementwise, Shape, on_unit
from vae_jax.interfaces import Likelihood

# At e^10 the standard deviation is less than one grey level of 256.
MAX_LOG_CONCENTRATION = 10.0
# The smallest value of dequantized data; the largest is one minus this.
NEAREST_TO_EDGE = 2.0**-24
# It replaces smaller modes, so that the logarithm of a mode is finite.
SMALLEST_MODE = 1e-30


def _log_factorial_beyond(t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """ln t! - (t ln t - t) for t >= 0; by Stirling's series at a large t, where these cancel."""
    far = t > 8
    large, small = jnp.where(far, t, 8.0), jnp.clip(t, jnp.finfo(t.dtype).tiny, 8.0)
    square = large**-2
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / large
    direct = gammaln(1 + small) - small * jnp.log(small) + small
    return jnp.where(far, 0.5 * jnp.log(2 * math.pi * large) + series, direct)


def _divergence(m: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """m ln(m / x) - m + x >= 0, accurate even for m near x, where the terms cancel."""
    shift = (m - x) / x
    near = jnp.abs(shift) < 0.5
    log_ratio = jnp.where(near, jnp.log1p(jnp.where(near, shift, 0)), jnp.log(m) - jnp.log(x))
    return m * log_ratio - (m - x)


@struct.dataclass
class BetaDistribution(Elementwise):
    """Beta(1 + k m, 1 + k (1 - m)) with the modes m in `loc`.

    Both parameters are at least one, so the density is bounded even at the edges; with k = 0 it is
    uniform.

    Attributes:
        concentration: the concentrations k >= 0.
    """

    concentration: Float[Array, "..."]

    @property
    def alpha(self) -> Float[Array, "..."]:
        """The first parameter, 1 + k m."""
        return 1 + self.concentration * self.loc

    @property
    def beta(self) -> Float[Array, "..."]:
        """The second parameter, 1 + k (1 - m)."""
        return 1 + self.concentration * (1 - self.loc)

    @property
    def mean(self) -> Float[Array, "..."]:
        """(1 + k m) / (2 + k)."""
        return self.alpha / (2 + self.concentration)

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Drawn by JAX's reparameterized sampler, with a key for each component."""
        shape = sample_shape + self.loc.shape
        keys = random.draw_keys(key, sample_shape, self.loc.shape).ravel()
        alpha, beta = (jnp.broadcast_to(p, shape).ravel() for p in (self.alpha, self.beta))
        return jax.vmap(jax.random.beta)(keys, alpha, beta).reshape(shape)

    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """k m ln x + k (1 - m) ln(1 - x) - ln B; x is clipped to the range of dequantized data.

        At large k these terms are many thousands and nearly cancel, so the sum is computed as -k
        times the divergence of (x, 1 - x) from (m, 1 - m), plus the rest of the log-factorials.
        """
        x = jnp.clip(value, NEAREST_TO_EDGE, 1 - NEAREST_TO_EDGE)
        k = self.concentration
        m, rest = jnp.maximum(self.loc, SMALLEST_MODE), jnp.maximum(1 - self.loc, SMALLEST_MODE)
        divergence = _divergence(m, x) + _divergence(rest, 1 - x)
        factorials = [_log_factorial_beyond(t) for t in (k, k * m, k * rest)]
        log_prob = jnp.log1p(k) - k * divergence + factorials[0] - factorials[1] - factorials[2]
        return on_unit(value, log_prob)


class Beta(Likelihood):
    """p(x|z) = prod Beta(x_i), for reals in [0, 1] such as dequantized data.

    Attributes:
        kernel_init: the initializer of the affine maps to the logit of the mode and to the
            logarithm of the concentration.
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()

    supports = frozenset({"unit"})

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."], image_shape: Shape) -> BetaDistribution:
        logits = self.per_pixel(features, image_shape, "mode", self.kernel_init)
        log_concentration = self.per_pixel(features, image_shape, "concentration", self.kernel_init)
        concentration = jnp.exp(jnp.minimum(log_concentration, MAX_LOG_CONCENTRATION))
        return BetaDistribution(jax.nn.sigmoid(logits), concentration, event_ndims=3)
