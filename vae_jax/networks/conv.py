"""Convolutional networks, and a convolution that is fast inside a scan on the CPU.

XLA's CPU backend has no threaded convolution inside a loop, so there the same linear map is
computed as patches times a matrix; accelerators keep the library's convolution.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer

from vae_jax.distributions import Shape

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding (low, high) that makes a strided convolution's output ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _pads(spatial: Sequence[int], kernel: Array, stride: int) -> list[tuple[int, int]]:
    return [_same_padding(n, k, stride) for n, k in zip(spatial, kernel.shape[:2], strict=True)]


def conv(x: Array, kernel: Array, stride: int) -> Array:
    """Strided cross-correlation with "SAME" padding.

    Args:
        x: `[N, H, W, I]`.
        kernel: `[h, w, I, O]`.
        stride: in both directions.

    Returns:
        `[N, ceil(H/stride), ceil(W/stride), O]`.
    """
    pads = _pads(x.shape[1:3], kernel, stride)

    def as_matrix_product(x: Array, kernel: Array) -> Array:
        rows, columns = (-(-n // stride) for n in x.shape[1:3])
        padded = jnp.pad(x, [(0, 0), *pads, (0, 0)])
        patches = [
            padded[
                :,
                i : i + stride * (rows - 1) + 1 : stride,
                j : j + stride * (columns - 1) + 1 : stride,
            ]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        ]
        return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1])

    library = partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=_LAYOUT,
    )
    return lax.platform_dependent(x, kernel, cpu=as_matrix_product, default=library)


def conv_transpose(x: Array, kernel: Array, stride: int, spatial: Shape) -> Array:
    """The transpose of `conv` as a linear map of images of size `spatial`.

    Args:
        x: `[N, H', W', O]`, of the size that `conv` would make of `spatial`.
        kernel: `[h, w, I, O]`.
        stride: in both directions.
        spatial: (H, W) of the result.

    Returns:
        `[N, H, W, I]`.
    """
    height, width = spatial
    pads = _pads(spatial, kernel, stride)

    def as_matrix_product(x: Array, kernel: Array) -> Array:
        rows, columns = x.shape[1:3]
        # pixels[..., i, j, :] is what each input pixel adds at offset (i, j) of its patch.
        pixels = jnp.einsum("nrco,ijko->nrcijk", x, kernel)
        full = [n + low + high for n, (low, high) in zip(spatial, pads, strict=True)]
        zero = jnp.zeros((), x.dtype)
        placed = jnp.zeros((x.shape[0], *full, kernel.shape[2]), x.dtype)
        for i in range(kernel.shape[0]):
            for j in range(kernel.shape[1]):
                after_i = full[0] - i - stride * (rows - 1) - 1
                after_j = full[1] - j - stride * (columns - 1) - 1
                spread = [(0, 0, 0), (i, after_i, stride - 1), (j, after_j, stride - 1), (0, 0, 0)]
                placed += lax.pad(pixels[:, :, :, i, j], zero, spread)
        (top, _), (left, _) = pads
        return placed[:, top : top + height, left : left + width]

    def library(x: Array, kernel: Array) -> Array:
        forward = partial(
            lax.conv_general_dilated,
            rhs=kernel,
            window_strides=(stride, stride),
            padding=pads,
            dimension_numbers=_LAYOUT,
        )
        image = jax.ShapeDtypeStruct((x.shape[0], height, width, kernel.shape[2]), x.dtype)
        return jax.linear_transpose(forward, image)(x)[0]

    return lax.platform_dependent(x, kernel, cpu=as_matrix_product, default=library)


class ConvEncoder(nn.Module):
    """Strided convolutions that halve the image, then one dense layer.

    Attributes:
        features: channels of each map; each has half the height and width of the one before.
        dense: width of the dense layer on the flattened last map.
        kernel_size: side of the square kernels.
        activation: after every layer.
        kernel_init: of every layer; biases start at zero.
    """

    features: Sequence[int]
    dense: int
    kernel_size: int = 4
    activation: Callable[[Array], Array] = jax.nn.relu
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to `[N, dense]`."""
        for layer, width in enumerate(self.features):
            shape = (self.kernel_size, self.kernel_size, x.shape[-1], width)
            kernel = self.param(f"kernel_{layer}", self.kernel_init, shape)
            bias = self.param(f"bias_{layer}", nn.initializers.zeros, (width,))
            x = self.activation(conv(x, kernel, stride=2) + bias)
        x = x.reshape(x.shape[0], -1)
        return self.activation(nn.Dense(self.dense, kernel_init=self.kernel_init)(x))


class ConvDecoder(nn.Module):
    """One dense layer, then transposed convolutions that double the map up to the image's size.

    Attributes:
        features: channels of each map from the coarsest to the full-size one, so there are
            `len(features) - 1` doublings; any image size is met exactly.
        dense: width of the dense layer before the coarsest map.
        kernel_size: side of the square kernels.
        activation: after every layer.
        kernel_init: of every layer; biases start at zero.
    """

    features: Sequence[int]
    dense: int
    kernel_size: int = 4
    activation: Callable[[Array], Array] = jax.nn.relu
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents `[N, ...]`, flattened, to `[N, H, W, features[-1]]`."""
        sizes = [image_shape[:2]]
        for _ in self.features[1:]:
            height, width = sizes[0]
            sizes.insert(0, (-(-height // 2), -(-width // 2)))
        (height, width), channels = sizes[0], self.features[0]
        x = z.reshape(z.shape[0], -1)
        x = self.activation(nn.Dense(self.dense, kernel_init=self.kernel_init)(x))
        x = self.activation(nn.Dense(height * width * channels, kernel_init=self.kernel_init)(x))
        x = x.reshape(-1, height, width, channels)
        for layer, (size, channels) in enumerate(zip(sizes[1:], self.features[1:], strict=True)):
            shape = (self.kernel_size, self.kernel_size, channels, x.shape[-1])
            kernel = self.param(f"kernel_{layer}", self.kernel_init, shape)
            bias = self.param(f"bias_{layer}", nn.initializers.zeros, (channels,))
            x = self.activation(conv_transpose(x, kernel, 2, size) + bias)
        return x
