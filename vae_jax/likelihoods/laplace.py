"""Laplace pixels: the absolute error as a density."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float
from typing_extensions import override

from vae_jax import distributions
from vae_jax.distributions import Shape
from vae_jax.given import Positive
from vae_jax.interfaces import Likelihood


class Laplace(Likelihood):
    """p(x|z) = prod Laplace(x_i; m_i, scale), one scale for all pixels; m_i is the median.

    Attributes:
        scale: the fixed scale, the mean absolute deviation, in units of the data; None learns it
            as the parameter `likelihood/log_scale`.
        squash: the map from the affine output to the median; the sigmoid keeps it within [0, 1].
        kernel_init: the initializer of the affine map.
    """

    scale: Positive | None = None
    squash: Callable[[Array], Array] = jax.nn.sigmoid
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    @override
    def __call__(
        self, features: Float[Array, "N ..."], image_shape: Shape
    ) -> distributions.LaplaceDistribution:
        loc = self.squash(self.per_pixel(features, image_shape, "loc", self.kernel_init))
        if self.scale is None:
            scale = jnp.exp(self.param("log_scale", nn.initializers.zeros, ()))
        else:
            scale = jnp.asarray(self.scale, loc.dtype)
        return distributions.LaplaceDistribution(
            loc, jnp.broadcast_to(scale, loc.shape), event_ndims=3
        )
