"""Flows with a triangular Jacobian: each component depends on the components before it."""

from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jax.nn.initializers import Initializer
from jaxtyping import Bool, Float, Int

from vae_jax.flows.base import LOG_SCALE_LIMIT, NEAR_ZERO, ExactDense, Flow, bounded
from vae_jax.given import Widths
from vae_jax.interfaces import Part, Variables

GATE_BIAS = 2.0
GATE_LIMIT = 10.0


class MADE(Part):
    """A masked network whose i-th outputs depend only on inputs 1, ..., i - 1.

    Attributes:
        features: the width of each hidden layer; an ELU follows each.

    References:
        Germain et al. (2015), "MADE: masked autoencoder for distribution estimation".
    """

    features: Widths

    @nn.compact
    def __call__(
        self, x: Float[Array, "*draws d"], context: Float[Array, "*batch c"] | None = None
    ) -> tuple[Float[Array, "... d"], Float[Array, "... d"]]:
        """Two numbers for each component.

        Args:
            x: vectors.
            context: further inputs of every output.
        """
        dim = x.shape[-1]
        order = np.arange(1, dim + 1)
        lowest = int(context is None and dim > 1)  # units of degree 0 depend only on the context
        degrees, h = order, x
        for layer, width in enumerate(self.features):
            hidden = lowest + _spread(width, dim - lowest)
            glorot = nn.initializers.glorot_uniform()
            h = self._masked(f"hidden{layer}", glorot, h, degrees[:, None] <= hidden)
            if layer == 0 and context is not None:
                h += ExactDense(width, use_bias=False, name="context")(context)
            degrees, h = hidden, jax.nn.elu(h)
        mask = degrees[:, None] < np.concatenate([order, order])
        first, second = jnp.split(self._masked("out", NEAR_ZERO, h, mask), 2, axis=-1)
        return first, second

    def _masked(
        self,
        name: str,
        kernel_init: Initializer,
        h: Float[Array, "... inputs"],
        mask: Bool[np.ndarray, "inputs outputs"],
    ) -> Float[Array, "... outputs"]:
        kernel = self.param(f"{name}_kernel", kernel_init, mask.shape)
        bias = self.param(f"{name}_bias", nn.initializers.zeros, mask.shape[1:])
        weights = jnp.where(mask, kernel, 0)
        return jnp.matmul(h, weights, precision=lax.Precision.HIGHEST) + bias


def _spread(count: int, limit: int) -> Int[np.ndarray, "count"]:
    """Integers from 0 to limit - 1, evenly spread, the last included even if there are few.

    Without the degree limit - 1 some inputs would reach no output.
    """
    if count >= limit:
        return np.arange(count) % limit
    return np.linspace(limit - 1, 0, count).round().astype(int)


def solve_in_order(
    update: Callable[[Array], Array], start: Float[Array, "*draws d"]
) -> Float[Array, "*draws d"]:
    """The fixed point of a map whose component i depends only on the components before it.

    Args:
        update: the map, from `[..., d]` to `[..., d]`.
        start: any values.
    """
    components = jnp.arange(start.shape[-1])

    def solve_component(x: Array, i: Array) -> tuple[Array, None]:
        return jnp.where(components == i, update(x), x), None

    return lax.scan(solve_component, start, components)[0]


@struct.dataclass
class InverseAutoregressive(Flow):
    """y = σ x + (1 - σ) m, m and the logits of σ from a MADE of x (Kingma et al. 2016, section 4).

    The logits are shifted by 2, the paper's forget-gate bias, and bounded by ±10, so that the
    inverse, computed one component after the other, does not overflow.

    Attributes:
        network: a detached MADE.
        variables: the variables of the network.
        context: the context of each example.
    """

    network: nn.Module = struct.field(pytree_node=False)
    variables: Variables
    context: Float[Array, "*batch c"]

    def gate(self, x: Float[Array, "... d"]) -> tuple[Float[Array, "... d"], Float[Array, "... d"]]:
        """m and the logits of σ at x."""
        m, s = cast(tuple[Array, Array], self.network.apply(self.variables, x, self.context))
        return m, bounded(s + GATE_BIAS, GATE_LIMIT)

    def forward_and_log_det(
        self, x: Float[Array, "... d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """ln |det| = sum_i ln σ_i."""
        m, s = self.gate(x)
        return jax.nn.sigmoid(s) * x + jax.nn.sigmoid(-s) * m, jax.nn.log_sigmoid(s).sum(-1)

    def inverse_and_log_det(
        self, y: Float[Array, "... d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """x = y + e^-s (y - m) with s the logits; takes d evaluations of the network."""

        def update(x: Array) -> Array:
            m, s = self.gate(x)
            return y + jnp.exp(-s) * (y - m)

        x = solve_in_order(update, jnp.broadcast_to(y, self.gate(y)[0].shape))
        return x, -jax.nn.log_sigmoid(self.gate(x)[1]).sum(-1)


@struct.dataclass
class MaskedAutoregressive(Flow):
    """y = x e^α + μ, μ and α from a MADE of y (Papamakarios et al. 2017, section 3.1).

    A density takes one evaluation of the network, a draw takes d.

    Attributes:
        network: a detached MADE.
        variables: the variables of the network.
    """

    network: nn.Module = struct.field(pytree_node=False)
    variables: Variables

    def moments(
        self, y: Float[Array, "*draws d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws d"]]:
        """μ and α at y."""
        mu, alpha = cast(tuple[Array, Array], self.network.apply(self.variables, y))
        return mu, bounded(alpha, LOG_SCALE_LIMIT)

    def forward_and_log_det(
        self, x: Float[Array, "*draws d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """One component after the other; ln |det| = sum_i α_i."""

        def update(y: Array) -> Array:
            mu, alpha = self.moments(y)
            return x * jnp.exp(alpha) + mu

        y = solve_in_order(update, x)
        return y, self.moments(y)[1].sum(-1)

    def inverse_and_log_det(
        self, y: Float[Array, "*draws d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """x = (y - μ) e^-α."""
        mu, alpha = self.moments(y)
        return (y - mu) * jnp.exp(-alpha), -alpha.sum(-1)
