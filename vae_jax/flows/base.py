"""The base class of invertible maps, and their shared functions."""

import abc
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float
from typing_extensions import override

from vae_jax.given import Pytree
from vae_jax.interfaces import Variables

MIN_SLOPE = 0.01
"""The lower limit of the derivative of scalar maps that are inverted numerically."""
LOG_SCALE_LIMIT = 5.0
"""The limit of |ln scale| of one component in one affine layer."""
NEAR_ZERO = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")
"""A hundredth of Glorot's weights, so that a flow is near the identity at initialization."""


class Flow(Pytree, abc.ABC):
    """An invertible map f of vectors, whose parameters have axes `[*batch, ...]`.

    The vectors are `[..., *batch, d]`, and the log-determinants `[..., *batch]` or of a shape that
    broadcasts to it.

    Example:
        A learned scale for each component::

            @struct.dataclass
            class Scale(Flow):
                log_scale: Float[Array, "*batch d"]

                def forward_and_log_det(self, x):
                    return x * jnp.exp(self.log_scale), self.log_scale.sum(-1)

                def inverse_and_log_det(self, y):
                    return y * jnp.exp(-self.log_scale), -self.log_scale.sum(-1)
    """

    @abc.abstractmethod
    def forward_and_log_det(
        self, x: Float[Array, "... d"]
    ) -> tuple[Float[Array, "... d"], Float[Array, "..."]]:
        """y = f(x) and ln |det dy/dx|."""

    @abc.abstractmethod
    def inverse_and_log_det(
        self, y: Float[Array, "... d"]
    ) -> tuple[Float[Array, "... d"], Float[Array, "..."]]:
        """The x with f(x) = y, and ln |det dx/dy|."""


@struct.dataclass
class Reverse(Flow):
    """The reversal of the order of the components."""

    @override
    def forward_and_log_det(
        self, x: Float[Array, "*draws d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        return x[..., ::-1], jnp.zeros(x.shape[:-1], x.dtype)  # a permutation preserves volumes

    @override
    def inverse_and_log_det(
        self, y: Float[Array, "*draws d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        return self.forward_and_log_det(y)


def detach(network: nn.Module, *example: Float[Array, "..."]) -> tuple[nn.Module, Variables]:
    """Separate a network made in a compact method from its variables, for a density to hold both.

    Args:
        network: a bound network.
        example: the arguments with which its parameters are initialized.

    Returns:
        The unbound network, and its variables.
    """
    if network.is_initializing():
        network(*example)  # pyright: ignore[reportCallIssue]
    return network.clone(parent=None), network.variables


def bounded(x: Float[Array, "*shape"], limit: float) -> Float[Array, "*shape"]:
    """limit tanh(x / limit): close to x near 0, within ±limit, with a gradient everywhere."""
    return limit * jnp.tanh(x / limit)


def direction(v: Float[Array, "..."], otherwise: Float[Array, "*event"]) -> Float[Array, "..."]:
    """v / |v|, even if |v|² is outside the range of float32.

    Args:
        v: vectors, or matrices with their Frobenius norm, `[*batch, *event]`.
        otherwise: the direction, of length one, to return for v = 0.
    """
    axes = tuple(range(-otherwise.ndim, 0))
    largest = lax.stop_gradient(jnp.abs(v).max(axes, keepdims=True))
    _, exponent = jnp.frexp(largest)  # scaling by a power of two is exact
    v = jnp.where(largest > 0, jnp.ldexp(v, -exponent), otherwise)
    return v / jnp.sqrt((v**2).sum(axes, keepdims=True))


def tanh_and_slope(
    x: Float[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """tanh x and its derivative; nothing cancels, as 1 - tanh² x would (all digits at x = 8)."""
    u = jnp.exp(-2 * jnp.abs(x))
    return jnp.tanh(x), 4 * u / (1 + u) ** 2


ExactDense = partial(nn.Dense, precision=lax.Precision.HIGHEST)
"""A dense layer in full float32 precision, for networks on which a density depends."""


_State = tuple[int | Array, Array, Array, Array, Array]  # iterations, bracket, x, the last step


def monotone_root(
    f: Callable[[Array], Array], low: Float[Array, "*shape"], high: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The zero of an elementwise, increasing function.

    Newton's method inside a bracket, which each iteration also halves, so that it cannot cycle.
    Derivatives are the implicit ones, -(df/dx)⁻¹ df, independent of the number of iterations.

    Args:
        f: the function; it may close over values that are differentiated.
        low: the lower end of the bracket, f(low) <= 0.
        high: the upper end of the bracket, f(high) >= 0.
    """
    low, high = lax.stop_gradient((low, high))
    tolerance = jnp.finfo(low.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))

    def solve(f: Callable[[Array], Array], x: Array) -> Array:
        def shrink(low: Array, high: Array, x: Array, value: Array) -> tuple[Array, Array]:
            return jnp.where(value <= 0, x, low), jnp.where(value >= 0, x, high)

        def iterate(state: _State) -> _State:
            count, low, high, x, _ = state
            value, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
            low, high = shrink(low, high, x, value)
            middle = (low + high) / 2
            low, high = shrink(low, high, middle, f(middle))
            new = jnp.clip(x - value / slope, low, high)
            return count + 1, low, high, new, jnp.abs(new - x)

        def unfinished(state: _State) -> Array:
            return (state[0] < 64) & jnp.any(state[-1] > tolerance)

        start: _State = (0, low, high, x, jnp.full_like(x, jnp.inf))
        return lax.while_loop(unfinished, iterate, start)[-2]

    def solve_linear(g: Callable[[Array], Array], y: Array) -> Array:
        return y / g(jnp.ones_like(y))

    return lax.custom_root(f, (low + high) / 2, solve, solve_linear)
