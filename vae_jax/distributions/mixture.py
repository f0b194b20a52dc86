"""Finite mixtures."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Key, Num
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions.base import Distribution, Shape


@struct.dataclass
class Mixture(Distribution):
    """sum_c w_c p_c(x), batch `[]`.

    Attributes:
        log_weights: ln w_c.
        components: the densities p_c, batch `[C]`.
    """

    log_weights: Float[Array, "C"]
    components: Distribution

    @property
    @override
    def batch_shape(self) -> Shape:
        return ()

    @property
    @override
    def event_shape(self) -> Shape:
        return self.components.event_shape

    @property
    def mean(self) -> Float[Array, "*event"]:
        """sum_c w_c E[x|c]."""
        weights, exact = jnp.exp(self.log_weights), lax.Precision.HIGHEST
        return jnp.tensordot(weights, self.components.mean, axes=1, precision=exact)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Draw a component, then a value from it; not reparameterized in the weights."""
        key_component, key_value = random.purposes(key, "component", "value")
        chosen = jax.random.categorical(key_component, self.log_weights, shape=sample_shape)
        component = jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], self.components)
        return component.sample(key_value)

    def log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """ln sum_c w_c p_c(x)."""
        log_p = self.components.log_prob_pairs(value)
        return jax.nn.logsumexp(self.log_weights + log_p, axis=-1)
