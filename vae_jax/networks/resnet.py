"""Pre-activation residual networks and their mirror image."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax import Array

from vae_jax.distributions import Shape
from vae_jax.given import Count, SomeWidths
from vae_jax.interfaces import Part
from vae_jax.networks.layers import (
    Conv,
    Output,
    as_output,
    coarsest_map,
    group_norm,
    halvings,
    max_pool,
    upsample,
)


def _activated(x: Array) -> Array:
    return jax.nn.relu(group_norm(x))


class PreActivationBlock(nn.Module):
    """x + R(relu(norm(x))): R is two 3x3 convolutions, or 1x1, 3x3, 1x1 around a bottleneck.

    If the map is halved or the number of features changes, the shortcut is a 1x1 convolution of the
    normalized x.

    Attributes:
        features: the number of output features.
        bottleneck: whether R narrows to a quarter of the output features in between.
        stride: 2 to halve the map, else 1.
        size: the (H, W) to which a decoder first upsamples the map; None keeps its size.
        activation: the elementwise function after each normalization.
    """

    features: int
    bottleneck: bool = False
    stride: int = 1
    size: Shape | None = None
    activation: Callable[[Array], Array] = jax.nn.relu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, F]` to `[N, H', W', features]`."""
        h = self._activated(x)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, name="shortcut")(h)
        if self.size is not None:
            x = upsample(x, self.size)
        if self.bottleneck:
            narrow = self.features // 4
            h = h if self.size is None else upsample(h, self.size)
            h = self._activated(Conv(narrow, 1)(h))
            h = self._activated(Conv(narrow, 3, self.stride)(h))
            return x + Conv(self.features, 1)(h)
        h = self._activated(Conv(self.features, 3, self.stride)(h, self.size))
        return x + Conv(self.features, 3)(h)

    def _activated(self, x: Array) -> Array:
        return self.activation(group_norm(x))


class ResNetEncoder(Part):
    """Stages of residual blocks; each but the first halves the map and doubles the features.

    GroupNorm replaces the paper's batch normalization.

    Attributes:
        blocks: the number of blocks of each stage.
        width: the number of features of the first convolution and of the first stage; with
            bottlenecks the stage has four times as many.
        bottleneck: whether the blocks have bottlenecks.
        large_stem: whether to begin with the ImageNet networks' 7x7 convolution and 3x3 pool, each
            a halving, instead of one 3x3 convolution.
        output: "map"; "tokens", its positions as a set; or "vector", their mean.

    References:
        He et al. (2016), "Identity mappings in deep residual networks".
        He et al. (2016), "Deep residual learning for image recognition", table 1, for the stages.
        Wu & He (2018), "Group normalization".
    """

    blocks: SomeWidths
    width: Count = 64
    bottleneck: bool = False
    large_stem: bool = False
    output: Output = "map"

    @classmethod
    def resnet18(cls, output: Output = "map") -> "ResNetEncoder":
        """ResNet-18 (He et al. 2016, table 1)."""
        return cls((2, 2, 2, 2), large_stem=True, output=output)

    @classmethod
    def resnet50(cls, output: Output = "map") -> "ResNetEncoder":
        """ResNet-50 (He et al. 2016, table 1)."""
        return cls((3, 4, 6, 3), bottleneck=True, large_stem=True, output=output)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to the map `[N, h, w, F]`, tokens `[N, h * w, F]` or `[N, F]`."""
        if self.large_stem:
            x = max_pool(Conv(self.width, 7, stride=2)(x), 3)
        else:
            x = Conv(self.width)(x)
        for stage, (count, features) in enumerate(zip(self.blocks, _widths(self), strict=True)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                x = PreActivationBlock(features, self.bottleneck, stride)(x)
        return as_output(_activated(x), self.output)


class ResNetDecoder(Part):
    """`ResNetEncoder` in reverse: the last block of each stage upsamples.

    Attributes:
        blocks, width, bottleneck, large_stem: the attributes of the encoder.

    References:
        He et al. (2016), "Identity mappings in deep residual networks".
    """

    blocks: SomeWidths
    width: Count = 64
    bottleneck: bool = False
    large_stem: bool = False

    @classmethod
    def resnet18(cls) -> "ResNetDecoder":
        """`ResNetEncoder.resnet18` in reverse."""
        return cls((2, 2, 2, 2), large_stem=True)

    @classmethod
    def resnet50(cls) -> "ResNetDecoder":
        """`ResNetEncoder.resnet50` in reverse."""
        return cls((3, 4, 6, 3), bottleneck=True, large_stem=True)

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents z `[N, ...]`, mapped by `coarsest_map`, and (H, W, C) to `[N, H, W, width]`."""
        widths = _widths(self)
        steps = len(self.blocks) - 1
        coarsest, *sizes = halvings(image_shape, steps + 2 * self.large_stem)
        x = coarsest_map(z, coarsest, widths[-1])
        for stage in reversed(range(len(self.blocks))):
            below = widths[stage - 1] if stage else self.width
            for block in reversed(range(self.blocks[stage])):
                size = sizes.pop(0) if stage and not block else None
                features = widths[stage] if block else below
                x = PreActivationBlock(features, self.bottleneck, size=size)(x)
        x = _activated(x)
        for size, kernel_size in zip(sizes, (3, 7), strict=False):
            x = _activated(Conv(self.width, kernel_size)(x, size))
        return x


def _widths(net: ResNetEncoder | ResNetDecoder) -> list[int]:
    """The number of features of each stage."""
    first = net.width * (4 if net.bottleneck else 1)
    return [first * 2**stage for stage in range(len(net.blocks))]
