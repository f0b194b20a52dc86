"""Charbonnier's distortion, a smooth absolute error, as a density."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float, Key, Num
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Elementwise, Shape
from vae_jax.given import Positive
from vae_jax.interfaces import Likelihood


@struct.dataclass
class HyperbolicDistribution(Elementwise):
    """The symmetric hyperbolic distribution, p(x) ∝ exp(-sqrt(eps² + (x - loc)²) / s).

    Attributes:
        scale: the scale s of the exponential tails.
        epsilon: the distance eps from `loc` within which the log-density is nearly a parabola.
    """

    scale: float = struct.field(pytree_node=False, kw_only=True)
    epsilon: float = struct.field(pytree_node=False, kw_only=True)

    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """-(sqrt(eps² + r²) - eps) / s - ln[2 eps exp(eps / s) K_1(eps / s)], r = x - loc.

        The normalizer is 2 eps K_1(eps / s), with K_1 the modified Bessel function; the difference
        of the root and eps is written so that it does not cancel.
        """
        from scipy import special  # which takes a while to import

        square = (value - self.loc) ** 2
        distortion = square / (jnp.sqrt(self.epsilon**2 + square) + self.epsilon)
        integral = 2 * self.epsilon * special.k1e(self.epsilon / self.scale)
        return -distortion / self.scale - np.log(integral)

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """loc plus the quantile of a uniform number, interpolated between quadrature points."""
        points, cdf = self._quantiles()
        u = random.draw(jax.random.uniform, key, sample_shape, self.loc.shape)
        return self.loc + jnp.interp(u, cdf, points)

    def _quantiles(self) -> tuple[np.ndarray, np.ndarray]:
        """Points r = eps sinh(y), equally spaced in y, and the distribution function at them."""
        # At the last point the density has fallen to e^-40: r² / (sqrt(eps² + r²) + eps) = 40 s.
        ratio = 40 * self.scale / self.epsilon
        farthest = np.arcsinh(np.sqrt(ratio**2 + 2 * ratio))
        y = np.linspace(-farthest, farthest, 8193)
        r = self.epsilon * np.sinh(y)
        excess = r**2 / (np.hypot(self.epsilon, r) + self.epsilon)
        density = np.exp(-excess / self.scale) * np.cosh(y)
        cdf = np.cumsum(density) - 0.5 * density  # the trapezoidal rule, as both ends are zero
        return r, cdf / density.sum()


class Charbonnier(Likelihood):
    """p(x|z) ∝ prod exp(-sqrt(eps² + (x_i - m_i)²) / s): like L1 far from m_i, like L2 near it.

    Attributes:
        scale: s, in units of the data; -ln p(x|z) is the distortion divided by s, plus a constant.
        epsilon: eps, in units of the data, the error at which L2 changes to L1.
        squash: the map from the affine output to m; the sigmoid keeps it within [0, 1].
        kernel_init: the initializer of the affine map.

    References:
        Charbonnier et al. (1994), "Two deterministic half-quadratic regularization algorithms for
            computed imaging".
        Barndorff-Nielsen (1977), "Exponentially decreasing distributions for the logarithm of
            particle size", for the density.
    """

    scale: Positive = 1.0
    epsilon: Positive = 1e-3
    squash: Callable[[Array], Array] = jax.nn.sigmoid
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    @override
    def __call__(
        self, features: Float[Array, "N ..."], image_shape: Shape
    ) -> HyperbolicDistribution:
        loc = self.squash(self.per_pixel(features, image_shape, "loc", self.kernel_init))
        return HyperbolicDistribution(loc, scale=self.scale, epsilon=self.epsilon, event_ndims=3)
