"""Schedules of the weight of the KL."""

import math
from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Num

from vae_jax.errors import VaeJaxError
from vae_jax.given import Bounds, Count, checked


@checked
def cyclical_schedule(
    num_steps: Count,
    num_cycles: Count = 4,
    ratio: Annotated[float, Bounds(above=0, most=1)] = 0.5,
) -> Callable[[Num[Array, ""]], Float[Array, ""]]:
    """A weight of the KL that rises from 0 to 1, stays at 1, and starts again, in cycles.

    Args:
        num_steps: the number of steps T of the whole training.
        num_cycles: the number of cycles M.
        ratio: the proportion R of a cycle in which the weight rises, linearly.

    Returns:
        A function of the step.

    Raises:
        VaeJaxError: a number is out of range, or there are more cycles than steps.

    References:
        Fu et al. (2019), "Cyclical annealing schedule: a simple approach to mitigating KL
            vanishing".

    Example:
        >>> objective = ELBO(beta=cyclical_schedule(100_000))
    """
    if num_cycles > num_steps:
        raise VaeJaxError(
            f"num_cycles of cyclical_schedule is {num_cycles}, of {num_steps} steps: give at most "
            "as many cycles as steps."
        )
    period = num_steps / num_cycles

    def schedule(step: Num[Array, ""]) -> Float[Array, ""]:
        tau = jnp.mod(step, math.ceil(period)) / period
        return jnp.minimum(tau / ratio, 1.0)

    return schedule
