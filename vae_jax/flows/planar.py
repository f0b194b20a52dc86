"""The planar flow."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from vae_jax.flows.base import MIN_SLOPE, Flow, monotone_root


@struct.dataclass
class Planar(Flow):
    """f(z) = z + û tanh(wᵀz + b) (Rezende & Mohamed 2015, section 4.1).

    û is u with its component along w moved so that wᵀû > -1, which makes f invertible (appendix
    A.1). The paper moves wᵀu to softplus(wᵀu) - 1; ours is shifted to leave wᵀu = 0 in place, so
    that u = 0 is the identity.

    Attributes:
        u, w: `[*batch, d]`, unconstrained.
        b: `[*batch]`.
    """

    u: Array
    w: Array
    b: Array

    def constrained(self) -> tuple[Array, Array]:
        """û, `[*batch, d]`, and wᵀû, `[*batch]`."""
        product = (self.w * self.u).sum(-1)
        softplus = jax.nn.softplus(product + math.log(math.e - 1))
        moved = (1 - MIN_SLOPE) * (softplus - 1)
        square = jnp.maximum((self.w**2).sum(-1), 1e-12)  # w may be zero
        return self.u + ((moved - product) / square)[..., None] * self.w, moved

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """ln |det| = ln(1 + tanh'(wᵀz + b) wᵀû)."""
        u, wu = self.constrained()
        return self._shift(x, u, wu, (self.w * x).sum(-1))

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """A root of one scalar equation, a + wᵀû tanh(a + b) = wᵀy, where a = wᵀz."""
        u, wu = self.constrained()
        wy = (self.w * y).sum(-1)
        reach = jnp.abs(wu)
        a = monotone_root(lambda a: a + wu * jnp.tanh(a + self.b) - wy, wy - reach, wy + reach)
        x, log_det = self._shift(y, -u, wu, a)
        return x, -log_det

    def _shift(self, x: Array, u: Array, wu: Array, a: Array) -> tuple[Array, Array]:
        """x + u tanh(a + b), and the forward map's ln |det| where wᵀz = a."""
        h = jnp.tanh(a + self.b)
        return x + u * h[..., None], jnp.log1p((1 - h**2) * wu)
