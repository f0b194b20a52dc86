"""Pixels in raster order, each given z and the pixels before it."""

import math
from collections.abc import Callable
from typing import Annotated, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Distribution, Shape, Shared
from vae_jax.errors import VaeJaxError
from vae_jax.given import Count
from vae_jax.interfaces import Likelihood, Measure, Support
from vae_jax.networks.transformer import Cache, Transformer, check_heads


@struct.dataclass
class AutoregressivePixelsDistribution(Distribution):
    """ln p(x) = sum_t ln p(x_t | x_1, ..., x_t-1), t in raster order, by a causal transformer.

    The transformer's input at a position is the previous pixel (zero at the first position) and the
    decoder's features for this position.

    Attributes:
        features: the decoder's features at T positions, or at one that all positions share.
        variables: the variables of the network and of the pixel's likelihood.
        network: the transformer, from these inputs to the features of each pixel.
        pixel: the likelihood of a pixel given its features.
        image_shape: (H, W, C) with H W = T.
    """

    features: Float[Array, "*batch positions F"]
    variables: Shared
    network: Transformer = struct.field(pytree_node=False)
    pixel: Likelihood = struct.field(pytree_node=False)
    image_shape: Shape = struct.field(pytree_node=False)

    exact_mean = False
    mean_is_picture = False

    event_ndims = 3

    @property
    @override
    def shape(self) -> Shape:
        return self.features.shape[:-2] + self.image_shape

    @property
    def mean(self) -> Float[Array, "*batch H W C"]:
        """Each pixel's mean given the means before it in place of pixels; not the mean of x."""
        return self._in_turn(self.batch_shape, lambda px, position: px.mean)

    def sample(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> Float[Array, "*draws H W C"]:
        """Drawn pixel by pixel, with cached attention of earlier ones; not reparameterized."""
        keys = random.draw_keys(key, sample_shape, self.batch_shape).reshape(-1)

        def choose(px: Distribution, position: Array) -> Array:
            return px.sample(random.indexed(keys, position))

        return self._in_turn(sample_shape + self.batch_shape, choose)

    def log_prob(self, value: Float[Array, "*draws H W C"]) -> Float[Array, "..."]:
        """sum_t ln p(x_t | x_1, ..., x_t-1), in one pass over all pixels."""
        batch = jnp.broadcast_shapes(value.shape[:-3], self.batch_shape)
        height, width, channels = self.image_shape
        images = jnp.broadcast_to(value, (*batch, *self.image_shape)).reshape(-1, *self.image_shape)
        pixels = images.reshape(-1, height * width, channels)
        before = jnp.pad(pixels[:, :-1], ((0, 0), (1, 0), (0, 0)))
        hidden, _ = self._hidden(before, self._features(batch))
        px = self._pixels(hidden.reshape(-1, height, width, hidden.shape[-1]))
        return px.log_prob(images).reshape(batch)

    def _features(self, batch: Shape) -> Float[Array, "N positions F"]:
        """The features of all N elements of a batch `[*draws, *batch]`."""
        shape = self.features.shape[-2:]
        return jnp.broadcast_to(self.features, (*batch, *shape)).reshape(-1, *shape)

    def _hidden(
        self,
        before: Float[Array, "N S C"],
        features: Float[Array, "N positions F"],
        cache: Cache | None = None,
        start: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "N S width"], Cache]:
        """The features of S pixels from `start` on, given the pixel before each."""
        features = jnp.broadcast_to(features, (*before.shape[:2], features.shape[-1]))
        inputs = jnp.concatenate([before, features], -1).astype(self._dtype)
        variables = self.variables.value["network"]
        hidden_and_cache = self.network.apply(variables, inputs, cache, start)
        hidden, cache = cast(tuple[Array, Cache], hidden_and_cache)
        return hidden.astype(before.dtype), cache

    @property
    def _dtype(self) -> DTypeLike:
        """The type of the network's parameters and computations."""
        return jax.tree.leaves(self.variables.value["network"])[0].dtype

    def _pixels(self, hidden: Float[Array, "N h w width"]) -> Distribution:
        """The distribution of independent pixels with these features, as images `[h, w, C]`."""
        shape = (*hidden.shape[1:3], self.image_shape[-1])
        return cast(Distribution, self.pixel.apply(self.variables.value["pixel"], hidden, shape))

    def _in_turn(
        self, batch: Shape, choose: Callable[[Distribution, Array], Array]
    ) -> Float[Array, "*draws H W C"]:
        """Images in which each pixel is chosen from its distribution, given those chosen before.

        Args:
            batch: the shape of the batch of images.
            choose: the function that makes a pixel from its distribution and its position.
        """
        features = self._features(batch)
        number, channels = len(features), self.image_shape[-1]

        def step(state: tuple[Array, Cache], position: Array) -> tuple[tuple[Array, Cache], Array]:
            before, cache = state
            here = features[:, jnp.minimum(position, features.shape[1] - 1), None]
            hidden, cache = self._hidden(before[:, None], here, cache, position)
            chosen = choose(self._pixels(hidden[:, None]), position).reshape(number, channels)
            return (chosen, cache), chosen

        start = (
            jnp.zeros((number, channels), self.features.dtype),
            self.network.empty_cache(number, self._dtype),
        )
        _, pixels = lax.scan(step, start, jnp.arange(self.network.length))
        return pixels.swapaxes(0, 1).reshape(*batch, *self.image_shape)


class AutoregressivePixels(Likelihood):
    """p(x|z) = prod_t p(x_t | x_1, ..., x_t-1, z), over pixels in raster order.

    The PixelVAE with a transformer instead of a PixelCNN. The decoder, which may be any network,
    gives the transformer features of z, and a likelihood of independent pixels maps the
    transformer's features to p(x_t | x_1, ..., x_t-1, z). A draw takes as many steps as an image
    has pixels. The mean has no closed form, so pictures are draws. Such a flexible p(x|z) can
    ignore z: if the KL goes to zero, take a smaller network or the objective `FreeBits`.

    Attributes:
        pixel: the likelihood of a pixel given its features, such as `Bernoulli` or
            `MixtureOfLogistics`; its support and measure are also those of the image.
        width: the width of the transformer.
        num_layers: the number of transformer blocks.
        num_heads: the number of attention heads of each block.

    Raises:
        VaeJaxError: the pixel's likelihood looks at the whole batch, or the width is not a multiple
            of num_heads.

    References:
        Gulrajani et al. (2017), "PixelVAE: a latent variable model for natural images".

    Example:
        >>> likelihood = AutoregressivePixels(Bernoulli(), width=32)
        >>> model = VAE(..., decoder=MLP((200,)), likelihood=likelihood)
    """

    pixel: Annotated[Likelihood, "a likelihood, such as Bernoulli()"]
    width: Count = 64
    num_layers: Count = 2
    num_heads: Count = 4

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        if self.pixel.whole_batch:
            raise VaeJaxError(
                f"{type(self.pixel).__name__} looks at all pixels of a batch, so "
                "AutoregressivePixels cannot use it for one: take another likelihood, such as "
                "Gaussian."
            )
        check_heads(self, self.width, self.num_heads)

    @property
    def supports(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> frozenset[Support]:
        """The values that the pixel's likelihood supports."""
        return self.pixel.supports

    @property
    def measure(self) -> Measure:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The measure of the pixel's likelihood."""
        return self.pixel.measure

    @nn.compact
    def __call__(
        self, features: Float[Array, "N ..."], image_shape: Shape
    ) -> AutoregressivePixelsDistribution:
        """p(x|z), batch `[N]` and event `[H, W, C]`.

        Raises:
            VaeJaxError: the features have a different height or width than the image.
        """
        height, width, channels = image_shape
        if features.ndim > 2 and features.shape[1:3] != (height, width):
            raise VaeJaxError(
                f"The decoder's features are {features.shape[1]}x{features.shape[2]} pixels, the "
                f"images {height}x{width}: take a decoder that meets the image's size."
            )
        network = Transformer(
            length=math.prod((height, width)),
            features=None,
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            name="network",
        )
        if self.is_initializing():
            hidden, _ = network(jnp.zeros((1, 1, channels + features.shape[-1])))
            self.pixel(hidden[:, None], (1, 1, channels))
        return AutoregressivePixelsDistribution(
            features=features.reshape(len(features), -1, features.shape[-1]),
            variables=Shared({"network": network.variables, "pixel": self.pixel.variables}),
            network=network.clone(parent=None),
            pixel=self.pixel.clone(parent=None),
            image_shape=tuple(image_shape),
        )
