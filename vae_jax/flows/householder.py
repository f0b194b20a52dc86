"""Householder flows: a rotation as a product of reflections."""

from functools import partial

import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float

from vae_jax.flows.base import Flow, direction

einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)  # densities depend on them


@struct.dataclass
class Householder(Flow):
    """Reflections z - 2 v vᵀz / |v|², one after the other (Tomczak & Welling 2016, section 3).

    With unit vectors v_1, ..., v_T as the columns of V, their product is z - V Sᵀ Vᵀz, where S is
    the inverse of the triangle with 1/2 on the diagonal and v_sᵀv_t above it (Joffrain et al.
    2006): a few products of matrices, however many reflections there are.

    Attributes:
        v: the vectors of T reflections; a vector of zeros is replaced by the first unit vector.

    References:
        Tomczak & Welling (2016), "Improving variational auto-encoders using Householder flow".
        Joffrain et al. (2006), "Accumulating Householder transformations, revisited".
    """

    v: Float[Array, "*batch T d"]

    def forward_and_log_det(
        self, x: Float[Array, "... d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """Reflections preserve volumes: ln |det| = 0."""
        v, s = self._product()
        return self._reflected(x, v, s.mT)

    def inverse_and_log_det(
        self, y: Float[Array, "... d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """The reflections in reverse order; each is its own inverse."""
        return self._reflected(y, *self._product())

    def _product(self) -> tuple[Float[Array, "*batch T d"], Float[Array, "*batch T T"]]:
        """Vᵀ and S."""
        v = direction(self.v, jnp.eye(1, self.v.shape[-1], dtype=self.v.dtype)[0])
        identity = jnp.eye(v.shape[-2], dtype=v.dtype)
        triangle = jnp.triu(einsum("...sd,...td->...st", v, v), 1) + 0.5 * identity
        return v, lax.linalg.triangular_solve(
            triangle, jnp.broadcast_to(identity, triangle.shape), left_side=True
        )

    def _reflected(
        self,
        x: Float[Array, "... d"],
        v: Float[Array, "*batch T d"],
        s: Float[Array, "*batch T T"],
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        along = einsum("...td,...d->...t", v, x)
        x = x - einsum("...td,...t->...d", v, einsum("...st,...t->...s", s, along))
        return x, jnp.zeros(x.shape[:-1], x.dtype)
