"""The likelihood of seen pixels if others are missing."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Key, Num
from typing_extensions import override

from vae_jax.distributions import Distribution, Elementwise, Shape, sum_event
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Likelihood, Measure, Support

ANY_PIXEL = 0.5  # the value for a missing pixel, whose density does not count


@struct.dataclass
class SeenPixelsDistribution(Distribution):
    """p(x_s|z) of images whose last channel is 1 for seen pixels and 0 for missing ones.

    Attributes:
        base: the distribution of complete images, without that channel.
    """

    base: Elementwise

    event_ndims = 3

    @property
    @override
    def shape(self) -> Shape:
        return (*self.base.shape[:-1], self.base.shape[-1] + 1)

    @property
    def exact_mean(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the mean of the base is exact."""
        return self.base.exact_mean

    @property
    def mean(self) -> Float[Array, "*batch H W c"]:
        """The mean of complete images, with all pixels seen."""
        return _complete(self.base.mean)

    def sample(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> Float[Array, "*draws H W c"]:
        """Complete images, with all pixels seen."""
        return _complete(self.base.sample(key, sample_shape))

    def log_prob(self, value: Num[Array, "*draws H W c"]) -> Float[Array, "..."]:
        """sum ln p(x_i|z) over the components of the seen pixels; the others are ignored."""
        seen = value[..., -1:] > 0.5
        x = jnp.where(seen, value[..., :-1], ANY_PIXEL)
        return sum_event(jnp.where(seen, self.base.component_log_prob(x), 0.0), 3)


def _complete(x: Float[Array, "*draws H W C"]) -> Float[Array, "*draws H W c"]:
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)


class SeenPixels(Likelihood):
    """p(x_s|z) for data with missing pixels, which are integrated out.

    `Data.with_missing` makes such data: their last channel marks the seen pixels, and the encoder
    also takes it. With the objective `IWAE(k)` this is MIWAE, whose bound on ln p(x_s) is valid if
    pixels are missing at random. Pictures drawn from the model are complete: their last channel is
    one.

    Attributes:
        likelihood: p(x|z) of complete images, with independent components; it determines support
            and measure.

    Raises:
        VaeJaxError: the likelihood looks at the whole batch or (when the model is used) has
            dependent components, or images have a single channel.

    References:
        Mattei & Frellsen (2019), "MIWAE: deep generative modelling and imputation of incomplete
            data sets", equation 4.

    Example:
        >>> missing = np.random.default_rng(0).random((len(data.train), 28, 28)) < 0.5
        >>> data = data.with_missing({"train": missing})
        >>> model = VAE(..., likelihood=SeenPixels(Bernoulli()))
    """

    likelihood: Annotated[Likelihood, "a likelihood of independent pixels, such as Bernoulli()"]

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        if self.likelihood.whole_batch:
            raise VaeJaxError(
                f"{type(self.likelihood).__name__} looks at all pixels of a batch, and with "
                "SeenPixels some are missing: take another likelihood, such as Gaussian."
            )

    @property
    def supports(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> frozenset[Support]:
        """The values of a seen pixel."""
        return self.likelihood.supports

    @property
    def measure(self) -> Measure:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The measure of a seen pixel."""
        return self.likelihood.measure

    @override
    def __call__(
        self, features: Float[Array, "N ..."], image_shape: Shape
    ) -> SeenPixelsDistribution:
        height, width, channels = image_shape
        if channels < 2:
            raise VaeJaxError(
                "SeenPixels is for images whose last channel says which pixels are seen, and "
                f"these are {height}x{width}x{channels}: make them by data.with_missing(...)."
            )
        base = self.likelihood(features, (height, width, channels - 1))
        if not isinstance(base, Elementwise):
            raise VaeJaxError(
                f"{type(self.likelihood).__name__} has no density for each component, which "
                "SeenPixels needs to sum over the seen pixels alone: take another likelihood, "
                "such as DiscretizedLogistic."
            )
        return SeenPixelsDistribution(base)
