"""Densities of transformed variables."""

import jax.numpy as jnp
from flax import struct
from jax import Array

from vae_jax.distributions.base import Distribution, Shape
from vae_jax.flows.base import Flow


@struct.dataclass
class Transformed(Distribution):
    """z = f_T(... f_1(x)), x from `base`: ln p(z) = ln p(x) - sum_t ln |det df_t|.

    Rezende & Mohamed (2015), section 3. A draw and its density share the forward maps; the density
    of a given z goes through the inverses, and is differentiable along z.
    """

    base: Distribution
    flows: tuple[Flow, ...]

    exact_mean = False

    @property
    def batch_shape(self) -> Shape:
        """As the base class says."""
        return self.base.batch_shape

    @property
    def event_shape(self) -> Shape:
        """As the base class says."""
        return self.base.event_shape

    @property
    def mean(self) -> Array:
        """Where the flows take the mean of the base, `[*batch, *event]`; not the mean."""
        return self._forward(self.base.mean)[0]

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Reparameterized if the base is."""
        return self._forward(self.base.sample(key, sample_shape))[0]

    def log_prob(self, value: Array) -> Array:
        """By the inverse maps."""
        log_det = jnp.zeros((), value.dtype)
        for flow in reversed(self.flows):
            value, log_det_t = flow.inverse_and_log_det(value)
            log_det += log_det_t
        return self.base.log_prob(value) + log_det

    def sample_and_log_prob(self, key: Array, sample_shape: Shape = ()) -> tuple[Array, Array]:
        """By the forward maps alone."""
        x, log_p = self.base.sample_and_log_prob(key, sample_shape)
        z, log_det = self._forward(x)
        return z, log_p - log_det

    def _forward(self, x: Array) -> tuple[Array, Array]:
        log_det = jnp.zeros((), x.dtype)
        for flow in self.flows:
            x, log_det_t = flow.forward_and_log_det(x)
            log_det += log_det_t
        return x, log_det
