"""Flows made of orthogonal matrices: Householder's, and Sylvester's with two triangles."""

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from vae_jax.flows.base import MIN_SLOPE, Flow, monotone_root


@struct.dataclass
class Householder(Flow):
    """Reflections z - 2 v vᵀz / |v|², one after the other (Tomczak & Welling 2016, section 3).

    Attributes:
        v: `[*batch, T, d]`, T reflections; a v of zeros stands for the first unit vector.
    """

    v: Array

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """Reflections keep volumes."""
        return self._reflect(x, range(self.v.shape[-2]))

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """Each reflection is its own inverse."""
        return self._reflect(y, reversed(range(self.v.shape[-2])))

    def _reflect(self, x: Array, order) -> tuple[Array, Array]:
        zero = (self.v == 0).all(-1, keepdims=True)
        v = jnp.where(zero, jnp.eye(1, self.v.shape[-1], dtype=self.v.dtype), self.v)
        v /= jnp.linalg.norm(v, axis=-1, keepdims=True)
        for t in order:
            x = x - 2 * v[..., t, :] * (v[..., t, :] * x).sum(-1, keepdims=True)
        return x, jnp.zeros(x.shape[:-1], x.dtype)


def orthogonalize(a: Array) -> Array:
    """Orthonormal columns that span those of a, `[..., d, M]` with M <= d.

    The iteration Q (I + (I - QᵀQ) / 2) of Björck & Bowie (1971), as in van den Berg et al. (2018),
    section 3.1. From Frobenius norm 1 it converges unless a is singular; each iteration multiplies
    small singular values by 1.5, so 40 serve any matrix whose rank float32 can tell.
    """

    def iterate(q: Array, _: None) -> tuple[Array, None]:
        gram = jnp.einsum("...dm,...dn->...mn", q, q)
        return q @ (1.5 * jnp.eye(q.shape[-1], dtype=q.dtype) - 0.5 * gram), None

    norm = jnp.linalg.norm(a, axis=(-2, -1), keepdims=True)
    return lax.scan(iterate, a / norm, length=40)[0]


@struct.dataclass
class Sylvester(Flow):
    """f(z) = z + Q R tanh(R̃ Qᵀz + b) (van den Berg et al. 2018, section 3).

    R and R̃ are upper triangular. Their diagonals pass through a tanh, as in the paper's code, so
    that r_ii r̃_ii > -1, which makes f invertible.

    Attributes:
        q: Q with orthonormal columns, `[*batch, d, M]`.
        r: `[*batch, M, M]`, R and R̃ in one: above the diagonal R, below it R̃ transposed.
        diagonals: of R and R̃ before their tanh, `[*batch, 2, M]`.
        b: `[*batch, M]`.
    """

    q: Array
    r: Array
    diagonals: Array
    b: Array

    def triangles(self) -> tuple[Array, Array]:
        """R and R̃, `[*batch, M, M]`."""
        diagonal = (1 - MIN_SLOPE) ** 0.5 * jnp.tanh(self.diagonals)
        on_diagonal = diagonal[..., None] * jnp.eye(self.r.shape[-1], dtype=self.r.dtype)
        above = jnp.triu(self.r, 1), jnp.triu(self.r.mT, 1)
        return above[0] + on_diagonal[..., 0, :, :], above[1] + on_diagonal[..., 1, :, :]

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """ln |det| = sum_i ln(1 + tanh'(a_i) r_ii r̃_ii) with a = R̃ Qᵀz + b."""
        return self._shift(x, jnp.einsum("...dm,...d->...m", self.q, x), 1)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """v + R tanh(R̃ v + b) = Qᵀy for v = Qᵀz: scalar equations, the last component first."""
        r, r_tilde = self.triangles()
        goal = jnp.einsum("...dm,...d->...m", self.q, y)

        def solve_component(v: Array, i: Array) -> tuple[Array, None]:
            # Components before i are still zero, so R̃ v and R tanh(.) have those after i alone.
            row, row_tilde = r[..., i, :], r_tilde[..., i, :]
            h = jnp.tanh(jnp.einsum("...mn,...n->...m", r_tilde, v) + self.b)
            after = jnp.arange(v.shape[-1]) > i
            c = goal[..., i] - jnp.where(after, row * h, 0).sum(-1)
            a = (row_tilde * v).sum(-1) + self.b[..., i]
            r_ii, r_tilde_ii = row[..., i], row_tilde[..., i]
            root = monotone_root(
                lambda u: u + r_ii * jnp.tanh(r_tilde_ii * u + a) - c,
                c - jnp.abs(r_ii),
                c + jnp.abs(r_ii),
            )
            return v.at[..., i].set(root), None

        order = jnp.arange(goal.shape[-1])
        v, _ = lax.scan(solve_component, jnp.zeros_like(goal), order, reverse=True)
        return self._shift(y, v, -1)

    def _shift(self, x: Array, v: Array, sign: int) -> tuple[Array, Array]:
        """x ± Q R tanh(R̃ v + b), and ± the forward map's ln |det| where Qᵀz = v."""
        r, r_tilde = self.triangles()
        h = jnp.tanh(jnp.einsum("...mn,...n->...m", r_tilde, v) + self.b)
        shift = jnp.einsum("...dm,...mn,...n->...d", self.q, r, h)
        diagonal = jnp.diagonal(r, axis1=-2, axis2=-1) * jnp.diagonal(r_tilde, axis1=-2, axis2=-1)
        return x + sign * shift, sign * jnp.log1p((1 - h**2) * diagonal).sum(-1)
