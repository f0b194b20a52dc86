"""The normal distribution with independent components."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from vae_jax.distributions.base import Elementwise, Shape, draw, register_kl, sum_event


@struct.dataclass
class Normal(Elementwise):
    """N(loc, scale²), independent components; `scale` broadcasts against `loc`."""

    scale: Array

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Reparameterized: loc + scale * eps (Kingma & Welling 2013, equation 10)."""
        eps = draw(jax.random.normal, key, sample_shape, self.loc.shape)
        return self.loc + self.scale * eps

    def log_prob(self, value: Array) -> Array:
        """-1/2 sum [((x - loc) / scale)² + ln 2 pi] - sum ln scale."""
        eps = (value - self.loc) / self.scale
        log_density = -0.5 * (eps**2 + math.log(2 * math.pi)) - jnp.log(self.scale)
        return sum_event(log_density, self.event_ndims)


@register_kl(Normal, Normal)
def _kl_normal_normal(q: Normal, p: Normal) -> Array:
    # Kingma & Welling 2013, appendix B, for a general diagonal p.
    ratio = q.scale / p.scale
    kl = 0.5 * (ratio**2 + ((q.loc - p.loc) / p.scale) ** 2 - 1) - jnp.log(ratio)
    return sum_event(kl, q.event_ndims)
