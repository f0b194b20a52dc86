"""Networks that compute in half precision; parameters and densities stay in float32."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vae_jax.optimizers import group_of

Tree = TypeVar("Tree")
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
