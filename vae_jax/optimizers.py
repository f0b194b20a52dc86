"""An optimizer for each group of parameters: encoder, posterior, prior, decoder, ..., critic."""

from collections.abc import Hashable
from typing import Annotated, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.tree_util import KeyPath, keystr
from jax.typing import ArrayLike

from vae_jax.errors import VaeJaxError
from vae_jax.given import Count, Index, checked

PARAMETER_GROUPS = (
    "encoder",
    "posterior",
    "prior",
    "decoder",
    "conditional",
    "likelihood",
    "critic",
)
"""The groups of parameters: the parts of a model."""


def group_of(name: str) -> str:
    """The group of parameters that belong to a part; a hierarchy numbers its own, `encoders_0`."""
    return name.rstrip("_0123456789").removesuffix("s")


def group_at(path: KeyPath) -> str:
    """The group of the parameter at a path in the tree of all."""
    first, *rest = keystr(path, simple=True, separator="/").split("/")
    # The vectors of classes go with the network that is given them.
    return group_of(rest[0] if first == "labels" else first)


Optimizer = Annotated[
    optax.GradientTransformation, "an optax transformation, such as optax.adam(1e-3)"
]


@checked
def by_group(default: Optimizer, **groups: Optimizer) -> optax.GradientTransformation:
    """Move each group of parameters with its own optimizer.

    So a game is played with one scalar objective: the critic's optimizer moves the critic alone.
    `optax.set_to_zero()` freezes a group.

    Args:
        default: the optimizer of every group that is not named.
        groups: optimizers by the name of a group, one of `PARAMETER_GROUPS`.

    Raises:
        VaeJaxError: there is no such group, or an optimizer is none.

    Example:
        >>> by_group(optax.adam(1e-3), critic=optax.adam(1e-4))
    """
    for name in groups:
        if name not in PARAMETER_GROUPS:
            known = ", ".join(PARAMETER_GROUPS)
            raise VaeJaxError(f"There is no group of parameters {name!r}: take one of {known}.")

    def labels(params: optax.Params) -> optax.Params:
        def label(path: KeyPath, _: Array) -> str:
            return name if (name := group_at(path)) in groups else "default"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.multi_transform({"default": default, **groups}, labels)


def has_groups(state: optax.OptState) -> bool:
    """Whether a state is that of several optimizers, each for a group of parameters."""
    groups = optax.MultiTransformState
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, groups))
    return any(isinstance(leaf, groups) for leaf in leaves)


class SwitchedState(NamedTuple):
    """The number of updates, and the states of both optimizers."""

    updates: Array
    first: optax.OptState
    then: optax.OptState


@checked
def switched(steps: Index, first: Optimizer, then: Optimizer) -> optax.GradientTransformation:
    """Change the optimizer after a number of steps; the second counts its own steps from there.

    Steps that training skips, because they were not finite, are not counted.

    Args:
        steps: the number of updates by the first optimizer.
        first: the optimizer until then.
        then: the optimizer from then on.

    Example:
        Train the encoder for 1,000 steps, then hold it fixed:

        >>> by_group(adam, encoder=switched(1000, adam, optax.set_to_zero()))
    """

    def init(params: optax.Params) -> SwitchedState:
        return SwitchedState(jnp.zeros((), jnp.int32), first.init(params), then.init(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, SwitchedState]:
        state = cast(SwitchedState, state)

        def by_first() -> tuple[optax.Updates, optax.OptState, optax.OptState]:
            return *first.update(updates, state.first, params), state.then

        def by_then() -> tuple[optax.Updates, optax.OptState, optax.OptState]:
            moved, after = then.update(updates, state.then, params)
            return moved, state.first, after

        moved, *states = lax.cond(state.updates < steps, by_first, by_then)
        return moved, SwitchedState(state.updates + 1, *states)

    return optax.GradientTransformation(init, update)


@checked
def lagging_inference(
    optimizer: Optimizer, encoder_steps: Count, steps: Count
) -> optax.GradientTransformation:
    """Extra steps of the inference network, against a posterior that lags behind and collapses.

    During the first `steps` updates q(z|x) alone moves in `encoder_steps` of them, each on a batch
    of its own, then the rest of the model alone in one, and so on; afterwards both move in each.
    In the paper the number of steps of q(z|x) is found by its loss, at most 100, and the phase ends
    when the mutual information of x and z no longer grows.

    Args:
        optimizer: the optimizer of either side, each with a state of its own.
        encoder_steps: the number of steps of encoder and posterior for each step of the others.
        steps: the number of updates in this phase, those of both sides counted.

    References:
        He et al. (2019), "Lagging inference networks and posterior collapse in variational
        autoencoders", algorithm 1.

    Example:
        >>> lagging_inference(optax.adam(1e-3), encoder_steps=10, steps=5000)
    """

    def moves_inference(step: ArrayLike, **_: object) -> Array:
        t = jnp.asarray(step)
        return (t >= steps) | (t % (encoder_steps + 1) < encoder_steps)

    def moves_the_rest(step: ArrayLike, **_: object) -> Array:
        t = jnp.asarray(step)
        return (t >= steps) | (t % (encoder_steps + 1) == encoder_steps)

    def sides(params: optax.Params) -> optax.Params:
        def side(path: KeyPath, _: Array) -> str:
            return "inference" if group_at(path) in ("encoder", "posterior") else "rest"

        return jax.tree_util.tree_map_with_path(side, params)

    each: dict[Hashable, optax.GradientTransformation] = {
        "inference": optax.conditionally_mask(optimizer, moves_inference),
        "rest": optax.conditionally_mask(optimizer, moves_the_rest),
    }
    return optax.multi_transform(each, sides)
