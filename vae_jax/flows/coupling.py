"""Coupling layers: some components transform the others."""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float

from vae_jax.flows.base import LOG_SCALE_LIMIT, NEAR_ZERO, ExactDense, Flow, bounded
from vae_jax.given import Widths
from vae_jax.interfaces import Part, Variables


class CouplingNetwork(Part):
    """Dense layers with ELU, then two numbers for each component, near zero at initialization.

    Attributes:
        features: the width of each hidden layer.
    """

    features: Widths

    @nn.compact
    def __call__(
        self, x: Float[Array, "*draws d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws d"]]:
        """Two numbers for each component of x."""
        h = x
        for width in self.features:
            h = jax.nn.elu(ExactDense(width, kernel_init=nn.initializers.glorot_uniform())(h))
        out = ExactDense(2 * x.shape[-1], kernel_init=NEAR_ZERO, name="out")(h)
        return out[..., : x.shape[-1]], out[..., x.shape[-1] :]


@struct.dataclass
class AffineCoupling(Flow):
    """y = m x + (1 - m) (x e^s + t), s and t from m x (Dinh et al. 2017, section 3).

    Attributes:
        mask: the mask m, zeros and ones.
        network: a detached `CouplingNetwork`; s is bounded by ±5.
        variables: the variables of the network.
    """

    mask: Float[Array, "d"]
    network: nn.Module = struct.field(pytree_node=False)
    variables: Variables

    def shift_and_log_scale(
        self, x: Float[Array, "*draws d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws d"]]:
        """t and s, zero where the mask is one; functions of m x alone."""
        t, s = cast(tuple[Array, Array], self.network.apply(self.variables, self.mask * x))
        return (1 - self.mask) * t, (1 - self.mask) * bounded(s, LOG_SCALE_LIMIT)

    def forward_and_log_det(
        self, x: Float[Array, "*draws d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """ln |det| = sum_i s_i."""
        t, s = self.shift_and_log_scale(x)
        return x * jnp.exp(s) + t, s.sum(-1)

    def inverse_and_log_det(
        self, y: Float[Array, "*draws d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """x = (y - t) e^-s; the map leaves the network's input m x unchanged."""
        t, s = self.shift_and_log_scale(y)
        return (y - t) * jnp.exp(-s), -s.sum(-1)
