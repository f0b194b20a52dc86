"""Normal distributions, with independent components and with any covariance."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float, Key, Num
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions.base import (
    Distribution,
    Elementwise,
    Shape,
    one_event_axis,
    register_kl,
    sum_event,
)

# The range of ln scale of a normal over latents: wider than any scale that occurs, yet squared
# ratios of two scales, and their gradients, stay well inside float32.
LOG_SCALE_RANGE = (-10.0, 7.0)


@struct.dataclass
class Normal(Elementwise):
    """N(loc, scale²), independent components.

    Attributes:
        scale: the standard deviation of each component; it broadcasts against `loc`.
    """

    scale: Float[Array, "..."]

    @property
    @override
    def std(self) -> Float[Array, "..."]:
        return jnp.broadcast_to(self.scale, self.loc.shape)

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Reparameterized: loc + scale * eps (Kingma & Welling 2013, equation 10)."""
        eps = random.draw(jax.random.normal, key, sample_shape, self.loc.shape)
        return self.loc + self.scale * eps

    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """-1/2 [((x - loc) / scale)² + ln 2 pi] - ln scale."""
        eps = (value - self.loc) / self.scale
        return -0.5 * (eps**2 + math.log(2 * math.pi)) - jnp.log(self.scale)

    @override
    def log_prob_pairs(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        # For one batch axis, with less memory and time than the base class.
        if len(self.batch_shape) != 1 or self.event_ndims == 0:
            return super().log_prob_pairs(value)
        scale = jnp.broadcast_to(self.scale, self.loc.shape)
        loc, scale, flat = (one_event_axis(a, self.event_ndims) for a in (self.loc, scale, value))
        distances = scaled_squared_distances(flat.reshape(-1, loc.shape[-1]), loc, 1 / scale)
        log_normalizer = sum_event(jnp.log(scale) + 0.5 * math.log(2 * math.pi), 1)
        log_density = -0.5 * distances - log_normalizer
        return log_density.reshape(*flat.shape[:-1], len(loc))


@jax.custom_vjp
def scaled_squared_distances(
    value: Float[Array, "N d"], loc: Float[Array, "C d"], precision_root: Float[Array, "C d"]
) -> Float[Array, "N C"]:
    """sum_j [(value_nj - loc_cj) r_cj]² for each pair (n, c).

    The value and its derivatives are sums over differences, so that nothing cancels: an expanded
    square, by matrix products, loses a small scale beside a wide spread. Components j are added one
    after the other, so that no array of size N x C x d is stored.

    Args:
        value: `[N, d]`.
        loc: `[C, d]`.
        precision_root: r, the inverse scales, `[C, d]`.
    """

    def add(total: Array, of_j: tuple[Array, Array, Array]) -> tuple[Array, None]:
        value, loc, root = of_j
        return total + ((value[:, None] - loc) * root) ** 2, None

    start = jnp.zeros((len(value), len(loc)), value.dtype)
    return lax.scan(add, start, (value.T, loc.T, precision_root.T))[0]


Residuals = tuple[Float[Array, "N d"], Float[Array, "C d"], Float[Array, "C d"]]


def _scaled_forward(
    value: Float[Array, "N d"], loc: Float[Array, "C d"], root: Float[Array, "C d"]
) -> tuple[Float[Array, "N C"], Residuals]:
    return scaled_squared_distances(value, loc, root), (value, loc, root)


def _scaled_backward(residuals: Residuals, cotangent: Float[Array, "N C"]) -> Residuals:
    value, loc, root = residuals

    def of_component(of_j: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        value, loc, root = of_j
        difference = value[:, None] - loc
        weighted = 2 * cotangent * difference
        of_value = jnp.matmul(weighted, root**2, precision=lax.Precision.HIGHEST)
        return of_value, -weighted.sum(0) * root**2, (weighted * difference).sum(0) * root

    of_value, of_loc, of_root = lax.map(of_component, (value.T, loc.T, root.T))
    return of_value.T, of_loc.T, of_root.T


scaled_squared_distances.defvjp(_scaled_forward, _scaled_backward)


@register_kl(Normal, Normal)
def _kl_normal_normal(q: Normal, p: Normal) -> Float[Array, "..."]:
    # Kingma & Welling 2013, appendix B, for a general diagonal p.
    ratio = q.scale / p.scale
    kl = 0.5 * (ratio**2 + ((q.loc - p.loc) / p.scale) ** 2 - 1) - jnp.log(ratio)
    return sum_event(kl, q.event_ndims)


@struct.dataclass
class MultivariateNormal(Distribution):
    """N(loc, L Lᵀ).

    Attributes:
        loc: the mean.
        scale_tril: the Cholesky factor L, lower triangular with a positive diagonal.
    """

    loc: Float[Array, "*batch d"]
    scale_tril: Float[Array, "*batch d d"]

    @property
    @override
    def shape(self) -> Shape:
        return self.loc.shape

    @property
    @override
    def mean(self) -> Float[Array, "*batch d"]:
        return self.loc

    @property
    @override
    def std(self) -> Float[Array, "*batch d"]:
        return jnp.linalg.norm(self.scale_tril, axis=-1)

    @property
    def log_det_tril(self) -> Float[Array, "*batch"]:
        """ln det L."""
        return jnp.log(jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1)).sum(-1)

    def standardized(self, value: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """L⁻¹ (value - loc), by substitution: an inverse loses digits if L is ill-conditioned."""
        difference = value - self.loc
        batch = self.scale_tril.shape[:-2]
        draws = difference.reshape(-1, *batch, difference.shape[-1])
        solved = solve_triangular(self.scale_tril, jnp.moveaxis(draws, 0, -1), lower=True)
        return jnp.moveaxis(solved, -1, 0).reshape(difference.shape)

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "*draws d"]:
        """Reparameterized: loc + L eps."""
        return self.sample_and_log_prob(key, sample_shape)[0]

    def log_prob(self, value: Float[Array, "*draws d"]) -> Float[Array, "..."]:
        """-1/2 sum [eps² + ln 2 pi] - ln det L with eps = L⁻¹ (x - loc)."""
        log_prob = self._log_prob_of_eps(self.standardized(value))
        # If eps is too large for a float, substitution meets inf - inf.
        known = jnp.isfinite(value - self.loc).all(-1) & jnp.isfinite(self.scale_tril).all((-2, -1))
        return jnp.where(jnp.isnan(log_prob) & known, -jnp.inf, log_prob)

    @override
    def sample_and_log_prob(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> tuple[Float[Array, "*draws d"], Float[Array, "..."]]:
        """Evaluated from the draws' eps, and thus accurate even if float32 cannot invert L."""
        eps = random.draw(jax.random.normal, key, sample_shape, self.loc.shape)
        exact = lax.Precision.HIGHEST
        shift = jnp.einsum("...ij,...j->...i", self.scale_tril, eps, precision=exact)
        return self.loc + shift, self._log_prob_of_eps(eps)

    def _log_prob_of_eps(self, eps: Float[Array, "... d"]) -> Float[Array, "..."]:
        return -0.5 * (eps**2 + math.log(2 * math.pi)).sum(-1) - self.log_det_tril


@register_kl(MultivariateNormal, Normal)
def _kl_multivariate_normal(q: MultivariateNormal, p: Normal) -> Float[Array, "..."]:
    # The precision of p is diagonal, so only the diagonal of q's covariance enters.
    scale = jnp.broadcast_to(p.scale, p.loc.shape)
    ratio = q.scale_tril / scale[..., None]
    square = (ratio**2).sum((-2, -1)) + (((q.loc - p.loc) / scale) ** 2).sum(-1)
    return 0.5 * (square - q.loc.shape[-1]) + jnp.log(scale).sum(-1) - q.log_det_tril


@register_kl(MultivariateNormal, MultivariateNormal)
def _kl_multivariate_multivariate(
    q: MultivariateNormal, p: MultivariateNormal
) -> Float[Array, "..."]:
    shape = jnp.broadcast_shapes(q.scale_tril.shape, p.scale_tril.shape)
    of_q, of_p = (jnp.broadcast_to(each.scale_tril, shape) for each in (q, p))
    ratio, shift = solve_triangular(of_p, of_q, lower=True), p.standardized(q.loc)
    square = (ratio**2).sum((-2, -1)) + (shift**2).sum(-1)
    return 0.5 * (square - q.loc.shape[-1]) + p.log_det_tril - q.log_det_tril
