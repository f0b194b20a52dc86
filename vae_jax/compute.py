"""How networks compute: in half precision, and again in the backward pass instead of remembered."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vae_jax.optimizers import group_of

Tree = TypeVar("Tree")
Apply = Callable[..., Any]
NETWORKS = ("encoder", "decoder")


def cast(tree: Tree, dtype: DTypeLike) -> Tree:
    """Every array of floats in a tree as another type of float."""

    def leaf(x: Any) -> Any:
        is_float = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if is_float else x

    return jax.tree.map(leaf, tree)


def cast_networks(params: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """The parameters of encoders and decoders as another type of float; gradients come back.

    Those of a likelihood's own `network` too, as `AutoregressivePixels` has one.
    """

    def as_computed(name: str, group: Any) -> Any:
        if group_of(name) in NETWORKS:
            return cast(group, dtype)
        if group_of(name) == "likelihood" and "network" in group:
            return {**group, "network": cast(group["network"], dtype)}
        return group

    return {name: as_computed(name, group) for name, group in params.items()}


def with_policy(apply: Apply, dtype: DTypeLike, remat: bool) -> Apply:
    """`apply` of a model, with its encoders and decoders computed as asked for.

    Args:
        apply: a function of the model's variables and more.
        dtype: the type of float that they compute in.
        remat: whether their blocks are computed again in the backward pass.
    """

    def with_interceptors(variables: dict[str, Any], *arguments: Any) -> Any:
        with contextlib.ExitStack() as stack:
            if dtype != jnp.float32:
                variables = {**variables, "params": cast_networks(variables["params"], dtype)}
                stack.enter_context(networks_in(dtype))
            if remat:
                stack.enter_context(rematerialized())
            return apply(variables, *arguments)

    return with_interceptors


def networks_in(dtype: DTypeLike) -> contextlib.AbstractContextManager[Any]:
    """Within it, encoders and decoders are given their inputs in `dtype`, and give float32."""

    def interceptor(
        function: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        context: Any,
    ) -> Any:
        # A prior's own network may be called unbound, which has no path.
        path = () if context.module.scope is None else context.module.path
        if context.method_name != "__call__" or len(path) != 1 or group_of(path[0]) not in NETWORKS:
            return function(*args, **kwargs)
        return cast(function(*cast(args, dtype), **kwargs), jnp.float32)

    return nn.intercept_methods(interceptor)


def rematerialized() -> contextlib.AbstractContextManager[Any]:
    """Within it, of each block of encoders and decoders the inputs alone are remembered.

    A block is a module that a network calls itself, such as a residual block. Gradients are the
    same; memory falls from that of all layers to that of the blocks' inputs and one block's layers,
    for one more computation of each block (Chen et al. 2016).
    """
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
