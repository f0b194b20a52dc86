"""The planar flow."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float

from vae_jax.flows.base import MIN_SLOPE, Flow, monotone_root, tanh_and_slope


@struct.dataclass
class Planar(Flow):
    """f(z) = z + û tanh(wᵀz + b) (Rezende & Mohamed 2015, section 4.1).

    û is u with its component along w changed so that wᵀû > -1, which makes f invertible (appendix
    A.1). The paper maps wᵀu to softplus(wᵀu) - 1; here that function is shifted so that it maps 0
    to 0 and u = 0 gives the identity.

    Attributes:
        u: the direction in which points move, unconstrained.
        w: the normal of the hyperplanes whose points all move by the same vector.
        b: the offset along w.
    """

    u: Float[Array, "*batch d"]
    w: Float[Array, "*batch d"]
    b: Float[Array, "*batch"]

    def constrained(self) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch"]]:
        """û and wᵀû."""
        product = (self.w * self.u).sum(-1)
        softplus = jax.nn.softplus(product + math.log(math.e - 1))
        moved = (1 - MIN_SLOPE) * (softplus - 1)
        square = jnp.maximum((self.w**2).sum(-1), 1e-12)  # w may be zero
        return self.u + ((moved - product) / square)[..., None] * self.w, moved

    def forward_and_log_det(
        self, x: Float[Array, "... d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """ln |det| = ln(1 + tanh'(wᵀz + b) wᵀû)."""
        u, wu = self.constrained()
        return self._shift(x, u, wu, (self.w * x).sum(-1))

    def inverse_and_log_det(
        self, y: Float[Array, "... d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """Find the root a = wᵀz of one scalar equation, a + wᵀû tanh(a + b) = wᵀy."""
        u, wu = self.constrained()
        wy = (self.w * y).sum(-1)
        reach = jnp.abs(wu)
        a = monotone_root(lambda a: a + wu * jnp.tanh(a + self.b) - wy, wy - reach, wy + reach)
        x, log_det = self._shift(y, -u, wu, a)
        return x, -log_det

    def _shift(
        self,
        x: Float[Array, "... d"],
        u: Float[Array, "*batch d"],
        wu: Float[Array, "*batch"],
        a: Float[Array, "..."],
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """x + u tanh(a + b), and the forward map's ln |det| where wᵀz = a."""
        h, slope = tanh_and_slope(a + self.b)
        return x + u * h[..., None], jnp.log1p(slope * wu)
