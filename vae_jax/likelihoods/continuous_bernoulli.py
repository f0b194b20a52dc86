"""The continuous Bernoulli: the Bernoulli's formula, normalized over [0, 1]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float, Key, Num
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Elementwise, Shape, on_unit
from vae_jax.interfaces import Likelihood


def log_integral(logit: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """ln of the integral of e^(l x) over [0, 1] for a logit l: ln[(e^l - 1) / l].

    Its derivatives are finite.

    Near l = 0, where numerator and denominator vanish, it is computed as l/2 plus the series of
    ln[sinh(h) / h] at h = l/2. The two branches agree to float32 precision where they meet.
    """
    magnitude = jnp.abs(logit)
    far = magnitude > 1
    square = (jnp.where(far, 1.0, logit) / 2) ** 2
    series = square * (1 / 6 + square * (-1 / 180 + square * (1 / 2835 - square / 37800)))
    apart = jnp.where(far, magnitude, 1.0)
    # (e^l - 1) / l is e^max(l, 0) (1 - e^-|l|) / |l|, in which nothing overflows or cancels.
    closed = jax.nn.relu(logit) + jnp.log(-jnp.expm1(-apart)) - jnp.log(apart)
    return jnp.where(far, closed, logit / 2 + series)


@struct.dataclass
class ContinuousBernoulliDistribution(Elementwise):
    """p(x) = e^(l x) l / (e^l - 1) on [0, 1]: `loc` holds the logits l.

    In the terms of Loaiza-Ganem & Cunningham (2019), lambda = sigmoid(l) and the density is
    C(lambda) lambda^x (1 - lambda)^(1 - x), an exponential family with the log-normalizer
    `log_integral`.
    """

    @property
    def mean(self) -> Float[Array, "..."]:
        """1 / (1 - e^-l) - 1 / l, the derivative of the log-normalizer: not sigmoid(l)."""
        return jax.jvp(log_integral, (self.loc,), (jnp.ones_like(self.loc),))[1]

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Reparameterized by the inverse cdf, ln[1 + u (e^l - 1)] / l."""
        uniform = random.draw(jax.random.uniform, key, sample_shape, self.loc.shape)
        # For -|l|, where nothing overflows: 1 - x has the logit -l. At l = 0 it is u.
        logit = jnp.minimum(-jnp.abs(self.loc), -1e-6)
        x = jnp.minimum(jnp.log1p(uniform * jnp.expm1(logit)) / logit, 1.0)
        return jnp.where(self.loc > 0, 1 - x, x)

    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """l x - ln[(e^l - 1) / l]; for l > 0 as the density of 1 - x at -l: nothing cancels."""
        positive = self.loc > 0
        logit = jnp.where(positive, -self.loc, self.loc)
        log_prob = logit * jnp.where(positive, 1 - value, value) - log_integral(logit)
        return on_unit(value, log_prob)


class ContinuousBernoulli(Likelihood):
    """p(x|z) = prod CB(x_i; logit_i), for grey levels.

    A Bernoulli likelihood of grey levels is this density without its normalizer, which depends on
    the logits and thus cannot be left out.

    Attributes:
        kernel_init: the initializer of the affine map to logits.

    References:
        Loaiza-Ganem & Cunningham (2019), "The continuous Bernoulli: fixing a pervasive error in
            variational autoencoders".
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()

    supports = frozenset({"uint8", "uint5", "unit"})

    @nn.compact
    @override
    def __call__(
        self, features: Float[Array, "N ..."], image_shape: Shape
    ) -> ContinuousBernoulliDistribution:
        logits = self.per_pixel(features, image_shape, "logits", self.kernel_init)
        return ContinuousBernoulliDistribution(logits, event_ndims=3)
