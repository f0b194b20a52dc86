"""VGG as an encoder, and its mirror image as a decoder (Simonyan & Zisserman 2014)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jax import Array

from vae_jax.distributions import Shape
from vae_jax.networks.conv import halvings
from vae_jax.networks.layers import (
    HE,
    Conv,
    Output,
    as_output,
    coarsest_map,
    group_norm,
    max_pool,
    upsample,
)

Stages = Sequence[Sequence[int]]
"""Channels after each 3x3 convolution, stage by stage; a pool halves the image after each stage."""

D: Stages = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
DENSE_D = (4096, 4096)


def _conv(x: Array, features: int, normalize: bool) -> Array:
    x = Conv(features, use_bias=True)(x)
    return jax.nn.relu(group_norm(x) if normalize else x)


class VGGEncoder(nn.Module):
    """Stages of 3x3 convolutions with a 2x2 max pool after each.

    Attributes:
        stages: channels of each convolution, stage by stage.
        output: a map, its places as tokens, or a vector: the map flattened, then dense layers.
        dense: widths of these layers.
        normalize: GroupNorm after each convolution. The paper has none, and without it a deep net
            starts with features that each pool makes larger.
    """

    stages: Stages
    output: Output = "map"
    dense: Sequence[int] = ()
    normalize: bool = True

    @classmethod
    def vgg16(cls, output: Output = "map", normalize: bool = True) -> "VGGEncoder":
        """Configuration D, VGG-16, without its classifier's last layer."""
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
            x = jax.nn.relu(nn.Dense(width, kernel_init=HE)(x))
        return x


class VGGDecoder(nn.Module):
    """`VGGEncoder` read backwards, nearest-neighbour upsampling for its pools.

    A convolution from c to c' channels there is one from c' to c here; the last keeps its channels,
    for the likelihood's own map makes the image's of them.

    Attributes:
        stages: the encoder's.
        dense: widths of the encoder's dense layers, which come in reverse order before the coarsest
            map; () for latents that are one, or that a single affine map makes one of.
        normalize: GroupNorm after each convolution.
    """

    stages: Stages
    dense: Sequence[int] = ()
    normalize: bool = True

    @classmethod
    def vgg16(cls, dense: Sequence[int] = (), normalize: bool = True) -> "VGGDecoder":
        """Configuration D, VGG-16, in reverse."""
        return cls(D, dense, normalize)

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents `[N, ...]`, see `coarsest_map`, to `[N, H, W, F]`."""
        for width in reversed(self.dense):
            z = jax.nn.relu(nn.Dense(width, kernel_init=HE)(z.reshape(len(z), -1)))
        coarsest, *sizes = halvings(image_shape, len(self.stages))
        x = jax.nn.relu(coarsest_map(z, coarsest, self.stages[-1][-1]))
        before = [features for stage in self.stages for features in stage]
        before = [before[0], *before[:-1]]  # channels that each of the encoder's convolutions sees
        for size, stage in zip(sizes, reversed(self.stages), strict=True):
            x = upsample(x, size)
            for _ in stage:
                x = _conv(x, before.pop(), self.normalize)
        return x
