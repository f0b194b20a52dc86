"""Networks with weights that all matter, and which inputs reach which outputs."""

from functools import partial
from typing import Any

import jax
import numpy as np


def drawn(network: Any, x: Any, **settings: Any) -> Any:
    """`normals` as the variables of a network called with x."""
    return normals(jax.eval_shape(partial(network.init, **settings), jax.random.key(0), x))


def normals(shapes: Any) -> Any:
    """Normals of scale 1/2 in these shapes, leaf by leaf: no gradient is small by chance."""
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: generator.normal(0, 0.5, leaf.shape).astype(np.float32), shapes
    )


def influence(function: Any, x: np.ndarray) -> np.ndarray:
    """Whether a change of each number of x `[...]` moves each number of f(x), `[..., *outputs]`.

    Args:
        function: of batches of x.
        x: one example.
    """
    moved = np.stack([x, *(x + np.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape))])
    outputs = np.asarray(jax.jit(function)(moved))
    changed = np.abs(outputs[1:] - outputs[0]) > 1e-5
    return changed.reshape(*x.shape, *outputs.shape[1:])
