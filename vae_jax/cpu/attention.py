"""Attention whose products, one for each example and head, are shared by all cores.

XLA's CPU backend computes the products of a batch one after the other, each on one core.
"""

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.cpu.batched_matmul import batched_matmul


def by_heads(query: Array, keys: Array, values: Array, mask: Array | None = None) -> Array:
    """Equal to `jax.nn.dot_product_attention` up to rounding; `[N, T, heads, d]`."""
    if jnp.finfo(query.dtype).bits < 32:  # products would be rounded, which softmax enlarges
        return jax.nn.dot_product_attention(query, keys, values, mask=mask)
    number, length, heads, size = query.shape

    def by_head(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(number * heads, x.shape[1], size)

    scores = batched_matmul(by_head(query) / size**0.5, by_head(keys), contract=(2, 2))
    if mask is not None:
        of_all = scores.reshape(number, heads, length, keys.shape[1])
        scores = jnp.where(mask, of_all, jnp.finfo(scores.dtype).min).reshape(scores.shape)
    found = batched_matmul(jax.nn.softmax(scores), by_head(values))
    return found.reshape(number, heads, length, size).swapaxes(1, 2)
