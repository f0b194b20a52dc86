"""Products of many small matrices at once, on every core of a CPU.

XLA's CPU backend divides a small product among no cores, and multiplies a batch of them one after
the other. But it runs operations that do not wait for each other side by side where more than 8 are
ready; so the batch is taken in groups.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

GROUPS = 16


def products(a: Array, b: Array) -> Array:
    """Each matrix of a times its matrix of b; differentiable and mappable in every way.

    Args:
        a: `[P, m, k]`.
        b: `[P, k, n]`.

    Returns:
        `[P, m, n]`.
    """
    return products_p.bind(a, b, over=(2, 1))


def _in_groups(a: Array, b: Array, *, over: tuple[int, int]) -> Array:
    """The sums of a and b over an axis of each, 1 or 2.

    The barriers (`parallel.OnDevices` keeps them) let all groups begin at once, and let operands
    live until all have ended: a result in the memory of an operand would wait for its group.
    """
    count = min(GROUPS, len(a))
    sizes = [len(part) for part in np.array_split(np.arange(len(a)), count)]
    operands = lax.optimization_barrier([*lax.split(a, sizes), *lax.split(b, sizes)])
    how = (((over[0],), (over[1],)), ((0,), (0,)))
    pairs = zip(operands[:count], operands[count:], strict=True)
    results = [lax.dot_general(*pair, how) for pair in pairs]
    return jnp.concatenate(lax.optimization_barrier([*results, *operands])[:count])


# A primitive, for the products of gradients too shall be in such groups.
products_p = Primitive("products_in_groups")
products_p.def_impl(jax.jit(_in_groups, static_argnames="over"))
mlir.register_lowering(products_p, mlir.lower_fun(_in_groups, multiple_results=False))


@products_p.def_abstract_eval
def _shape(a: ShapedArray, b: ShapedArray, *, over: tuple[int, int]) -> ShapedArray:
    return ShapedArray((a.shape[0], a.shape[3 - over[0]], b.shape[3 - over[1]]), a.dtype)


def _gradient_a(ct: Array, a: Any, b: Array, *, over: tuple[int, int]) -> Array:
    other = 3 - over[1]
    if over[0] == 2:
        return products_p.bind(ct, b, over=(2, other))
    return products_p.bind(b, ct, over=(other, 2))


def _gradient_b(ct: Array, a: Array, b: Any, *, over: tuple[int, int]) -> Array:
    other = 3 - over[0]
    if over[1] == 1:
        return products_p.bind(a, ct, over=(other, 1))
    return products_p.bind(ct, a, over=(1, other))


def _mapped(
    operands: Sequence[Array], axes: Sequence[int | None], *, over: tuple[int, int]
) -> tuple[Array, int]:
    return jax.vmap(partial(_in_groups, over=over), axes)(*operands), 0


ad.defbilinear(products_p, _gradient_a, _gradient_b)
batching.primitive_batchers[products_p] = _mapped
