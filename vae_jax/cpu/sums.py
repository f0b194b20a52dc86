"""Sums of many numbers, in vector operations on every core.

XLA's CPU backend adds all numbers of an array one after the other, and goes through an array column
by column for the sum of its rows. So parts of an array are added to each other elementwise, and
rows are added by a product with ones. Elsewhere these are JAX's own sums.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from vae_jax.cpu import choices

NUM_PARTS = 16
LARGE = 2**15  # numbers; smaller arrays are added in no time, and compiled in less


def norm(tree: optax.Params) -> Array:
    """The square root of the sum of squares of all numbers in a tree of floating-point arrays."""
    if not choices.adds_one_by_one():
        return jnp.asarray(optax.tree.norm(tree))
    squares = [_sum_of_squares(leaf) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros(())))


def _sum_of_squares(x: Array) -> Array:
    if x.size < LARGE:
        return (x**2).sum()
    flat = x.reshape(-1)
    size = flat.size // NUM_PARTS
    parts = (flat[start : start + size] ** 2 for start in range(0, size * NUM_PARTS, size))
    return sum(parts, jnp.zeros(size)).sum() + (flat[size * NUM_PARTS :] ** 2).sum()


def sum_of_rows(x: Array) -> Array:
    """The sum over the last axis but one, `[..., P, F]` to `[..., F]`."""
    if not choices.adds_one_by_one():
        return x.sum(-2)
    return jnp.einsum("...pf,p->...f", x, _ones(x.shape[-2], x), precision=lax.Precision.HIGHEST)


def repeated_rows(row: Array, num: int) -> Array:
    """Copies of a row, `[..., F]` to `[..., num, F]`; the gradient is a `sum_of_rows`."""
    if not choices.adds_one_by_one():
        return jnp.broadcast_to(row[..., None, :], (*row.shape[:-1], num, row.shape[-1]))
    return jnp.einsum("...f,p->...pf", row, _ones(num, row), precision=lax.Precision.HIGHEST)


def add_bias(y: Array, bias: Array) -> Array:
    """y + bias, `[..., F]` and `[F]`."""
    return y + repeated_rows(bias, y.size // bias.size).reshape(y.shape)


def _ones(num: int, like: Array) -> Array:
    return jnp.ones(num, like.dtype)
