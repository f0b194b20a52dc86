"""p(x|z): a network's features become a distribution over images.

Each likelihood is a Linen module with two declarations:

- `supports`: the kinds of data it gives a meaning to: `"binary"`, `"uint8"` (the 256 levels on a
  grid k/255), `"unit"` (reals in [0, 1]), `"real"`.
- `measure`: `"mass"` (bits/dim defined), `"density"` (nats only, unless the data were
  dequantized), `"pseudo"` (not normalized: no NLL).
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.data.pipeline import Support
from vae_jax.distributions import Bernoulli as BernoulliDistribution
from vae_jax.distributions import DiscretizedLogistic as DiscretizedLogisticDistribution
from vae_jax.distributions import Normal, Shape

Measure = Literal["mass", "density", "pseudo"]

# No pixel needs a scale of e^10 times the data's range, and e^89 overflows float32.
_MAX_LOG_SCALE = 10.0


def per_pixel(
    features: Array,
    image_shape: Shape,
    name: str,
    kernel_init: Initializer,
    bias_init: Initializer = nn.initializers.zeros,
) -> Array:
    """One affine output for each pixel and channel, `[N, H, W, C]`, inside a compact method.

    Vector features `[N, F]` go through a dense layer to all H*W*C outputs (so `bias_init` sees
    shape `[H*W*C]`); spatial features `[N, H, W, F]` through a 1x1 convolution (bias `[C]`).

    Raises:
        ValueError: spatial features of another height or width than the image.
    """
    height, width, channels = image_shape
    if features.ndim == 2:
        dense = nn.Dense(
            height * width * channels, kernel_init=kernel_init, bias_init=bias_init, name=name
        )
        return dense(features).reshape(-1, height, width, channels)
    if features.shape[1:3] != (height, width):
        raise ValueError(
            f"The decoder's features are {features.shape[1]}x{features.shape[2]} pixels, "
            f"the images {height}x{width}."
        )
    return nn.Dense(channels, kernel_init=kernel_init, bias_init=bias_init, name=name)(features)


class Bernoulli(nn.Module):
    """p(x|z) = prod Bernoulli(x_i; sigmoid(logit_i)), for binary images.

    Attributes:
        kernel_init, bias_init: of the affine map to logits. `bias_init` may hold the training
            mean's logits, as Burda et al. (2015) do.
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()
    bias_init: Initializer = nn.initializers.zeros

    supports: ClassVar[frozenset[Support]] = frozenset({"binary"})
    measure: ClassVar[Measure] = "mass"

    @nn.compact
    def __call__(self, features: Array, image_shape: Shape) -> BernoulliDistribution:
        """Features `[N, ...]` to batch `[N]`, event `[H, W, C]`."""
        logits = per_pixel(features, image_shape, "logits", self.kernel_init, self.bias_init)
        return BernoulliDistribution(logits, event_ndims=3)


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
        log_scale = jnp.minimum(log_scale, _MAX_LOG_SCALE)
        return Normal(self.squash(loc), self.min_scale + jnp.exp(log_scale), event_ndims=3)


class DiscretizedLogistic(nn.Module):
    """A logistic integrated over the 256 levels of each pixel (Kingma et al. 2016, the IAF paper).

    Attributes:
        kernel_init: of the two affine maps, to the location and to the log-scale of each pixel.
        initial_scale: the scale at log-scale output 0, in units of [0, 1].
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()
    initial_scale: float = 0.1

    supports: ClassVar[frozenset[Support]] = frozenset({"uint8"})
    measure: ClassVar[Measure] = "mass"

    @nn.compact
    def __call__(self, features: Array, image_shape: Shape) -> DiscretizedLogisticDistribution:
        """Features `[N, ...]` to batch `[N]`, event `[H, W, C]`."""
        loc = 0.5 + per_pixel(features, image_shape, "loc", self.kernel_init)
        log_scale = per_pixel(features, image_shape, "log_scale", self.kernel_init)
        log_scale = jnp.minimum(log_scale, _MAX_LOG_SCALE)
        # Below 1e-4 of the range, a 40th of a grid step, a bin holds all the mass there is.
        scale = jnp.maximum(self.initial_scale * jnp.exp(log_scale), 1e-4)
        return DiscretizedLogisticDistribution(loc, scale=scale, event_ndims=3)


ALL = (Bernoulli, Gaussian, HeteroscedasticGaussian, DiscretizedLogistic)
