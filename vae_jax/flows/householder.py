"""Householder flows: a rotation as a product of reflections."""

from collections.abc import Iterable

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float

from vae_jax.flows.base import Flow, direction


@struct.dataclass
class Householder(Flow):
    """Reflections z - 2 v vᵀz / |v|², one after the other (Tomczak & Welling 2016, section 3).

    Attributes:
        v: the vectors of T reflections; a vector of zeros is replaced by the first unit vector.
    """

    v: Float[Array, "*batch T d"]

    def forward_and_log_det(
        self, x: Float[Array, "... d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """Reflections keep volumes: ln |det| = 0."""
        return self._reflect(x, range(self.v.shape[-2]))

    def inverse_and_log_det(
        self, y: Float[Array, "... d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """The reflections in reverse order; each is its own inverse."""
        return self._reflect(y, reversed(range(self.v.shape[-2])))

    def _reflect(
        self, x: Float[Array, "... d"], order: Iterable[int]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        v = direction(self.v, jnp.eye(1, self.v.shape[-1], dtype=self.v.dtype)[0])
        for t in order:
            x = x - 2 * v[..., t, :] * (v[..., t, :] * x).sum(-1, keepdims=True)
        return x, jnp.zeros(x.shape[:-1], x.dtype)
