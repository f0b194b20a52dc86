"""Logistic densities integrated over the levels of a pixel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float, Key, Num
from typing_extensions import override

from vae_jax import random
from vae_jax.cpu.softplus import softplus
from vae_jax.distributions import Elementwise, Shape, on_unit
from vae_jax.given import Positive
from vae_jax.likelihoods.base import MAX_LOG_SCALE, OfLevels


def log_bin_mass(
    value: Num[Array, "..."], loc: Float[Array, "..."], scale: Float[Array, "..."], levels: int
) -> Float[Array, "..."]:
    """The log-mass of a logistic in the bin of each value k/(levels - 1), exact in the tails.

    A bin reaches half a step to either side of its value; the first and the last reach to infinity.
    With w = upper - lower > 0 its mass is sigmoid(upper) sigmoid(-lower) (1 - e^-w), and the
    logarithms of these factors do not cancel. Values outside [0, 1] have no mass. The arguments are
    broadcast against each other.

    Args:
        value: the values.
        loc: the locations, in units of [0, 1].
        scale: the scales, in units of [0, 1].
        levels: the number of levels.
    """
    centred, last = value - loc, levels - 1
    upper = (centred + 0.5 / last) / scale
    lower = (centred - 0.5 / last) / scale
    width = jnp.broadcast_to(1 / (last * scale), upper.shape)
    log_below = -softplus(-upper)
    log_above = -softplus(lower)
    interior = log_below + log_above + jnp.log(-jnp.expm1(-width))
    is_first, is_last = value < 0.5 / last, value > (last - 0.5) / last
    return on_unit(value, jnp.where(is_first, log_below, jnp.where(is_last, log_above, interior)))


def nearest_level(value: Float[Array, "*shape"], levels: int) -> Float[Array, "*shape"]:
    """The level k/(levels - 1), k = 0, ..., levels - 1, whose bin contains a real value."""
    return jnp.round(jnp.clip(value, 0.0, 1.0) * (levels - 1)) / (levels - 1)


def bin_scale(log_scale: Float[Array, "*shape"], initial_scale: float) -> Float[Array, "*shape"]:
    """The scale of a logistic from the output `log_scale`, of which 0 gives `initial_scale`."""
    # At 1e-4 of the range, a 40th of a step of 256 levels, one bin already holds all the mass.
    return jnp.maximum(initial_scale * jnp.exp(jnp.minimum(log_scale, MAX_LOG_SCALE)), 1e-4)


@struct.dataclass
class DiscretizedLogisticDistribution(Elementwise):
    """A logistic density integrated over the bins of levels (Kingma et al. 2016, the IAF paper).

    Values lie on the grid k/(levels - 1), and the masses sum to one (`log_bin_mass`). `loc` is in
    units of [0, 1].

    Attributes:
        scale: the scale of each component, in units of [0, 1]; it broadcasts against `loc`.
        levels: the number of levels.
    """

    scale: Float[Array, "..."]
    levels: int = struct.field(pytree_node=False, default=256)
    exact_mean = False

    @property
    def mean(self) -> Float[Array, "..."]:
        """The location, clipped to [0, 1]: the median, to within one level; not the mean."""
        return jnp.clip(self.loc, 0.0, 1.0)

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Draws from the logistic, rounded to the nearest level; not reparameterized."""
        noise = random.draw(jax.random.logistic, key, sample_shape, self.loc.shape)
        return nearest_level(self.loc + self.scale * noise, self.levels)

    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """ln [sigmoid(upper) - sigmoid(lower)], exact in the tails."""
        return log_bin_mass(value, self.loc, self.scale, self.levels)


class DiscretizedLogistic(OfLevels):
    """p(x|z) of independent pixels, a logistic density integrated over the levels of each.

    Attributes:
        levels: the number of levels, 256 or 32.
        kernel_init: the initializer of the affine maps to the location and to the log-scale.
        initial_scale: the scale for an affine output of 0, in units of [0, 1].

    References:
        Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow".
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()
    initial_scale: Positive = 0.1

    @nn.compact
    @override
    def __call__(
        self, features: Float[Array, "N ..."], image_shape: Shape
    ) -> DiscretizedLogisticDistribution:
        loc = 0.5 + self.per_pixel(features, image_shape, "loc", self.kernel_init)
        log_scale = self.per_pixel(features, image_shape, "log_scale", self.kernel_init)
        scale = bin_scale(log_scale, self.initial_scale)
        return DiscretizedLogisticDistribution(loc, scale=scale, levels=self.levels, event_ndims=3)
