"""Gaussian pixels: one scale for all, given or learned, or a scale for each."""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.data.pipeline import Support
from vae_jax.distributions import Normal, Shape
from vae_jax.likelihoods.base import MAX_LOG_SCALE, Measure, per_pixel


class Gaussian(nn.Module):
    """p(x|z) = prod N(x_i; m_i, scale²), one scale for all pixels.

    Attributes:
        scale: the fixed standard deviation in units of the data; None learns it, as one parameter
            beside the decoder's (it is trained like any other: `likelihood/log_scale`).
        squash: from the affine output to the mean; the sigmoid keeps means within [0, 1].
        kernel_init, bias_init: of that affine map.
    """

    scale: float | None = None
    squash: Callable[[Array], Array] = jax.nn.sigmoid
    kernel_init: Initializer = nn.initializers.glorot_uniform()
    bias_init: Initializer = nn.initializers.zeros

    supports: ClassVar[frozenset[Support]] = frozenset({"uint8", "unit", "real"})
    measure: ClassVar[Measure] = "density"

    @nn.compact
    def __call__(self, features: Array, image_shape: Shape) -> Normal:
        """Features `[N, ...]` to batch `[N]`, event `[H, W, C]`."""
        loc = per_pixel(features, image_shape, "loc", self.kernel_init, self.bias_init)
        if self.scale is None:
            scale = jnp.exp(self.param("log_scale", nn.initializers.zeros, ()))
        else:
            scale = jnp.asarray(self.scale, loc.dtype)
        return Normal(self.squash(loc), jnp.broadcast_to(scale, loc.shape), event_ndims=3)


class HeteroscedasticGaussian(nn.Module):
    """p(x|z) = prod N(x_i; m_i, s_i²), means and scales from the decoder.

    The decoder of Kingma & Welling (2013, appendix C.2) for Frey Faces. Its density has no upper
    bound: where the decoder can predict a pixel exactly, only `min_scale` limits it.

    Attributes:
        min_scale: lower limit of s_i in units of the data.
        squash: from the affine output to the mean.
        kernel_init: of both affine maps.
    """

    min_scale: float = 1e-3
    squash: Callable[[Array], Array] = jax.nn.sigmoid
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    supports: ClassVar[frozenset[Support]] = frozenset({"uint8", "unit", "real"})
    measure: ClassVar[Measure] = "density"

    @nn.compact
    def __call__(self, features: Array, image_shape: Shape) -> Normal:
        """Features `[N, ...]` to batch `[N]`, event `[H, W, C]`."""
        loc = per_pixel(features, image_shape, "loc", self.kernel_init)
        log_scale = per_pixel(features, image_shape, "log_scale", self.kernel_init)
        log_scale = jnp.minimum(log_scale, MAX_LOG_SCALE)
        return Normal(self.squash(loc), self.min_scale + jnp.exp(log_scale), event_ndims=3)
