"""Blocks of deep networks computed again in the backward pass, in place of being remembered."""

import contextlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from vae_jax.optimizers import group_of
from vae_jax.precision import NETWORKS


def rematerialized(wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """Within it, of each block of encoders and decoders the inputs alone are remembered.

    A block is a module that a network calls itself, such as a residual block. Gradients are the
    same; memory falls from that of all layers to that of the blocks' inputs and one block's layers,
    for one more computation of each block (Chen et al. 2016).
    """
    if not wanted:
        return contextlib.nullcontext()
    within: list[nn.Module] = []  # the block in the making, which calls itself once more

    def interceptor(function: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        module = context.module
        path = () if module.scope is None else module.path
        block = len(path) == 2 and group_of(path[0]) in NETWORKS
        if context.method_name != "__call__" or not block or within:
            return function(*args, **kwargs)
        leaves, structure = jax.tree.flatten((args, kwargs))
        traced = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]

        def again(module: nn.Module, *traced: jax.Array) -> Any:
            arrays = iter(traced)
            filled = [next(arrays) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
            args, kwargs = jax.tree.unflatten(structure, filled)
            return module(*args, **kwargs)  # pyright: ignore[reportCallIssue]

        within.append(module)
        try:
            return nn.remat(again)(module, *traced)
        finally:
            within.pop()

    return nn.intercept_methods(interceptor)
