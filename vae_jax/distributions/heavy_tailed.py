"""Distributions with independent components and heavier tails than the normal."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.scipy.special import betaln, erf
from jaxtyping import Float, Key, Num

from vae_jax import random
from vae_jax.distributions.base import Elementwise, Shape, register_kl, sum_event
from vae_jax.distributions.normal import Normal


@struct.dataclass
class LaplaceDistribution(Elementwise):
    """Laplace(loc, scale), independent components.

    Attributes:
        scale: the scale of each component; it broadcasts against `loc`.
    """

    scale: Float[Array, "..."]

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Reparameterized: loc + scale * eps."""
        return self.loc + self.scale * random.draw(
            jax.random.laplace, key, sample_shape, self.loc.shape
        )

    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """-|x - loc| / scale - ln(2 scale)."""
        return -jnp.abs(value - self.loc) / self.scale - jnp.log(2 * self.scale)


@register_kl(Normal, LaplaceDistribution)
def _kl_normal_laplace(q: Normal, p: LaplaceDistribution) -> Float[Array, "..."]:
    # E|x - loc| under q is the mean of a folded normal.
    shift = q.loc - p.loc
    ratio = shift / (math.sqrt(2) * q.scale)
    folded = math.sqrt(2 / math.pi) * q.scale * jnp.exp(-(ratio**2)) + shift * erf(ratio)
    entropy = 0.5 * math.log(2 * math.pi * math.e) + jnp.log(q.scale)
    kl = folded / p.scale + jnp.log(2 * p.scale) - entropy
    return sum_event(kl, q.event_ndims)


@struct.dataclass
class StudentT(Elementwise):
    """Student's t, independent components; `loc` is the mean if dof > 1, else there is no mean.

    Attributes:
        scale: the scale of each component; it broadcasts against `loc`.
        dof: the degrees of freedom; they broadcast against the event.
    """

    scale: Float[Array, "..."]
    dof: Float[Array, "..."]

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Reparameterized in loc and scale: loc + scale * t."""

        def t(key: Array, shape: Shape) -> Array:
            return jax.random.t(key, self.dof, shape)

        return self.loc + self.scale * random.draw(t, key, sample_shape, self.loc.shape)

    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """-(dof + 1)/2 ln(1 + t²/dof) - ln[scale sqrt(dof) B(dof/2, 1/2)], t = (x - loc)/scale."""
        u = jnp.abs(value - self.loc) / (self.scale * jnp.sqrt(self.dof))
        # ln(1 + u²) without squaring a large u, which would overflow.
        far = jnp.where(u > 1, u, 1)
        near = jnp.where(u > 1, 1 / far, u)
        log_kernel = -(self.dof + 1) / 2 * (jnp.log1p(near**2) + 2 * jnp.log(far))
        # betaln rather than a difference of two gammaln, which cancels at large dof.
        log_integral = jnp.log(self.scale) + jnp.log(self.dof) / 2 + betaln(self.dof / 2, 0.5)
        return log_kernel - log_integral
