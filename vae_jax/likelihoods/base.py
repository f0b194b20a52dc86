"""What several likelihoods share: the support of a pixel, and the limit of a learned scale."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Num

# No pixel needs a scale of e^10 times the range of the data, and e^89 overflows float32.
MAX_LOG_SCALE = 10.0


def on_unit(value: Num[Array, "..."], log_prob: Float[Array, "..."]) -> Float[Array, "..."]:
    """A log-density of pixels in [0, 1], which is -inf elsewhere."""
    return jnp.where((value < 0) | (value > 1), -jnp.inf, log_prob)
