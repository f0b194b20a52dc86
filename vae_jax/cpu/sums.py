"""Sums of many numbers, in vector operations on every core.

XLA's CPU backend adds all numbers of an array one after the other, and goes through an array column
by column for the sum of its rows. Therefore parts of an array are added to each other elementwise,
and rows are added by a product with ones. Elsewhere these are JAX's own sums.

Training is 1.26 times as fast with a ResNet with norms, 1.20 times with the MLP at batch 20, 1.11
times with an MLP on 64x64 colours, and 1.02 to 1.03 times with a DiT and with IWAE at k = 50.
"""

from collections.abc import Sequence
from functools import partial, reduce
from math import gcd

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from vae_jax.cpu import platform

NUM_PARTS = 16
LARGE = 2**15  # numbers; small arrays gain nothing and compile faster


def norm(tree: optax.Params) -> Array:
    """The square root of the sum of squares of all numbers in a tree of floats."""
    if not platform.adds_one_by_one():
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
    """The sum of x over the last axis but one, `[..., P, F]` to `[..., F]`."""
    if not platform.adds_one_by_one():
        return x.sum(-2)
    return _sum_p.bind(x)


def sum_of_last_axes(x: Array, axes: int) -> Array:
    """The sum of x over its last `axes` axes, `[..., *event]` to `[...]`."""
    if not platform.adds_one_by_one() or x.size < LARGE:
        return x.sum(tuple(range(x.ndim - axes, x.ndim)))
    return sum_of_rows(x.reshape(*x.shape[: x.ndim - axes], -1, 1))[..., 0]


def repeated_rows(row: Array, num: int) -> Array:
    """`num` copies of a row, `[..., F]` to `[..., num, F]`; the gradient is a `sum_of_rows`."""
    if not platform.adds_one_by_one():
        return _repeated(row, num=num)
    return _repeated_p.bind(row, num=num)


def add_bias(y: Array, bias: Array) -> Array:
    """y + bias, `[..., F]` and `[F]`."""
    return y + repeated_rows(bias, y.size // bias.size).reshape(y.shape)


# --- A sum and copies, each the other's transpose -------------------------------------------------


def _repeated(row: Array, *, num: int) -> Array:
    return jnp.broadcast_to(row[..., None, :], (*row.shape[:-1], num, row.shape[-1]))


def _sum(x: Array) -> Array:
    """The sum of rows: parts are added to each other, the remaining rows by a product with ones."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    folded = reduce(jnp.add, jnp.split(wide, gcd(x.shape[-2], NUM_PARTS), -2))
    ones = jnp.ones(folded.shape[-2], folded.dtype)
    summed = jnp.einsum("...pf,p->...f", folded, ones, precision=lax.Precision.HIGHEST)
    return summed.astype(x.dtype)


_sum_p, _repeated_p = Primitive("sum_of_rows"), Primitive("repeated_rows")


@_sum_p.def_abstract_eval
def _shape_of_sum(x: ShapedArray) -> ShapedArray:
    return ShapedArray((*x.shape[:-2], x.shape[-1]), x.dtype)


@_repeated_p.def_abstract_eval
def _shape_of_copies(row: ShapedArray, *, num: int) -> ShapedArray:
    return ShapedArray((*row.shape[:-1], num, row.shape[-1]), row.dtype)


def _mapped(
    primitive: Primitive, operands: Sequence[Array], axes: Sequence[int], **parameters: int
) -> tuple[Array, int]:
    return primitive.bind(jnp.moveaxis(operands[0], axes[0], 0), **parameters), 0


for _primitive, _function in ((_sum_p, _sum), (_repeated_p, _repeated)):
    mlir.register_lowering(_primitive, mlir.lower_fun(_function, multiple_results=False))
    batching.primitive_batchers[_primitive] = partial(_mapped, _primitive)
_sum_p.def_impl(jax.jit(_sum))
_repeated_p.def_impl(jax.jit(_repeated, static_argnames="num"))
ad.deflinear2(_sum_p, lambda ct, x: [_repeated_p.bind(ct, num=x.aval.shape[-2])])
ad.deflinear2(_repeated_p, lambda ct, row, num: [_sum_p.bind(ct)])
