"""Many small matrix products at once, on every core.

XLA's CPU backend runs a small product on one core, and the products of a batch one after the other.
But it runs independent operations side by side where more than 8 are ready; so the batch is split
into as many operations as keep the cores busy.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

NUM_PARTS = 16


def batched_matmul(a: Array, b: Array, contract: tuple[int, int] = (2, 1)) -> Array:
    """Each matrix of a times its matrix of b; supports every transformation of JAX.

    Args:
        a: `[P, m, k]`.
        b: `[P, k, n]`.
        contract: the axes of a and b that are summed over, each 1 or 2; by default those named k.

    Returns:
        `[P, m, n]`.
    """
    return _batched_matmul_p.bind(a, b, contract=contract)


def _in_parts(a: Array, b: Array, *, contract: tuple[int, int]) -> Array:
    """Contracts an axis of a with one of b, each 1 or 2, for each pair of matrices.

    The barriers (`compiler.KEEP_BARRIERS` preserves them) make all parts ready at once, and keep
    the operands alive until the last has ended: a result written to the memory of an operand would
    wait for the part that reads it.
    """
    count = max(1, min(NUM_PARTS, len(a)))
    sizes = [len(part) for part in np.array_split(np.arange(len(a)), count)]
    operands = lax.optimization_barrier([*lax.split(a, sizes), *lax.split(b, sizes)])
    dimensions = (((contract[0],), (contract[1],)), ((0,), (0,)))
    pairs = zip(operands[:count], operands[count:], strict=True)
    results = [lax.dot_general(*pair, dimensions) for pair in pairs]
    return jnp.concatenate(lax.optimization_barrier([*results, *operands])[:count])


# A primitive, so that the products in gradients are split in the same way.
_batched_matmul_p = Primitive("batched_matmul")
_batched_matmul_p.def_impl(jax.jit(_in_parts, static_argnames="contract"))
mlir.register_lowering(_batched_matmul_p, mlir.lower_fun(_in_parts, multiple_results=False))


@_batched_matmul_p.def_abstract_eval
def _shape(a: ShapedArray, b: ShapedArray, *, contract: tuple[int, int]) -> ShapedArray:
    return ShapedArray((a.shape[0], a.shape[3 - contract[0]], b.shape[3 - contract[1]]), a.dtype)


def _gradient_a(ct: Array, a: ad.UndefinedPrimal, b: Array, *, contract: tuple[int, int]) -> Array:
    other = 3 - contract[1]
    if contract[0] == 2:
        return _batched_matmul_p.bind(ct, b, contract=(2, other))
    return _batched_matmul_p.bind(b, ct, contract=(other, 2))


def _gradient_b(ct: Array, a: Array, b: ad.UndefinedPrimal, *, contract: tuple[int, int]) -> Array:
    other = 3 - contract[0]
    if contract[1] == 1:
        return _batched_matmul_p.bind(a, ct, contract=(other, 1))
    return _batched_matmul_p.bind(ct, a, contract=(1, other))


def _mapped(
    operands: Sequence[Array], axes: Sequence[int | None], *, contract: tuple[int, int]
) -> tuple[Array, int]:
    return jax.vmap(partial(_in_parts, contract=contract), axes)(*operands), 0


ad.defbilinear(_batched_matmul_p, _gradient_a, _gradient_b)
batching.primitive_batchers[_batched_matmul_p] = _mapped
