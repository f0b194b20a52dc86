"""The norm of a tree of arrays, by vectorized sums.

XLA's CPU backend adds all numbers of an array one after the other, on one core. Parts of an array
are added to each other elementwise, in vector operations and on every core.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from vae_jax.cpu import choices

NUM_PARTS = 32


def norm(tree: optax.Params) -> Array:
    """The square root of the sum of squares of all numbers in a tree of floating-point arrays."""
    if not choices.adds_one_by_one():
        return jnp.asarray(optax.tree.norm(tree))
    squares = [_sum_of_squares(leaf) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros(())))


def _sum_of_squares(x: Array) -> Array:
    flat = x.reshape(-1)
    size = flat.size // NUM_PARTS
    parts, rest = flat[: size * NUM_PARTS], flat[size * NUM_PARTS :]
    starts = range(0, parts.size, size or 1)
    folded = sum((parts[start : start + size] ** 2 for start in starts), jnp.zeros(size))
    return folded.sum() + (rest**2).sum()
