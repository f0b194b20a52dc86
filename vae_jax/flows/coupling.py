"""Coupling layers: some components move the others."""

from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from vae_jax.flows.base import LOG_SCALE_LIMIT, NEAR_ZERO, Flow, bounded


class CouplingNetwork(nn.Module):
    """Dense layers with ELU, then two numbers for each component, near zero at first.

    Attributes:
        features: width of each hidden layer.
    """

    features: Sequence[int]

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """`[..., d]` to two arrays `[..., d]`."""
        h = x
        for width in self.features:
            h = jax.nn.elu(nn.Dense(width, kernel_init=nn.initializers.glorot_uniform())(h))
        out = nn.Dense(2 * x.shape[-1], kernel_init=NEAR_ZERO, name="out")(h)
        return out[..., : x.shape[-1]], out[..., x.shape[-1] :]


@struct.dataclass
class AffineCoupling(Flow):
    """y = m x + (1 - m) (x e^s + t), s and t from m x (Dinh et al. 2017, section 3).

    Attributes:
        mask: m, zeros and ones, `[d]`.
        network: a CouplingNetwork, detached; s stays within ±5.
        variables: its.
    """

    mask: Array
    network: nn.Module = struct.field(pytree_node=False)
    variables: Any

    def shift_and_log_scale(self, x: Array) -> tuple[Array, Array]:
        """t and s, both `[..., d]`, zero where the mask is one; a function of m x alone."""
        t, s = cast(tuple[Array, Array], self.network.apply(self.variables, self.mask * x))
        return (1 - self.mask) * t, (1 - self.mask) * bounded(s, LOG_SCALE_LIMIT)

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """ln |det| = sum_i s_i."""
        t, s = self.shift_and_log_scale(x)
        return x * jnp.exp(s) + t, s.sum(-1)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """x = (y - t) e^-s: what the network sees does not move."""
        t, s = self.shift_and_log_scale(y)
        return (y - t) * jnp.exp(-s), -s.sum(-1)
