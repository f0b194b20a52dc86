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
    """The symmetric hyperbolic distribution, exp(-sqrt(e² + (x - loc)²) / s) up to its constant.

    Attributes:
        scale: s, in whose units the tails fall.
        epsilon: e, within which the logarithm is a parabola.
    """

    scale: float = struct.field(pytree_node=False, kw_only=True)
    epsilon: float = struct.field(pytree_node=False, kw_only=True)

    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """-(sqrt(e² + r²) - e) / s - ln(2 e e^(e/s) K_1(e / s)), r = x - loc.

        The difference of the root and e is written so that it does not cancel, and the integral is
        2 e K_1(e / s), K_1 the modified Bessel function.
        """
        from scipy import special  # which takes a while to import

        square = (value - self.loc) ** 2
        distortion = square / (jnp.sqrt(self.epsilon**2 + square) + self.epsilon)
        integral = 2 * self.epsilon * special.k1e(self.epsilon / self.scale)
        return -distortion / self.scale - np.log(integral)

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """loc + the quantile of a uniform number, between the quadrature's points."""
        points, cdf = self._quantiles()
        u = random.draw(jax.random.uniform, key, sample_shape, self.loc.shape)
        return self.loc + jnp.interp(u, cdf, points)

    def _quantiles(self) -> tuple[np.ndarray, np.ndarray]:
        """Points r = e sinh(y), equally spaced in y, and the distribution function at them."""
        # There the density has fallen by e^-40: r²/(sqrt(e² + r²) + e) = 40 s.
        ratio = 40 * self.scale / self.epsilon
        farthest = np.arcsinh(np.sqrt(ratio**2 + 2 * ratio))
        y = np.linspace(-farthest, farthest, 8193)
        r = self.epsilon * np.sinh(y)
        excess = r**2 / (np.hypot(self.epsilon, r) + self.epsilon)
        density = np.exp(-excess / self.scale) * np.cosh(y)
        cdf = np.cumsum(density) - 0.5 * density  # the trapezoidal rule, for both ends are zero
        return r, cdf / density.sum()


class Charbonnier(Likelihood):
    """p(x|z) ∝ prod exp(-sqrt(e² + (x_i - m_i)²) / s): far from m_i as L1, near it as L2.

    Attributes:
        scale: s, in units of the data; -ln p(x|z) is the distortion divided by it, plus a constant.
        epsilon: e, in units of the data, where the one changes into the other.
        squash: the map from the affine output to m; the sigmoid keeps it within [0, 1].
        kernel_init: the initializer of the affine map.

    References:
        Charbonnier et al. (1994), "Two deterministic half-quadratic regularization algorithms for
        computed imaging"; Barndorff-Nielsen (1977), "Exponentially decreasing distributions for
        the logarithm of particle size", for the density.
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
