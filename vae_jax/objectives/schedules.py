"""Schedules of the weight of the KL."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array


def cyclical_schedule(
    num_steps: int, num_cycles: int = 4, ratio: float = 0.5
) -> Callable[[Array], Array]:
    """A weight of the KL that rises from 0 to 1, stays, and starts anew (Fu et al. 2019).

    For `ELBO(beta=...)`, as `optax.linear_schedule(0.0, 1.0, steps)` is for one warm-up.

    Args:
        num_steps: T, of the whole training.
        num_cycles: M.
        ratio: R, the part of a cycle in which the weight rises, linearly.
    """
    period = num_steps / num_cycles

    def schedule(step: Array) -> Array:
        tau = jnp.mod(step, math.ceil(period)) / period
        return jnp.minimum(tau / ratio, 1.0)

    return schedule
