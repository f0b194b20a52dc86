"""Layers that the convolutional architectures share, each fast on the CPU inside a scan as well.

Every halving is of "SAME" kind, from n to ceil(n / 2) pixels, so that no image is too small: one
pixel stays one. A decoder walks the same sizes back (`conv.halvings`), and so meets each exactly.
"""

from functools import partial, reduce
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer

from vae_jax.cpu.convolution import conv
from vae_jax.distributions import Shape

Output = Literal["map", "tokens", "vector"]
"""Of an encoder: `[N, h, w, F]`; its places as a set, `[N, h * w, F]`; or `[N, F]`."""

HE = nn.initializers.he_normal()
GROUP_SIZE = 16


class Conv(nn.Module):
    """A convolution with "SAME" padding.

    Attributes:
        features: output channels.
        kernel_size: side of the square kernel.
        stride: in both directions.
        use_bias: whether a bias is added; not where a normalization follows.
        kernel_init: of the kernel; the bias starts at zero.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    kernel_init: Initializer = HE

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` to `[N, ceil(H / stride), ceil(W / stride), features]`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        y = conv(x, self.param("kernel", self.kernel_init, shape), self.stride)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,))
        return y


class SeparableConv(nn.Module):
    """A 3x3 filter for each channel by itself, then a 1x1 convolution (Chollet 2017).

    Attributes:
        features: output channels.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` to `[N, H, W, features]`."""
        kernel = self.param("depthwise", HE, (3, 3, 1, x.shape[-1]))
        return Conv(self.features, 1, name="pointwise")(depthwise_conv(x, kernel))


def depthwise_conv(x: Array, kernel: Array) -> Array:
    """Each channel's cross-correlation with a kernel of its own, "SAME" padding.

    On the CPU as shifted images times numbers, which a loop does not slow down.

    Args:
        x: `[N, H, W, C]`.
        kernel: `[h, w, 1, C]`, h and w odd.

    Returns:
        `[N, H, W, C]`.
    """
    (height, width), (rows, columns) = x.shape[1:3], kernel.shape[:2]
    pads = [(rows // 2, rows // 2), (columns // 2, columns // 2)]

    def as_shifts(x: Array, kernel: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), *pads, (0, 0)])
        terms = [
            padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
            for i in range(rows)
            for j in range(columns)
        ]
        return reduce(jnp.add, terms)

    library = partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return lax.platform_dependent(x, kernel, cpu=as_shifts, default=library)


def group_norm(x: Array) -> Array:
    """GroupNorm of 16 channels a group (Wu & He 2018), of all where 16 does not divide them.

    Statistics are of one example, so neither the batch's size nor the devices that share it matter;
    call it in a compact method.
    """
    channels = x.shape[-1]
    size = GROUP_SIZE if channels % GROUP_SIZE == 0 else channels
    return nn.GroupNorm(num_groups=None, group_size=size)(x)


def max_pool(x: Array, window: int) -> Array:
    """The largest of each channel in windows two pixels apart, "SAME" padding.

    Args:
        x: `[N, H, W, C]`.
        window: side of the squares, 2 or 3.

    Returns:
        `[N, ceil(H / 2), ceil(W / 2), C]`.
    """
    rows, columns = (-(-n // 2) for n in x.shape[1:3])
    excess = [max(2 * (-(-n // 2) - 1) + window - n, 0) for n in x.shape[1:3]]
    pads = [(total // 2, total - total // 2) for total in excess]
    padded = jnp.pad(x, [(0, 0), *pads, (0, 0)], constant_values=-jnp.inf)
    shifted = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i in range(window)
        for j in range(window)
    ]
    return reduce(jnp.maximum, shifted)


def upsample(x: Array, size: Shape) -> Array:
    """Each pixel four times, cut to `size`: `[N, ceil(H/2), ceil(W/2), C]` to `[N, H, W, C]`."""
    number, height, width, channels = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None], (number, height, 2, width, 2, channels))
    doubled = doubled.reshape(number, 2 * height, 2 * width, channels)
    return doubled[:, : size[0], : size[1]]


def as_output(x: Array, output: Output) -> Array:
    """A map `[N, h, w, F]` as `output` says; as a vector, its mean over places."""
    if output == "vector":
        return x.mean((1, 2))
    return x.reshape(len(x), -1, x.shape[-1]) if output == "tokens" else x


def coarsest_map(z: Array, size: Shape, features: int) -> Array:
    """A decoder's first map `[N, h, w, features]`, affine in z; call it in a compact method.

    Latents `[N, h, w, c]` of this size, or as many vectors `[N, h * w, d]`, are mapped place by
    place; any others are flattened and mapped to all places at once.
    """
    height, width = size
    if z.shape[1:-1] in ((height, width), (height * width,)):
        x = nn.Dense(features, kernel_init=HE, name="places")(z)
    else:
        x = nn.Dense(height * width * features, kernel_init=HE, name="all")(z.reshape(len(z), -1))
    return x.reshape(-1, height, width, features)
