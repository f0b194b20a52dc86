"""Sylvester flows: a residual step of low rank, with two triangles in an orthonormal basis."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float

from vae_jax.flows.base import MIN_SLOPE, Flow, direction, monotone_root, tanh_and_slope
from vae_jax.flows.householder import Householder

einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)  # densities depend on them


def orthogonalize(a: Float[Array, "*batch d M"]) -> Float[Array, "*batch d M"]:
    """Orthonormal columns with the span of the M <= d columns of a: Q of the polar form a = QP.

    The iteration Q (I + (I - QᵀQ) / 2) of Björck & Bowie (1971), as in van den Berg et al. (2018).
    Started at Frobenius norm 1 it converges unless a is singular. Each iteration multiplies small
    singular values by 1.5, so 40 iterations are enough for every matrix that has full rank in
    float32. A singular matrix, such as zeros, gives the first M unit vectors.
    """
    first = jnp.eye(*a.shape[-2:], dtype=a.dtype)
    q = _polar(direction(a, first / a.shape[-1] ** 0.5))
    return jnp.where(_error(_gram(q)) < 0.1, q, first)


def _gram(q: Float[Array, "*batch d M"]) -> Float[Array, "*batch M M"]:
    return einsum("...dm,...dn->...mn", q, q)


def _error(gram: Float[Array, "*batch M M"]) -> Float[Array, "*batch 1 1"]:
    """The largest distance of an entry of QᵀQ from the identity's."""
    return jnp.abs(gram - jnp.eye(gram.shape[-1], dtype=gram.dtype)).max((-2, -1), keepdims=True)


@jax.custom_jvp
def _polar(a: Float[Array, "*batch d M"]) -> Float[Array, "*batch d M"]:
    """Q of the polar form a = QP, for a with singular values of at most 1."""
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)
    root = jnp.finfo(a.dtype).eps ** 0.5  # an error e becomes 3/4 e²: below it, one step is enough

    def iterate(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, q, rough = state
        gram = _gram(q)
        better = einsum("...dm,...mn->...dn", q, 1.5 * identity - 0.5 * gram)
        return step + 1, jnp.where(rough, better, q), rough & (_error(gram) > root)

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        step, _, rough = state
        return (step < 40) & rough.any()

    rough = jnp.ones((*a.shape[:-2], 1, 1), bool)  # each matrix ends separately
    return lax.while_loop(goes_on, iterate, (jnp.int32(0), a, rough))[1]


@_polar.defjvp
def _polar_jvp(
    primals: tuple[Float[Array, "*batch d M"]], tangents: tuple[Float[Array, "*batch d M"]]
) -> tuple[Float[Array, "*batch d M"], Float[Array, "*batch d M"]]:
    """dQ = QΩ + (I - QQᵀ) da P⁻¹, with the skew Ω that solves ΩP + PΩ = Qᵀda - daᵀQ.

    From da = dQ P + Q dP, where Ω = QᵀdQ is skew and dP is symmetric; P = V diag(w) Vᵀ.
    """
    (a,), (da,) = primals, tangents
    q = _polar(a)
    p = einsum("...dm,...dn->...mn", q, a)
    w, v = jnp.linalg.eigh((p + p.mT) / 2)
    w = jnp.maximum(w, jnp.finfo(a.dtype).tiny ** 0.5)
    along = einsum("...dm,...dn->...mn", q, da)
    turned = einsum("...im,...ij,...jn->...mn", v, along - along.mT, v)
    turned = turned / (w[..., :, None] + w[..., None, :])
    omega = einsum("...im,...mn,...jn->...ij", v, turned, v)
    across = einsum("...dm,...mn->...dn", da - einsum("...dm,...mn->...dn", q, along), v)
    return q, einsum("...dm,...mn->...dn", q, omega) + einsum(
        "...dm,...jm->...dj", across / w[..., None, :], v
    )


@struct.dataclass
class Sylvester(Flow):
    """f(z) = z + Q R tanh(R̃ Qᵀz + b) (van den Berg et al. 2018, section 3).

    R and R̃ are upper triangular. Their diagonals pass through a tanh, as in the paper's code, so
    that r_ii r̃_ii > -1, which makes f invertible.

    Attributes:
        q: the matrix Q, whose columns are orthonormal; or with M = d the reflections that it is
            the product of, or None for the identity.
        r: R and R̃ in one matrix: R above the diagonal, R̃ transposed below it.
        diagonals: the diagonals of R and R̃ before their tanh.
        b: the offset b.
    """

    q: Float[Array, "*batch d M"] | Householder | None
    r: Float[Array, "*batch M M"]
    diagonals: Float[Array, "*batch 2 M"]
    b: Float[Array, "*batch M"]

    def triangles(self) -> tuple[Float[Array, "*batch M M"], Float[Array, "*batch M M"]]:
        """R and R̃."""
        diagonal = (1 - MIN_SLOPE) ** 0.5 * jnp.tanh(self.diagonals)
        on_diagonal = diagonal[..., None] * jnp.eye(self.r.shape[-1], dtype=self.r.dtype)
        above = jnp.triu(self.r, 1), jnp.triu(self.r.mT, 1)
        return above[0] + on_diagonal[..., 0, :, :], above[1] + on_diagonal[..., 1, :, :]

    def forward_and_log_det(
        self, x: Float[Array, "... d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """ln |det| = sum_i ln(1 + tanh'(a_i) r_ii r̃_ii) with a = R̃ Qᵀz + b."""
        return self._shift(x, self._components(x), 1)

    def inverse_and_log_det(
        self, y: Float[Array, "... d"]
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """Solve v + R tanh(R̃ v + b) = Qᵀy for v = Qᵀz, one component at a time, the last first."""
        r, r_tilde = self.triangles()
        goal = self._components(y)

        def solve_component(v: Array, i: Array) -> tuple[Array, None]:
            # Components before i are still zero, so only those after i enter R̃ v and R tanh(.).
            row, row_tilde = r[..., i, :], r_tilde[..., i, :]
            h = jnp.tanh(einsum("...mn,...n->...m", r_tilde, v) + self.b)
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

    def _components(self, z: Float[Array, "... d"]) -> Float[Array, "... M"]:
        """Qᵀz."""
        if self.q is None:
            return jnp.broadcast_to(z, jnp.broadcast_shapes(z.shape, self.b.shape))
        if isinstance(self.q, Householder):
            return self.q.inverse_and_log_det(z)[0]
        return einsum("...dm,...d->...m", self.q, z)

    def _shift(
        self, x: Float[Array, "... d"], v: Float[Array, "... M"], sign: int
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "*draws"]]:
        """x ± Q R tanh(R̃ v + b), and ± the forward map's ln |det| where Qᵀz = v."""
        r, r_tilde = self.triangles()
        h, slope = tanh_and_slope(einsum("...mn,...n->...m", r_tilde, v) + self.b)
        shift = einsum("...mn,...n->...m", r, h)
        if isinstance(self.q, Householder):
            shift, _ = self.q.forward_and_log_det(shift)
        elif self.q is not None:
            shift = einsum("...dm,...m->...d", self.q, shift)
        diagonal = jnp.diagonal(r, axis1=-2, axis2=-1) * jnp.diagonal(r_tilde, axis1=-2, axis2=-1)
        return x + sign * shift, sign * jnp.log1p(slope * diagonal).sum(-1)
