"""Densities of transformed variables."""

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Key
from typing_extensions import override

from vae_jax.distributions.base import Distribution, Shape
from vae_jax.flows.base import Flow


@struct.dataclass
class Transformed(Distribution):
    """z = f_T(... f_1(x)) with x from a base density (Rezende & Mohamed 2015, section 3).

    ln p(z) = ln p(x) - sum_t ln |det df_t|. A draw and its density share the forward maps; the
    density of a given z is computed by the inverse maps and is differentiable along z.

    Attributes:
        base: the density of x, vectors.
        flows: the maps f_1, ..., f_T.
    """

    base: Distribution
    flows: tuple[Flow, ...]

    exact_mean = False

    @property
    @override
    def batch_shape(self) -> Shape:
        return self.base.batch_shape

    @property
    @override
    def event_shape(self) -> Shape:
        return self.base.event_shape

    @property
    def mean(self) -> Float[Array, "*batch d"]:
        """The image of the base's mean under the flows; not the mean."""
        return self._forward(self.base.mean)[0]

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "*draws d"]:
        """Reparameterized if the base is."""
        return self._forward(self.base.sample(key, sample_shape))[0]

    def log_prob(self, value: Float[Array, "*draws d"]) -> Float[Array, "..."]:
        """The log-density by the inverse maps."""
        log_det = jnp.zeros((), value.dtype)
        for flow in reversed(self.flows):
            value, log_det_t = flow.inverse_and_log_det(value)
            log_det += log_det_t
        return self.base.log_prob(value) + log_det

    def sample_and_log_prob(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """Draws and their log-densities by the forward maps alone."""
        x, log_p = self.base.sample_and_log_prob(key, sample_shape)
        z, log_det = self._forward(x)
        return z, log_p - log_det

    def _forward(
        self, x: Float[Array, "*draws d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "..."]]:
        log_det = jnp.zeros((), x.dtype)
        for flow in self.flows:
            x, log_det_t = flow.forward_and_log_det(x)
            log_det += log_det_t
        return x, log_det
