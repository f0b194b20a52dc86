"""Mixtures of discretized logistics whose channels depend on each other (PixelCNN++)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Distribution, Shape, sum_event
from vae_jax.given import Count, Positive
from vae_jax.likelihoods.base import OfLevels
from vae_jax.likelihoods.logistic import bin_scale, log_bin_mass, nearest_level


def shifted(
    loc: Float[Array, "... C"], coefficients: Float[Array, "... C C"], value: Float[Array, "... C"]
) -> Float[Array, "... C"]:
    """The location of each channel given the channels before: m_c + sum_{d<c} a_cd (x_d - 1/2).

    Args:
        loc: the locations m.
        coefficients: the coefficients a, zero on and above the diagonal.
        value: the channels x.
    """
    return loc + (coefficients * (value - 0.5)[..., None, :]).sum(-1)


def settled(
    loc: Float[Array, "*shape C"],
    coefficients: Float[Array, "*shape C C"],
    settle: Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]],
) -> Float[Array, "*shape C"]:
    """Fix one channel after the other, each at a location shifted by the channels before.

    Args:
        loc: the locations m.
        coefficients: the coefficients a, zero on and above the diagonal.
        settle: the map from the shifted location of a channel to its value.
    """
    value = jnp.full_like(loc, 0.5)
    for channel in range(loc.shape[-1]):
        settled_channel = settle(shifted(loc, coefficients, value)[..., channel])
        value = value.at[..., channel].set(settled_channel)
    return value


@struct.dataclass
class MixtureOfLogisticsDistribution(Distribution):
    """The channels of a pixel share one of M components (Salimans et al. 2017, section 2).

    Within a component the channels are discretized logistics, whose locations are shifted by the
    values of the channels before: P(x) = sum_m w_m prod_c P(x_c | x_<c, m). Pixels are independent.

    Attributes:
        log_weights: the logarithms of the weights w.
        loc: the locations of the logistics, in units of [0, 1].
        scale: the scales of the logistics, in units of [0, 1].
        coefficients: the coefficients of the shifts, zero on and above the diagonal.
        levels: the number of levels.
    """

    log_weights: Float[Array, "*batch H W M"]
    loc: Float[Array, "*batch H W M C"]
    scale: Float[Array, "*batch H W M C"]
    coefficients: Float[Array, "*batch H W M C C"]
    levels: int = struct.field(pytree_node=False, default=256)
    exact_mean = False

    event_ndims = 3

    @property
    @override
    def shape(self) -> Shape:
        return (*self.loc.shape[:-2], self.loc.shape[-1])

    @property
    def mean(self) -> Float[Array, "*batch H W C"]:
        """The weighted mean of the components' medians, channel by channel; not the mean."""
        medians = settled(self.loc, self.coefficients, lambda value: jnp.clip(value, 0.0, 1.0))
        return (jnp.exp(self.log_weights)[..., None] * medians).sum(-2)

    def sample(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> Float[Array, "*draws H W C"]:
        """Draw a component for each pixel, then its channels in turn; not reparameterized."""
        key_component, key_value = random.purposes(key, "component", "value")
        gumbel = random.draw(jax.random.gumbel, key_component, sample_shape, self.log_weights.shape)
        component = (self.log_weights + gumbel).argmax(-1)

        def chosen(parameter: Array, axis: int) -> Array:
            index = jnp.expand_dims(component, tuple(range(axis, 0)))
            each = jnp.broadcast_to(parameter, sample_shape + parameter.shape)
            return jnp.take_along_axis(each, index, axis).squeeze(axis)

        # By index: jaxlib 0.10 compiles a sum over one-hot components to a program that mixes up
        # channels once there are thousands of pixels.
        loc, scale = chosen(self.loc, -2), chosen(self.scale, -2)
        coefficients = chosen(self.coefficients, -3)
        shape = self.batch_shape + self.event_shape
        noise = random.draw(jax.random.logistic, key_value, sample_shape, shape)
        nearest = partial(nearest_level, levels=self.levels)
        return settled(loc + scale * noise, coefficients, nearest)

    def log_prob(self, value: Float[Array, "*draws H W C"]) -> Float[Array, "..."]:
        """The sum over pixels of ln sum_m w_m prod_c P(x_c | x_<c, m)."""
        value = value[..., None, :]
        loc = shifted(self.loc, self.coefficients, value)
        log_channels = log_bin_mass(value, loc, self.scale, self.levels).sum(-1)
        return sum_event(jax.nn.logsumexp(self.log_weights + log_channels, axis=-1), 2)


class MixtureOfLogistics(OfLevels):
    """A mixture of discretized logistics for each pixel, as in PixelCNN++.

    As in the paper, green is shifted by red, and blue by both, with coefficients in [-1, 1] from
    the decoder. Grey images have no shifts.

    Attributes:
        num_components: the number of components M.
        kernel_init: the initializer of the affine maps.
        initial_scale: the scale for an affine output of 0, in units of [0, 1].
        levels: the number of levels, 256 or 32.

    References:
        Salimans et al. (2017), "PixelCNN++: improving the PixelCNN with discretized logistic
            mixture likelihood and other modifications", section 2.
    """

    num_components: Count = 10
    kernel_init: Initializer = nn.initializers.glorot_uniform()
    initial_scale: Positive = 0.1

    @nn.compact
    @override
    def __call__(
        self, features: Float[Array, "N ..."], image_shape: Shape
    ) -> MixtureOfLogisticsDistribution:
        height, width, channels = image_shape
        pixels, number = (height, width), self.num_components

        def affine(name: str, *own: int) -> Array:
            return self.per_pixel(features, (*pixels, number, *own), name, self.kernel_init)

        # Spread over the range: otherwise the components would start as copies of one another.
        centres = (jnp.arange(number)[:, None] + 0.5) / number
        loc = centres + affine("loc", channels)
        coefficients = jnp.zeros((*loc.shape, channels))
        if channels > 1:
            rows, columns = np.tril_indices(channels, -1)
            lower = jnp.tanh(affine("coefficients", len(rows)))
            coefficients = coefficients.at[..., rows, columns].set(lower)
        return MixtureOfLogisticsDistribution(
            log_weights=jax.nn.log_softmax(affine("logits")),
            loc=loc,
            scale=bin_scale(affine("log_scale", channels), self.initial_scale),
            coefficients=coefficients,
            levels=self.levels,
        )
