"""Schedules of the weight of the KL."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Num


def cyclical_schedule(
    num_steps: int, num_cycles: int = 4, ratio: float = 0.5
) -> Callable[[Array], Array]:
    """A weight of the KL that rises from 0 to 1, stays there, and starts again (Fu et al. 2019).

    Args:
        num_steps: the number of steps T of the whole training.
        num_cycles: the number of cycles M.
        ratio: the proportion R of a cycle in which the weight rises, linearly.

    Example:
        >>> objective = ELBO(beta=cyclical_schedule(100_000))
    """
    period = num_steps / num_cycles

    def schedule(step: Num[Array, ""]) -> Float[Array, ""]:
        tau = jnp.mod(step, math.ceil(period)) / period
        return jnp.minimum(tau / ratio, 1.0)

    return schedule
