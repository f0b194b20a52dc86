"""Xception: depthwise separable convolutions with residual connections, and its mirror."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jax import Array

from vae_jax.distributions import Shape
from vae_jax.networks.conv import halvings
from vae_jax.networks.layers import (
    Conv,
    Output,
    SeparableConv,
    as_output,
    coarsest_map,
    group_norm,
    max_pool,
    upsample,
)


def _separable(x: Array, features: int) -> Array:
    return group_norm(SeparableConv(features)(x))


class XceptionBlock(nn.Module):
    """A shortcut around (relu, separable convolution, norm) for each of `features`.

    Attributes:
        features: channels after each separable convolution.
        halve: whether a 3x3 max pool ends the block, and the shortcut is a strided 1x1 convolution.
        size: (H, W) that the map is upsampled to first, in decoders; then, too, the shortcut is a
            1x1 convolution.
    """

    features: Sequence[int]
    halve: bool = False
    size: Shape | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` to `[N, H', W', features[-1]]`."""
        h = x = x if self.size is None else upsample(x, self.size)
        if self.halve or self.size is not None:
            x = group_norm(Conv(self.features[-1], 1, 2 if self.halve else 1)(x))
        for features in self.features:
            h = _separable(jax.nn.relu(h), features)
        return x + (max_pool(h, 3) if self.halve else h)


class XceptionEncoder(nn.Module):
    """Entry, middle and exit flow (Chollet 2017, figure 5).

    GroupNorm stands where the paper has batch normalization.

    Attributes:
        stem: channels of the first two convolutions, 3x3, the first of which halves the image.
        entry: channels of the entry flow's blocks; each halves the map.
        middle: blocks of the middle flow, of three separable convolutions each.
        exit: channels of the exit flow: of its block, which halves the map, and of two separable
            convolutions after it.
        output: a map, its places as tokens, or a vector, their mean.
    """

    stem: tuple[int, int]
    entry: Sequence[int]
    middle: int
    exit: tuple[int, int, int]
    output: Output = "map"

    @classmethod
    def xception(cls, output: Output = "map") -> "XceptionEncoder":
        """The paper's."""
        return cls((32, 64), (128, 256, 728), 8, (1024, 1536, 2048), output)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to the map `[N, h, w, F]`, tokens `[N, h * w, F]` or `[N, F]`."""
        for features, stride in zip(self.stem, (2, 1), strict=True):
            x = jax.nn.relu(group_norm(Conv(features, 3, stride)(x)))
        for features in self.entry:
            x = XceptionBlock((features, features), halve=True)(x)
        for _ in range(self.middle):
            x = XceptionBlock((x.shape[-1],) * 3)(x)
        x = XceptionBlock((x.shape[-1], self.exit[0]), halve=True)(x)
        for features in self.exit[1:]:
            x = jax.nn.relu(_separable(x, features))
        return as_output(x, self.output)


class XceptionDecoder(nn.Module):
    """`XceptionEncoder` read backwards, nearest-neighbour upsampling for its halvings.

    Attributes:
        stem, entry, middle, exit: the encoder's.
    """

    stem: tuple[int, int]
    entry: Sequence[int]
    middle: int
    exit: tuple[int, int, int]

    @classmethod
    def xception(cls) -> "XceptionDecoder":
        """`XceptionEncoder.xception` in reverse."""
        return cls((32, 64), (128, 256, 728), 8, (1024, 1536, 2048))

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents `[N, ...]`, see `coarsest_map`, to `[N, H, W, stem[0]]`."""
        coarsest, *sizes = halvings(image_shape, len(self.entry) + 2)
        *up, last = sizes
        x = jax.nn.relu(coarsest_map(z, coarsest, self.exit[2]))
        for features in self.exit[1::-1]:
            x = jax.nn.relu(_separable(x, features))
        x = XceptionBlock((self.exit[0], self.entry[-1]), size=up[0])(x)
        for _ in range(self.middle):
            x = XceptionBlock((x.shape[-1],) * 3)(x)
        channels = (self.stem[1], *self.entry)
        for before, size in zip(channels[-2::-1], up[1:], strict=True):
            x = XceptionBlock((x.shape[-1], before), size=size)(x)
        x = jax.nn.relu(group_norm(Conv(self.stem[0])(x)))
        return jax.nn.relu(group_norm(Conv(self.stem[0])(upsample(x, last))))
