"""VGG as an encoder, and its mirror image as a decoder."""

from collections.abc import Sequence
from typing import Annotated

import flax.linen as nn
import jax
from jax import Array

from vae_jax.distributions import Shape
from vae_jax.given import Bounds, SomeWidths, Widths
from vae_jax.interfaces import Part
from vae_jax.networks.layers import (
    HE,
    Conv,
    Dense,
    Output,
    as_output,
    coarsest_map,
    group_norm,
    halvings,
    max_pool,
)

Stages = Annotated[
    Sequence[SomeWidths],
    Bounds(least=1),
    "a tuple with the widths of each stage, such as ((64, 64), (128,))",
]
"""The features of each 3x3 convolution, stage by stage; a pool halves the map after each stage."""

D: Stages = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
DENSE_D = (4096, 4096)


def _conv(x: Array, features: int, normalize: bool, upsampled_to: Shape | None = None) -> Array:
    x = Conv(features, use_bias=True)(x, upsampled_to)
    return jax.nn.relu(group_norm(x) if normalize else x)


class VGGEncoder(Part):
    """Stages of 3x3 convolutions with a 2x2 max pool after each.

    Attributes:
        stages: the number of features of each convolution, stage by stage.
        output: "map"; "tokens", its positions as a set; or "vector", the map flattened, then dense
            layers.
        dense: the widths of these layers.
        normalize: whether to apply GroupNorm after each convolution. The paper does not; without
            it, the features of a deep network grow with each pool at initialization.

    References:
        Simonyan & Zisserman (2014), "Very deep convolutional networks for large-scale image
            recognition".
    """

    stages: Stages
    output: Output = "map"
    dense: Widths = ()
    normalize: bool = True

    @classmethod
    def vgg16(cls, output: Output = "map", normalize: bool = True) -> "VGGEncoder":
        """VGG-16, the paper's configuration D, without its classifier's last layer."""
        return cls(D, output, DENSE_D, normalize)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to the map `[N, h, w, F]`, tokens `[N, h * w, F]` or `[N, F]`."""
        for stage in self.stages:
            for features in stage:
                x = _conv(x, features, self.normalize)
            x = max_pool(x, 2)
        if self.output != "vector":
            return as_output(x, self.output)
        x = x.reshape(len(x), -1)
        for width in self.dense:
            x = jax.nn.relu(Dense(width, kernel_init=HE)(x))
        return x


class VGGDecoder(Part):
    """`VGGEncoder` in reverse, with nearest-neighbour upsampling in place of its pools.

    A convolution from f to f' features there is one from f' to f here; the last convolution keeps
    its number of features, since the likelihood's affine map makes the image's channels.

    Attributes:
        stages: the stages of the encoder.
        dense: the widths of the encoder's dense layers, which precede the coarsest map in reverse
            order; () if `coarsest_map` maps the latents directly.
        normalize: whether to apply GroupNorm after each convolution.

    References:
        Simonyan & Zisserman (2014), "Very deep convolutional networks for large-scale image
            recognition".
    """

    stages: Stages
    dense: Widths = ()
    normalize: bool = True

    @classmethod
    def vgg16(cls, dense: Sequence[int] = (), normalize: bool = True) -> "VGGDecoder":
        """VGG-16, the paper's configuration D, in reverse."""
        return cls(D, dense, normalize)

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents z `[N, ...]`, mapped by `coarsest_map`, and (H, W, C) to `[N, H, W, F]`."""
        for width in reversed(self.dense):
            z = jax.nn.relu(Dense(width, kernel_init=HE)(z.reshape(len(z), -1)))
        coarsest, *sizes = halvings(image_shape, len(self.stages))
        x = jax.nn.relu(coarsest_map(z, coarsest, self.stages[-1][-1]))
        before = [features for stage in self.stages for features in stage]
        before = [
            before[0],
            *before[:-1],
        ]  # the number of input features of each of the encoder's convolutions
        for size, stage in zip(sizes, reversed(self.stages), strict=True):
            for to in (size, *[None] * (len(stage) - 1)):
                x = _conv(x, before.pop(), self.normalize, to)
        return x
