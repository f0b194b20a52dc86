"""Gaussian pixels with one scale for all, given or learned."""

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


class Gaussian(Likelihood):
    """p(x|z) = prod N(x_i; m_i, scale²), one scale for all pixels.

    With the fixed scale 0.5**0.5 this is least squares: -ln p(x|z) is the squared error plus a
    constant. In general the squared error has the weight 1 / (2 scale²) relative to the KL.

    Attributes:
        scale: the fixed standard deviation in units of the data; None learns it as one parameter,
            `likelihood/log_scale`, trained like any other.
        squash: the map from the affine output to the mean; the sigmoid keeps it within [0, 1].
        kernel_init: the initializer of the kernel of the affine map.
        bias_init: the initializer of its bias.

    References:
        Rybkin et al. (2021), "Simple and effective VAE training with calibrated decoders", for the
            learned scale.
    """

    scale: Positive | None = None
    squash: Callable[[Array], Array] = jax.nn.sigmoid
    kernel_init: Initializer = nn.initializers.glorot_uniform()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."], image_shape: Shape) -> Normal:
        loc = self.per_pixel(features, image_shape, "loc", self.kernel_init, self.bias_init)
        if self.scale is None:
            scale = jnp.exp(self.param("log_scale", nn.initializers.zeros, ()))
        else:
            scale = jnp.asarray(self.scale, loc.dtype)
        return Normal(self.squash(loc), jnp.broadcast_to(scale, loc.shape), event_ndims=3)
