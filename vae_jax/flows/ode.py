"""Continuous flows dz/dt = f(z, t) and their effect on a density, solved by diffrax.

References:
    Chen et al. (2018), "Neural ordinary differential equations", section 4.
    Grathwohl et al. (2019), "FFJORD: free-form continuous dynamics for scalable reversible
        generative models", for Hutchinson's estimator of the divergence with noise that is fixed
        along a path.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from vae_jax import random

State = TypeVar("State")
Velocity = Callable[[Float[Array, "*event"], Float[Array, ""]], Float[Array, "*event"]]
"""f, a function of one z and of the time."""

EXACT_UP_TO = 64
"""The number of dimensions up to which the divergence is the exact trace of the Jacobian, which
takes one derivative per dimension; above, it is estimated from a single derivative."""
MOST_STEPS = 4096


def solve(
    velocity: Callable[[State, Array], State],
    start: State,
    times: tuple[float, float],
    tolerance: float,
) -> State:
    """The state at the second time of the path through `start` at the first time.

    Args:
        velocity: the derivative of the state, a function of it and of the time `[]`.
        start: arrays.
        times: the first and the second time, in any order.
        tolerance: the relative and absolute error of one step, which determines the step sizes
            (Tsitouras' method of order five).

    Returns:
        The state; nan if it takes more than 4,096 steps.
    """
    import diffrax  # imported here: it takes a second, and few runs need it

    first, last = times
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda time, state, _: velocity(state, jnp.asarray(time))),
        diffrax.Tsit5(),
        first,
        last,
        (last - first) / 16,
        start,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=MOST_STEPS,
        throw=False,  # an exception would need a call from the device to the host
    )
    done = solution.result == diffrax.RESULTS.successful
    assert solution.ys is not None

    def at_end(path: Array) -> Array:
        return jnp.where(done, path[0], jnp.nan)

    return jax.tree.map(at_end, solution.ys)


def solve_with_log_det(
    velocity: Velocity, z: Float[Array, "*event"], times: tuple[float, float], tolerance: float
) -> tuple[Float[Array, "*event"], Float[Array, ""]]:
    """The end of the path from z, and ln |det| of its derivative in z: the integral of div f.

    The divergence is exact up to `EXACT_UP_TO` dimensions. Above, it is Hutchinson's estimate
    eᵀ (df/dz) e, with one vector e of random signs that is the same for all z and all times; its
    expectation over e is exact.

    Args:
        velocity: f.
        z: one z.
        times: as in `solve`.
        tolerance: as in `solve`.

    Returns:
        The end `[*event]`, and ln |det| `[]`.
    """
    exact = z.size <= EXACT_UP_TO
    signs = jax.random.rademacher(random.purpose(random.key(0), "divergence"), z.shape, z.dtype)

    def both(state: tuple[Array, Array], time: Array) -> tuple[Array, Array]:
        def at_time(z: Array) -> Array:
            return velocity(z, time)

        if exact:
            size = z.size
            jacobian = jax.jacfwd(at_time)(state[0]).reshape(size, size)
            return at_time(state[0]), jnp.trace(jacobian)
        moved, along = jax.jvp(at_time, (state[0],), (signs,))
        return moved, (signs * along).sum()

    return solve(both, (z, jnp.zeros((), z.dtype)), times, tolerance)
