"""An optimizer for each group of parameters: encoder, posterior, prior, decoder, ..., critic."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

GROUPS = ("encoder", "posterior", "prior", "decoder", "conditional", "likelihood", "critic")


def group_of(name: str) -> str:
    """The group of a parameter by its first name: hierarchies number theirs, `encoders_0`."""
    return name.rstrip("_0123456789").removesuffix("s")


def by_group(
    default: optax.GradientTransformation, **groups: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Moves each group of parameters with an optimizer of its own.

    `by_group(optax.adam(1e-3), critic=optax.adam(1e-4))` is how a game is played: the objective is
    one scalar, and the critic's optimizer moves the critic alone. `optax.set_to_zero()` freezes a
    group.

    Args:
        default: for every group that is not named.
        groups: optimizers by the name of a group, one of `GROUPS`.

    Raises:
        ValueError: there is no such group.
    """
    for name in groups:
        if name not in GROUPS:
            raise ValueError(f"there is no group of parameters {name!r}: {', '.join(GROUPS)}")

    def labels(params: Any) -> Any:
        def label(path: tuple[Any, ...], _: Any) -> str:
            # The vectors of classes go with the network that is given them.
            own = path[1] if path[0].key == "labels" else path[0]
            name = group_of(own.key)
            return name if name in groups else "default"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.multi_transform({"default": default, **groups}, labels)


class SwitchedState(NamedTuple):
    """How many updates there were, and the states of both optimizers."""

    updates: Array
    first: optax.OptState
    then: optax.OptState


def switched(
    steps: int, first: optax.GradientTransformation, then: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimizer for the first steps, then another one, whose own count starts there.

    `by_group(adam, encoder=switched(1000, adam, optax.set_to_zero()))` trains the encoder for 1,000
    steps and then holds it fixed; with the two exchanged it is fixed at first. Steps that training
    skips, because they were not finite, are not counted.

    Args:
        steps: updates of the first.
        first: until then.
        then: from then on.
    """

    def init(params: Any) -> SwitchedState:
        return SwitchedState(jnp.zeros((), jnp.int32), first.init(params), then.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SwitchedState]:
        def by_first() -> tuple[Any, Any, Any]:
            return *first.update(updates, state.first, params), state.then

        def by_then() -> tuple[Any, Any, Any]:
            moved, after = then.update(updates, state.then, params)
            return moved, state.first, after

        moved, *states = lax.cond(state.updates < steps, by_first, by_then)
        return moved, SwitchedState(state.updates + 1, *states)

    return optax.GradientTransformation(init, update)
