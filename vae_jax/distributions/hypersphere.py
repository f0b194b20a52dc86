"""Unit vectors `[d]`: the von Mises-Fisher and the uniform distribution.

With t the angle between z and the mean direction, a von Mises-Fisher distribution needs only
integrals of sin(t)^(d-2) exp(kappa (cos t - 1)). Gauss-Legendre quadrature gives their logarithms
for every d and kappa, including those for which Bessel functions overflow, and can be
differentiated: the nodes are constants, and the integrand is smooth in kappa.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions.base import Distribution, Shape, register_kl
from vae_jax.flows.base import direction

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_PANELS = 16
# Half the width of the window of integration, in standard deviations of the angle. The mass outside
# is below 1e-14 in the worst case, the circle at kappa = 17.
_HALF_WIDTH = 16.0
_BISECTIONS = 20
# Uniform noise stays inside (0, 1), where the density of the angle is positive.
_uniform = partial(jax.random.uniform, minval=2.0**-24, maxval=1 - 2.0**-24)


def log_area(dim: int) -> float:
    """ln [2 pi^(d/2) / Gamma(d/2)], the log-area of the unit sphere in R^d."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def _log_integrand(
    angle: Float[Array, "..."], kappa: Float[Array, "..."], dim: int
) -> Float[Array, "..."]:
    # float32 rounds pi up, to where the sine is negative.
    sine = jnp.maximum(jnp.sin(angle), jnp.finfo(angle.dtype).tiny)
    return (dim - 2) * jnp.log(sine) - 2 * kappa * jnp.sin(angle / 2) ** 2


def _log_terms(
    low: Float[Array, "..."], high: Float[Array, "..."], kappa: Float[Array, "..."], dim: int
) -> Float[Array, "... 8"]:
    """The logarithms of the terms that sum to the integral over angles from `low` to `high`."""
    half = (high - low)[..., None] / 2
    angles = low[..., None] + half * (1 + _NODES)
    return _log_integrand(angles, kappa[..., None], dim) + jnp.log(half) + np.log(_WEIGHTS)


def _panels(
    kappa: Float[Array, "*batch"], dim: int
) -> tuple[Float[Array, "*batch 17"], Float[Array, "*batch 16 8"]]:
    """The edges of panels around the mode, and the logarithms of the panels' terms."""
    # At the mode (d - 2) cos t = kappa sin²t; the curvature of the log-integrand follows.
    slope = dim / 2 - 1 + jnp.hypot(dim / 2 - 1, kappa) + jnp.finfo(kappa.dtype).tiny
    cosine = jnp.minimum(kappa / slope, 1.0)
    mode, width = jnp.arccos(cosine), _HALF_WIDTH / jnp.sqrt(slope + kappa * cosine)
    low, high = (jnp.clip(edge, 0.0, math.pi) for edge in (mode - width, mode + width))
    edges = low[..., None] + (high - low)[..., None] * np.linspace(0, 1, _PANELS + 1)
    edges = lax.stop_gradient(edges)
    return edges, _log_terms(edges[..., :-1], edges[..., 1:], kappa[..., None], dim)


def log_normalizer(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """ln of the integral of exp(kappa (mu.z - 1)) over the unit sphere in R^d."""
    _, log_terms = _panels(kappa, dim)
    return log_area(dim - 1) + jax.nn.logsumexp(log_terms, axis=(-2, -1))


def mean_cosine_minus_one(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """E[mu.z] - 1, the derivative of the log-normalizer."""
    return jax.grad(lambda kappa: log_normalizer(kappa, dim).sum())(kappa)


@struct.dataclass
class VonMisesFisherDistribution(Distribution):
    """The density proportional to exp(kappa loc.z) on unit vectors `[d]`, d >= 2.

    It is accurate in float32 from kappa = 0 to 10^4 and beyond.

    Attributes:
        loc: the mean direction, a unit vector.
        kappa: the concentration.

    References:
        Davidson et al. (2018), "Hyperspherical variational auto-encoders", for the density, the
            sampler and the KL.
    """

    loc: Float[Array, "*batch d"]
    kappa: Float[Array, "*batch"]

    @property
    @override
    def shape(self) -> Shape:
        return self.loc.shape

    @property
    def mean(self) -> Float[Array, "*batch d"]:
        """E[loc.z] loc, a vector inside the sphere."""
        resultant = 1 + mean_cosine_minus_one(self.kappa, self.loc.shape[-1])
        return resultant[..., None] * self.loc

    def log_prob(self, value: Float[Array, "*draws d"]) -> Float[Array, "..."]:
        """kappa (loc.z - 1) - `log_normalizer`; the density is with respect to surface area."""
        # loc.z - 1 = -|z - loc|² / 2, which does not cancel at a large kappa with z near loc.
        squared_distance = ((value - self.loc) ** 2).sum(-1)
        return -self.kappa * squared_distance / 2 - log_normalizer(self.kappa, self.loc.shape[-1])

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "*draws d"]:
        """Reparameterized: an angle to e_1, a direction around it, and e_1 reflected to loc."""
        dim = self.loc.shape[-1]
        key_angle, key_direction = random.purposes(key, "angle", "direction")
        angle = self._angle(random.draw(_uniform, key_angle, sample_shape, self.batch_shape))[
            ..., None
        ]
        around = random.draw(
            jax.random.normal, key_direction, sample_shape, (*self.batch_shape, dim - 1)
        )
        around = direction(around, jnp.eye(1, dim - 1, dtype=around.dtype)[0])
        z = jnp.concatenate([jnp.cos(angle), jnp.sin(angle) * around], -1)
        # Householder's reflection takes e_1 to -loc or loc, whichever is farther from it.
        sign = jnp.where(self.loc[..., :1] < 0, -1.0, 1.0)
        normal = self.loc.at[..., :1].add(sign)
        along = (z * normal).sum(-1, keepdims=True) / (normal**2).sum(-1, keepdims=True)
        return sign * (2 * along * normal - z)

    def _angle(self, u: Float[Array, "*draws"]) -> Float[Array, "*draws"]:
        """The angle at which the cdf is u, differentiable in kappa.

        Above the median the mass 1 - u is accumulated from the other end, so that in either tail it
        is a sum of small numbers, which keeps their digits. The angle is found by bisection; its
        derivative is the implicit one, -(dF/dkappa) / f (Figurnov et al. 2018).
        """
        dim = self.loc.shape[-1]
        edges, log_terms = _panels(self.kappa, dim)
        log_total = jax.nn.logsumexp(log_terms, axis=(-2, -1))
        masses = jnp.exp(log_terms - log_total[..., None, None]).sum(-1)
        backward = u > 0.5
        mass = jnp.where(backward, 1 - u, u)

        def from_its_end(values: Array) -> Array:
            return jnp.where(backward[..., None], values[..., ::-1], values)

        edges, masses = from_its_end(edges), from_its_end(masses)
        before = jnp.cumsum(masses, -1)[..., :-1]
        before = jnp.concatenate([jnp.zeros_like(masses[..., :1]), before], -1)
        panel = (before <= mass[..., None]).sum(-1, keepdims=True) - 1

        def of_panel(values: Array) -> Array:
            return jnp.take_along_axis(values, panel, -1)[..., 0]

        near, far, start = map(of_panel, (edges[..., :-1], edges[..., 1:], before))

        def mass_to(angle: Array) -> Array:
            low, high = jnp.minimum(near, angle), jnp.maximum(near, angle)
            log_terms = _log_terms(low, high, self.kappa, dim)
            return start + jnp.exp(log_terms - log_total[..., None]).sum(-1)

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            close, beyond = bracket
            middle = (close + beyond) / 2
            is_below = mass_to(middle) < mass
            return jnp.where(is_below, middle, close), jnp.where(is_below, beyond, middle)

        close, beyond = lax.fori_loop(0, _BISECTIONS, halve, (near, far))
        angle = lax.stop_gradient((close + beyond) / 2)
        reached = mass_to(angle)
        density = jnp.exp(_log_integrand(angle, self.kappa, dim) - log_total)
        slope = lax.stop_gradient(jnp.where(backward, -density, density))
        return angle - (reached - lax.stop_gradient(reached)) / slope


@struct.dataclass
class HypersphericalUniformDistribution(Distribution):
    """The constant density on unit vectors.

    Attributes:
        dim: the number of components d.
    """

    dim: int = struct.field(pytree_node=False)

    @property
    @override
    def shape(self) -> Shape:
        return (self.dim,)

    @property
    def mean(self) -> Float[Array, "d"]:
        """The origin."""
        return jnp.zeros(self.dim)

    def log_prob(self, value: Float[Array, "*draws d"]) -> Float[Array, "*draws"]:
        """Minus the log-area of the sphere, a constant."""
        return jnp.full(value.shape[:-1], -log_area(self.dim))

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "*draws d"]:
        """Draws from N(0, I), normalized."""
        z = random.draw(jax.random.normal, key, sample_shape, (self.dim,))
        return direction(z, jnp.eye(1, self.dim, dtype=z.dtype)[0])


@register_kl(VonMisesFisherDistribution, HypersphericalUniformDistribution)
def _kl_von_mises_fisher_uniform(
    q: VonMisesFisherDistribution, p: HypersphericalUniformDistribution
) -> Float[Array, "*batch"]:
    # Davidson et al. 2018, appendix: it does not depend on the mean direction.
    mean_log_q = q.kappa * mean_cosine_minus_one(q.kappa, p.dim) - log_normalizer(q.kappa, p.dim)
    return mean_log_q + log_area(p.dim)
