"""Gaussian pixels, each with a separate scale."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float
from typing_extensions import override

from vae_jax.distributions import Normal, Shape
from vae_jax.given import Positive
from vae_jax.interfaces import Likelihood
from vae_jax.likelihoods.base import MAX_LOG_SCALE


class HeteroscedasticGaussian(Likelihood):
    """p(x|z) = prod N(x_i; m_i, s_i²), with means and scales from the decoder.

    If the decoder predicts a pixel exactly, only `min_scale` keeps the density bounded.

    Attributes:
        min_scale: the lower limit of s_i in units of the data.
        squash: the map from the affine output to the mean.
        kernel_init: the initializer of both affine maps.

    References:
        Kingma & Welling (2013), "Auto-encoding variational Bayes", appendix C.2.
    """

    min_scale: Positive = 1e-3
    squash: Callable[[Array], Array] = jax.nn.sigmoid
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."], image_shape: Shape) -> Normal:
        loc = self.per_pixel(features, image_shape, "loc", self.kernel_init)
        log_scale = self.per_pixel(features, image_shape, "log_scale", self.kernel_init)
        log_scale = jnp.minimum(log_scale, MAX_LOG_SCALE)
        return Normal(self.squash(loc), self.min_scale + jnp.exp(log_scale), event_ndims=3)
