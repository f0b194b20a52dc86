"""Finite mixtures."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from vae_jax import random
from vae_jax.distributions.base import Distribution, Shape


@struct.dataclass
class Mixture(Distribution):
    """sum_c w_c p_c(x): `components` has batch `[C]`, `log_weights` is `[C]`."""

    log_weights: Array
    components: Distribution

    @property
    def batch_shape(self) -> Shape:
        """As the base class says."""
        return ()

    @property
    def event_shape(self) -> Shape:
        """As the base class says."""
        return self.components.event_shape

    @property
    def mean(self) -> Array:
        """`[*batch, *event]`."""
        return jnp.tensordot(jnp.exp(self.log_weights), self.components.mean, axes=1)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Draws a component, then from it; not reparameterized in the weights."""
        key_component, key_value = random.purposes(key, "component", "value")
        chosen = jax.random.categorical(key_component, self.log_weights, shape=sample_shape)
        component = jax.tree.map(lambda leaf: leaf[chosen], self.components)
        return component.sample(key_value)

    def log_prob(self, value: Array) -> Array:
        """Log-sum-exp over the components."""
        log_p = self.components.log_prob_pairs(value)
        return jax.nn.logsumexp(self.log_weights + log_p, axis=-1)
