"""Categories: one-hot vectors and, relaxed, probability vectors; events `[n, C]`."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions.base import Distribution, Shape, register_kl, sum_event

# Components of a probability vector below this count as this: their logarithms stay finite.
SMALLEST = 1e-30


@struct.dataclass
class _Logits(Distribution):
    """n independent variables of C categories each.

    Attributes:
        logits: `[*batch, n, C]`; any constant may be added to a variable's.
        temperature: lambda of the relaxation.
    """

    logits: Array
    temperature: float = struct.field(pytree_node=False)

    event_ndims = 2

    @property
    @override
    def shape(self) -> Shape:
        return self.logits.shape

    @property
    def mean(self) -> Array:
        """The categories' probabilities, `[*batch, n, C]`."""
        return jax.nn.softmax(self.logits)

    def _relaxed_sample(self, key: Array, sample_shape: Shape) -> Array:
        # Maddison et al. 2017; Jang et al. 2017.
        noise = random.draw(jax.random.gumbel, key, sample_shape, self.logits.shape)
        return jax.nn.softmax((self.logits + noise) / self.temperature)


@struct.dataclass
class OneHotCategorical(_Logits):
    """One-hot vectors with the categories' probabilities."""

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Exact draws whose gradient is that of the Gumbel-softmax (Jang et al. 2017, sec. 2.2).

        The straight-through estimator: biased, the less so the lower the temperature.
        """
        relaxed = self._relaxed_sample(key, sample_shape)
        hard = jax.nn.one_hot(relaxed.argmax(-1), relaxed.shape[-1], dtype=relaxed.dtype)
        return hard + (relaxed - lax.stop_gradient(relaxed))

    def log_prob(self, value: Array) -> Array:
        """ln of the mass, sum_ic z_ic ln p_ic."""
        return sum_event(value * jax.nn.log_softmax(self.logits), 2)


@register_kl(OneHotCategorical, OneHotCategorical)
def _kl_categorical_categorical(q: OneHotCategorical, p: OneHotCategorical) -> Array:
    log_q, log_p = jax.nn.log_softmax(q.logits), jax.nn.log_softmax(p.logits)
    return sum_event(jnp.exp(log_q) * (log_q - log_p), 2)


@struct.dataclass
class Concrete(_Logits):
    """Probability vectors near the corners of the simplex (Maddison et al. 2017).

    Its density is one over C - 1 of the C components. It has no closed mean: `mean` is the
    categories' probabilities, those with which a component is the largest.
    """

    exact_mean = False

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Reparameterized: softmax((logits + Gumbel noise) / temperature)."""
        return self._relaxed_sample(key, sample_shape)

    def log_prob(self, value: Array) -> Array:
        """ln of Gamma(C) lambda^(C-1) prod_c p_c x_c^(-lambda-1) / (sum_c p_c x_c^-lambda)^C."""
        classes, temperature = self.logits.shape[-1], self.temperature
        log_x = jnp.log(jnp.maximum(value, SMALLEST))
        scores = self.logits - temperature * log_x
        constant = math.lgamma(classes) + (classes - 1) * math.log(temperature)
        log_density = constant + (jax.nn.log_softmax(scores) - log_x).sum(-1)
        return log_density.sum(-1)
