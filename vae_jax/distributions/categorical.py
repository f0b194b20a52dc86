"""Categorical variables, as one-hot vectors or relaxed; events `[n, C]`.

A relaxed variable is a probability vector. The event holds its logarithms, because the small
components underflow in float32 and the density must be evaluated at the point that was drawn.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions.base import Distribution, Shape, register_kl, sum_event


@struct.dataclass
class _Logits(Distribution):
    """n independent variables with C categories each.

    Attributes:
        logits: the logits of the categories, up to a constant for each variable.
        temperature: the temperature lambda of the relaxation.
    """

    logits: Float[Array, "*batch n C"]
    temperature: float = struct.field(pytree_node=False)

    event_ndims = 2

    @property
    @override
    def shape(self) -> Shape:
        return self.logits.shape

    @property
    def mean(self) -> Float[Array, "*batch n C"]:
        """The probabilities of the categories."""
        return jax.nn.softmax(self.logits)

    def _relaxed_scores(
        self, key: Key[Array, "..."], sample_shape: Shape
    ) -> Float[Array, "*draws n C"]:
        # Maddison et al. 2017; Jang et al. 2017.
        noise = random.draw(jax.random.gumbel, key, sample_shape, self.logits.shape)
        return (self.logits + noise) / self.temperature


@struct.dataclass
class OneHotCategorical(_Logits):
    """One-hot vectors; category c has the probability softmax(logits)_c."""

    @property
    @override
    def std(self) -> Float[Array, "*batch n C"]:
        others = 1 - jnp.eye(self.logits.shape[-1])  # summed, since 1 - p cancels
        exact = lax.Precision.HIGHEST
        return jnp.sqrt(self.mean * jnp.matmul(self.mean, others, precision=exact))

    def sample(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> Float[Array, "*draws n C"]:
        """Exact draws with the gradient of their relaxation (Jang et al. 2017, section 2.2).

        This straight-through estimator is biased, and less so at lower temperatures.
        """
        relaxed = jax.nn.softmax(self._relaxed_scores(key, sample_shape))
        hard = jax.nn.one_hot(relaxed.argmax(-1), relaxed.shape[-1], dtype=relaxed.dtype)
        return hard + (relaxed - lax.stop_gradient(relaxed))

    def log_prob(self, value: Float[Array, "*draws n C"]) -> Float[Array, "..."]:
        """sum_ic z_ic ln p_ic, the logarithm of the mass."""
        return sum_event(value * jax.nn.log_softmax(self.logits), 2)


@register_kl(OneHotCategorical, OneHotCategorical)
def _kl_categorical_categorical(q: OneHotCategorical, p: OneHotCategorical) -> Float[Array, "..."]:
    log_q, log_p = jax.nn.log_softmax(q.logits), jax.nn.log_softmax(p.logits)
    return sum_event(jnp.exp(log_q) * (log_q - log_p), 2)


@struct.dataclass
class Concrete(_Logits):
    """Logarithms of probability vectors near the corners of the simplex (Maddison et al. 2017).

    The density is the paper's ExpConcrete (appendix C.3), with respect to the differences between
    the first C - 1 components and the last. The mean has no closed form: `mean` is the logarithm of
    the probability that each component is the largest.
    """

    exact_mean = False

    @property
    @override
    def mean(self) -> Float[Array, "*batch n C"]:
        """The logarithms of the probabilities of the categories; not the mean."""
        return jax.nn.log_softmax(self.logits)

    def sample(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> Float[Array, "*draws n C"]:
        """Reparameterized: ln softmax((logits + Gumbel noise) / temperature)."""
        return jax.nn.log_softmax(self._relaxed_scores(key, sample_shape))

    def log_prob(self, value: Float[Array, "*draws n C"]) -> Float[Array, "..."]:
        """ln [Gamma(C) lambda^(C-1) prod_c p_c x_c^-lambda / (sum_c p_c x_c^-lambda)^C] of ln x."""
        classes, temperature = self.logits.shape[-1], self.temperature
        scores = self.logits - temperature * value
        constant = math.lgamma(classes) + (classes - 1) * math.log(temperature)
        return (constant + jax.nn.log_softmax(scores).sum(-1)).sum(-1)
