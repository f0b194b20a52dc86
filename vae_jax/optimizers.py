"""An optimizer for each group of parameters: encoder, posterior, prior, decoder, ..., critic."""

from typing import Any

import jax
import optax

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
