"""Precision, rematerialization, and reproducible operations on a GPU."""

import contextlib
import os
from collections.abc import Callable
from typing import TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext
from flax.typing import Collection, VariableDict
from jax.typing import DTypeLike

from vae_jax.optimizers import group_of

Tree = TypeVar("Tree")
Result = TypeVar("Result")
NETWORKS = ("encoder", "decoder")
Saveable = Callable[..., bool]
"""A policy, which decides whether the result of an operation is kept."""


def as_floats(tree: Tree, dtype: DTypeLike) -> Tree:
    """Convert every array of floats in `tree` to `dtype`."""

    def leaf(x: object) -> object:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating):
            return x.astype(dtype)
        return x

    return jax.tree.map(leaf, tree)


def networks_as_floats(params: Collection, dtype: DTypeLike) -> Collection:
    """Convert the parameters of encoders and decoders to `dtype`; gradients are converted back.

    The parameters `params` of a likelihood's own `network`, such as that of
    `AutoregressivePixels`, are converted too.
    """

    def converted(name: str, group: Collection) -> Collection:
        if group_of(name) in NETWORKS:
            return as_floats(group, dtype)
        if group_of(name) == "likelihood" and "network" in group:
            return {**group, "network": as_floats(group["network"], dtype)}
        return group

    return {name: converted(name, group) for name, group in params.items()}


def with_policy(
    apply: Callable[..., Result], dtype: DTypeLike, remat: bool | Saveable
) -> Callable[..., Result]:
    """Run encoders and decoders in `dtype`, rematerialized if asked.

    Args:
        apply: a function of the model's variables and further arguments, such as its `apply`.
        dtype: the type of float that encoders and decoders compute in.
        remat: whether their blocks are computed again in the backward pass, or a policy for which
            results to keep.

    Returns:
        A function of the same arguments.
    """

    def with_interceptors(variables: VariableDict, *arguments: object) -> Result:
        with contextlib.ExitStack() as stack:
            if jnp.dtype(dtype) != jnp.float32:
                params = networks_as_floats(variables["params"], dtype)
                variables = {**variables, "params": params}
                stack.enter_context(networks_in(dtype))
            if remat:
                stack.enter_context(rematerialized(remat if callable(remat) else None))
            return apply(variables, *arguments)

    return with_interceptors


def networks_in(dtype: DTypeLike) -> contextlib.AbstractContextManager[None]:
    """Convert the inputs of encoders and decoders to `dtype`, and their outputs to float32."""

    def interceptor(
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        context: InterceptorContext,
    ) -> object:
        # A prior's own network may be called unbound, and then has no path.
        path = () if context.module.scope is None else context.module.path
        if context.method_name != "__call__" or len(path) != 1 or group_of(path[0]) not in NETWORKS:
            return function(*args, **kwargs)
        return as_floats(function(*as_floats(args, dtype), **kwargs), jnp.float32)

    return nn.intercept_methods(interceptor)


def rematerialized(
    policy: Saveable | None = None,
) -> contextlib.AbstractContextManager[None]:
    """Keep only the inputs of each block of encoders and decoders for the backward pass.

    A block is a module that a network calls directly, such as a residual block. Gradients are the
    same; memory falls from the outputs of all layers to the inputs of all blocks and the layers of
    one, at the cost of computing each block twice.

    Args:
        policy: which results of a block are also kept, one of `jax.checkpoint_policies`; None keeps
            none.

    References:
        Chen et al. (2016), "Training deep nets with sublinear memory cost".
    """
    within: list[nn.Module] = []  # the block being computed, which calls itself again

    def interceptor(
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        context: InterceptorContext,
    ) -> object:
        module = context.module
        path = () if module.scope is None else module.path
        is_block = len(path) == 2 and group_of(path[0]) in NETWORKS
        if context.method_name != "__call__" or not is_block or within:
            return function(*args, **kwargs)
        leaves, structure = jax.tree.flatten((args, kwargs))
        traced = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]

        def again(module: nn.Module, *traced: jax.Array) -> object:
            arrays = iter(traced)
            filled = [next(arrays) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
            args, kwargs = jax.tree.unflatten(structure, filled)
            return cast(Callable[..., object], module)(*args, **kwargs)

        within.append(module)
        try:
            return nn.remat(again, policy=policy)(module, *traced)
        finally:
            within.pop()

    return nn.intercept_methods(interceptor)


# Rules out sums in an unspecified order, and kernels chosen by timing.
DETERMINISTIC = (
    "--xla_gpu_deterministic_ops=true --xla_gpu_exclude_nondeterministic_ops=true "
    "--xla_gpu_autotune_level=0"
)


def be_deterministic() -> None:
    """Make GPUs compute the same bytes in every run, more slowly; call it before JAX starts.

    Devices of another kind, or another number of them, still round differently.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
