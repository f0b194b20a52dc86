"""Xception: separable convolutions with shortcuts, and its mirror image."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jax import Array

from vae_jax.distributions import Shape
from vae_jax.given import Count, Index, SomeWidths
from vae_jax.interfaces import Part
from vae_jax.networks.layers import (
    Conv,
    Output,
    SeparableConv,
    as_output,
    coarsest_map,
    group_norm,
    halvings,
    max_pool,
    upsample,
)


def _separable(x: Array, features: int) -> Array:
    return group_norm(SeparableConv(features)(x))


class XceptionBlock(nn.Module):
    """A shortcut around one (relu, separable convolution, norm) for each entry of `features`.

    If the size changes, the shortcut is a 1x1 convolution.

    Attributes:
        features: the number of features of each separable convolution.
        halve: whether to end with a 3x3 max pool of stride 2, which the shortcut's stride matches.
        size: the (H, W) to which a decoder first upsamples the map; None keeps its size.
    """

    features: Sequence[int]
    halve: bool = False
    size: Shape | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, F]` to `[N, H', W', features[-1]]`."""
        h = x if self.size is None else upsample(x, self.size)
        if self.halve or self.size is not None:
            x = Conv(self.features[-1], 1, 2 if self.halve else 1)(x)
            x = group_norm(x if self.size is None else upsample(x, self.size))
        for features in self.features:
            h = _separable(jax.nn.relu(h), features)
        return x + (max_pool(h, 3) if self.halve else h)


class XceptionEncoder(Part):
    """Entry, middle and exit flow, of separable convolutions with shortcuts.

    GroupNorm replaces the paper's batch normalization.

    Attributes:
        stem: the numbers of features of the first two convolutions, 3x3, of which the first halves
            the image.
        entry: the number of features of each block of the entry flow; each block halves the map.
        middle: the number of blocks of the middle flow, of three separable convolutions each.
        exit: the numbers of features of the exit flow's block, which halves the map, and of the two
            separable convolutions after it.
        output: "map"; "tokens", its positions as a set; or "vector", their mean.

    References:
        Chollet (2017), "Xception: deep learning with depthwise separable convolutions", figure 5.
    """

    stem: tuple[Count, Count]
    entry: SomeWidths
    middle: Index
    exit: tuple[Count, Count, Count]
    output: Output = "map"

    @classmethod
    def xception(cls, output: Output = "map") -> "XceptionEncoder":
        """The paper's network."""
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


class XceptionDecoder(Part):
    """`XceptionEncoder` in reverse, with nearest-neighbour upsampling in place of its halvings.

    Attributes:
        stem, entry, middle, exit: the attributes of the encoder.

    References:
        Chollet (2017), "Xception: deep learning with depthwise separable convolutions".
    """

    stem: tuple[Count, Count]
    entry: SomeWidths
    middle: Index
    exit: tuple[Count, Count, Count]

    @classmethod
    def xception(cls) -> "XceptionDecoder":
        """`XceptionEncoder.xception` in reverse."""
        return cls((32, 64), (128, 256, 728), 8, (1024, 1536, 2048))

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents z `[N, ...]`, mapped by `coarsest_map`, and (H, W, C) to `[N, H, W, stem[0]]`."""
        coarsest, *sizes = halvings(image_shape, len(self.entry) + 2)
        *up, last = sizes
        x = jax.nn.relu(coarsest_map(z, coarsest, self.exit[2]))
        for features in self.exit[1::-1]:
            x = jax.nn.relu(_separable(x, features))
        x = XceptionBlock((self.exit[0], self.entry[-1]), size=up[0])(x)
        for _ in range(self.middle):
            x = XceptionBlock((x.shape[-1],) * 3)(x)
        narrower = (self.stem[1], *self.entry[:-1])
        for features, size in zip(reversed(narrower), up[1:], strict=True):
            x = XceptionBlock((x.shape[-1], features), size=size)(x)
        x = jax.nn.relu(group_norm(Conv(self.stem[0])(x)))
        return jax.nn.relu(group_norm(Conv(self.stem[0])(x, last)))
