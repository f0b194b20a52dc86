"""What an invertible map offers."""

import abc
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from vae_jax.interfaces import Pytree

MIN_SLOPE = 0.01
"""Lower limit of the derivative of the scalar maps that are inverted numerically."""
LOG_SCALE_LIMIT = 5.0
"""Limit of |ln scale| of one component in one affine layer."""
NEAR_ZERO = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")
"""Initializes what a flow starts near the identity with: a hundredth of Glorot's weights."""


class Flow(Pytree, abc.ABC):
    """An invertible map of vectors `[..., *batch, d]`; its parameters have axes `[*batch, ...]`."""

    @abc.abstractmethod
    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """y = f(x), `[..., *batch, d]`, and ln |det dy/dx|, `[..., *batch]`."""

    @abc.abstractmethod
    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """x with f(x) = y, `[..., *batch, d]`, and ln |det dx/dy|, `[..., *batch]`."""


@struct.dataclass
class Reverse(Flow):
    """Reverses the order of the components."""

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """As the base class says; a permutation keeps volumes."""
        return x[..., ::-1], jnp.zeros(x.shape[:-1], x.dtype)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """As the base class says; it is its own inverse."""
        return self.forward_and_log_det(y)


def detach(network: nn.Module, *example: Array) -> tuple[nn.Module, Any]:
    """A network made in a compact method and its variables, for a density to carry along.

    Args:
        network: bound.
        example: what its parameters are initialized with.
    """
    if network.is_initializing():
        network(*example)  # pyright: ignore[reportCallIssue]
    return network.clone(parent=None), network.variables


def bounded(x: Array, limit: float) -> Array:
    """x where it is small, never beyond ±limit, with a gradient everywhere."""
    return limit * jnp.tanh(x / limit)


def monotone_root(f: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The x between `low` and `high` at which f, elementwise and increasing, is zero.

    Newton's method inside a bracket that is halved as well, so that it cannot cycle. Derivatives
    are the implicit ones, -(df/dx)⁻¹ df, whatever the number of iterations.

    Args:
        f: may close over what is differentiated.
        low, high: of one shape, f(low) <= 0 <= f(high).
    """
    low, high = lax.stop_gradient((low, high))
    tolerance = jnp.finfo(low.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))

    def solve(f: Callable[[Array], Array], x: Array) -> Array:
        def shrink(low: Array, high: Array, x: Array, value: Array) -> tuple[Array, Array]:
            return jnp.where(value <= 0, x, low), jnp.where(value >= 0, x, high)

        def iterate(state):
            count, low, high, x, _ = state
            value, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
            low, high = shrink(low, high, x, value)
            middle = (low + high) / 2
            low, high = shrink(low, high, middle, f(middle))
            new = jnp.clip(x - value / slope, low, high)
            return count + 1, low, high, new, jnp.abs(new - x)

        def unfinished(state):
            return (state[0] < 64) & jnp.any(state[-1] > tolerance)

        start = (0, low, high, x, jnp.full_like(x, jnp.inf))
        return lax.while_loop(unfinished, iterate, start)[-2]

    def solve_linear(g: Callable[[Array], Array], y: Array) -> Array:
        return y / g(jnp.ones_like(y))

    return lax.custom_root(f, (low + high) / 2, solve, solve_linear)
