"""Pixels one after the other, each given z and those before it."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Distribution, Shape, Shared
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Likelihood, Measure, Support
from vae_jax.networks.transformer import Cache, Transformer


@struct.dataclass
class AutoregressivePixelsDistribution(Distribution):
    """ln p(x) = sum_t ln p(x_t | x_1, ..., x_t-1), t in raster order, by a causal transformer.

    Its input at a place is the pixel before, beside the decoder's features of the place; at the
    first place the pixel is zero.

    Attributes:
        features: the decoder's, `[*batch, T, F]`, or `[*batch, 1, F]` where all T share them.
        variables: of the network and of the pixel's likelihood.
        network: from those inputs to features of the pixel at each place.
        pixel: the likelihood of one pixel, given these.
        image_shape: (H, W, C), T = H W.
    """

    features: Array
    variables: Shared
    network: Transformer = struct.field(pytree_node=False)
    pixel: nn.Module = struct.field(pytree_node=False)
    image_shape: Shape = struct.field(pytree_node=False)

    exact_mean = False
    mean_is_picture = False

    event_ndims = 3

    @property
    @override
    def shape(self) -> Shape:
        return self.features.shape[:-2] + self.image_shape

    @property
    def mean(self) -> Array:
        """Each pixel's mean, given the means before it as if they were pixels; not the mean."""
        return self._in_turn(self.batch_shape, lambda px, place: px.mean)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Pixel by pixel, the keys and values of those before kept; not reparameterized."""
        keys = random.draw_keys(key, sample_shape, self.batch_shape).reshape(-1)

        def choose(px: Any, place: Array) -> Array:
            return px.sample(random.indexed(keys, place))

        return self._in_turn(sample_shape + self.batch_shape, choose)

    def log_prob(self, value: Array) -> Array:
        """In one pass over all pixels, nats."""
        batch = jnp.broadcast_shapes(value.shape[:-3], self.batch_shape)
        height, width, channels = self.image_shape
        images = jnp.broadcast_to(value, (*batch, *self.image_shape)).reshape(-1, *self.image_shape)
        pixels = images.reshape(-1, height * width, channels)
        before = jnp.pad(pixels[:, :-1], ((0, 0), (1, 0), (0, 0)))
        hidden, _ = self._hidden(before, self._features(batch))
        px = self._pixels(hidden.reshape(-1, height, width, hidden.shape[-1]))
        return px.log_prob(images).reshape(batch)

    def _features(self, batch: Shape) -> Array:
        """`[N, T or 1, F]` for all of a batch `[*more, *batch]`."""
        shape = self.features.shape[-2:]
        return jnp.broadcast_to(self.features, (*batch, *shape)).reshape(-1, *shape)

    def _hidden(
        self, before: Array, features: Array, cache: Cache | None = None, start: Array | int = 0
    ) -> tuple[Array, Cache]:
        """Features of the pixels from `start` on, given the pixels before each, `[N, S, C]`."""
        features = jnp.broadcast_to(features, (*before.shape[:2], features.shape[-1]))
        inputs = jnp.concatenate([before, features], -1).astype(self._dtype)
        hidden: Any = self.network.apply(self.variables.value["network"], inputs, cache, start)
        return hidden[0].astype(before.dtype), hidden[1]

    @property
    def _dtype(self) -> Any:
        """Of the network's parameters, so that it computes in half precision where they are."""
        return jax.tree.leaves(self.variables.value["network"])[0].dtype

    def _pixels(self, hidden: Array) -> Any:
        """Each of `[N, H, W, F]` by itself: the distribution of images of that size."""
        shape = (*hidden.shape[1:3], self.image_shape[-1])
        return self.pixel.apply(self.variables.value["pixel"], hidden, shape)

    def _in_turn(self, batch: Shape, choose: Callable[[Any, Array], Array]) -> Array:
        """Images `[*batch, H, W, C]`, each pixel chosen from its distribution, given the chosen."""
        features = self._features(batch)
        number, channels = len(features), self.image_shape[-1]

        def step(state: tuple[Array, Cache], place: Array) -> tuple[tuple[Array, Cache], Array]:
            before, cache = state
            here = features[:, jnp.minimum(place, features.shape[1] - 1), None]
            hidden, cache = self._hidden(before[:, None], here, cache, place)
            chosen = choose(self._pixels(hidden[:, None]), place).reshape(number, channels)
            return (chosen, cache), chosen

        start = (
            jnp.zeros((number, channels), self.features.dtype),
            self.network.empty_cache(number, self._dtype),
        )
        _, pixels = lax.scan(step, start, jnp.arange(self.network.length))
        return pixels.swapaxes(0, 1).reshape(*batch, *self.image_shape)


class AutoregressivePixels(Likelihood):
    """p(x|z) = prod_t p(x_t | x_1, ..., x_t-1, z), over pixels in raster order.

    PixelVAE (Gulrajani et al. 2017) with a transformer for its PixelCNN. The decoder, any network,
    gives the transformer its features of z; a likelihood of independent pixels says what p(x_t) is.
    A draw takes as many steps as an image has pixels, and the mean has no closed form: pictures are
    draws. So strong a p(x|z) can do without z: where the KL goes to zero, take a smaller one, or
    `FreeBits`.

    Attributes:
        pixel: the likelihood of a pixel given the network's features, such as `Bernoulli` or
            `MixtureOfLogistics`; its support and measure are this one's.
        width, num_layers, num_heads: of the `Transformer`.
    """

    pixel: Likelihood
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4

    @property
    def supports(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> frozenset[Support]:
        """The pixel's values."""
        return self.pixel.supports

    @property
    def measure(self) -> Measure:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The pixel's measure."""
        return self.pixel.measure

    @nn.compact
    def __call__(self, features: Array, image_shape: Shape) -> AutoregressivePixelsDistribution:
        """Features `[N, F]` or `[N, H, W, F]` to batch `[N]`, event `[H, W, C]`.

        Raises:
            VaeJaxError: features of another height or width than the image; a pixel that looks at
                whole batches.
        """
        height, width, channels = image_shape
        if self.pixel.whole_batch:
            raise VaeJaxError(
                f"{type(self.pixel).__name__} looks at all pixels of a batch, so "
                "AutoregressivePixels cannot use it for one: take another, such as Gaussian."
            )
        if features.ndim > 2 and features.shape[1:3] != (height, width):
            raise VaeJaxError(
                f"The decoder's features are {features.shape[1]}x{features.shape[2]} pixels, "
                f"the images {height}x{width}."
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
