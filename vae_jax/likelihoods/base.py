"""What the likelihoods share."""

import jax
import jax.numpy as jnp
from jax import Array

# No pixel needs a scale of e^10 times the data's range, and e^89 overflows float32.
MAX_LOG_SCALE = 10.0


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """ln(1 + e^x), any shape, finite at any x; its derivative is the sigmoid, one operation.

    The CPU's likelihood and gradient would wait for `jax.nn.softplus`, whose derivative goes
    through many operations, and for XLA's log1p, which is slower than this series.
    """
    u = jnp.exp(-jnp.abs(x))
    s = u / (2 + u)  # ln(1 + u) = 2 artanh s, and s <= 1/3
    num_terms = 17 if x.dtype == jnp.float64 else 7
    series = jnp.zeros_like(s)
    for odd in reversed(range(1, 2 * num_terms, 2)):
        series = series * s**2 + 1 / odd
    return jnp.maximum(x, 0) + 2 * s * series


@softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return softplus(*primals), jax.nn.sigmoid(*primals) * tangents[0]
