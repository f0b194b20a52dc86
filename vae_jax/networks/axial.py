"""Axial networks: horizontal ones mix along an image's width, vertical ones along its height.

An image is a grid of patches, or of pixels. A horizontal encoder takes each row for a sequence of
sub-pixels and leaves a map; a vertical encoder takes each column for one, and pools it to a vector,
so that the image becomes a set of vectors. A vertical encoder after a horizontal one sees
everything, at the cost of rows and columns alone (Ho et al. 2019).
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.cpu.convolution import conv
from vae_jax.distributions import Shape
from vae_jax.networks.patches import from_patches, grid_of, to_patches
from vae_jax.networks.transformer import SMALL, Block

ROW, COLUMN = 2, 1  # the axes of `[N, h, w, F]` along which they lie


class AxialAttention(nn.Module):
    """Transformer blocks in which the places of a row see one another.

    Attributes:
        num_layers: blocks.
        num_heads: of each block's attention; they divide the channels.
    """

    num_layers: int = 2
    num_heads: int = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, rows, places, F]` to the same shape."""
        h = x.reshape(-1, *x.shape[2:])
        for _ in range(self.num_layers):
            h, _ = Block(self.num_heads, causal=False)(h)
        return h.reshape(x.shape)


class AxialConvolution(nn.Module):
    """Layers x + W gelu(k * LayerNorm(x)) whose kernels k lie along a row.

    After them a place sees num_layers * (kernel_size - 1) / 2 places to either side.

    Attributes:
        num_layers: residual layers.
        kernel_size: places that a kernel covers.
        kernel_init: of k and W; biases start at zero.
    """

    num_layers: int = 2
    kernel_size: int = 5
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, rows, places, F]` to the same shape."""
        channels = x.shape[-1]
        for layer in range(self.num_layers):
            shape = (1, self.kernel_size, channels, channels)
            kernel = self.param(f"kernel_{layer}", self.kernel_init, shape)
            bias = self.param(f"bias_{layer}", nn.initializers.zeros, (channels,))
            h = jax.nn.gelu(conv(nn.LayerNorm()(x), kernel, stride=1) + bias)
            x += nn.Dense(channels, kernel_init=self.kernel_init)(h)
        return x


class _Placed(nn.Module):
    """An affine map of each place's inputs, plus learned positions of its row and its column."""

    channels: int

    @nn.compact
    def __call__(self, x: Array, grid: Shape) -> Array:
        """`[N, h or 1, w or 1, F]` to `[N, h, w, channels]`."""
        height, width = grid
        rows = self.param("rows", SMALL, (height, 1, self.channels))
        columns = self.param("columns", SMALL, (width, self.channels))
        return nn.Dense(self.channels)(x) + rows + columns


def _along(axis: int, layers: nn.Module, x: Array) -> Array:
    """The layers, which know sequences along axis 2, on those along another."""
    return layers(x.swapaxes(axis, 2)).swapaxes(axis, 2)


class HorizontalEncoder(nn.Module):
    """Each row of sub-pixels by itself: features of a place know its row and no other.

    Attributes:
        layers: `AxialAttention` or `AxialConvolution`.
        channels: of the map.
        patch_size: side of a sub-pixel, in pixels; at the edges they are filled up with zeros.
    """

    layers: nn.Module
    channels: int = 64
    patch_size: int = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to the map `[N, h, w, channels]`."""
        patches = to_patches(x, self.patch_size)
        h = _Placed(self.channels)(patches, patches.shape[1:3])
        return nn.LayerNorm()(_along(ROW, self.layers, h))


class VerticalEncoder(nn.Module):
    """Each column of sub-pixels by itself, to one vector: the image as a set of vectors.

    Attributes:
        layers: `AxialAttention` or `AxialConvolution`.
        channels: of each vector.
        patch_size: side of a sub-pixel, in pixels; at the edges they are filled up with zeros.
    """

    layers: nn.Module
    channels: int = 64
    patch_size: int = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to w vectors, means over their columns, `[N, w, channels]`."""
        patches = to_patches(x, self.patch_size)
        h = _Placed(self.channels)(patches, patches.shape[1:3])
        return nn.LayerNorm()(_along(COLUMN, self.layers, h).mean(COLUMN))


class AxialEncoder(nn.Module):
    """A horizontal encoder, then a vertical one on its map: every vector knows the whole image.

    Attributes:
        horizontal: from the image to a map.
        vertical: from the map to a set of vectors; its `patch_size` counts places of the map.
    """

    horizontal: HorizontalEncoder
    vertical: VerticalEncoder

    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to `[N, w, channels]`."""
        return self.vertical(self.horizontal(x))


class _Decoder(nn.Module):
    """Each sequence of sub-pixels by itself, from the latents of that one, to its pixels."""

    layers: nn.Module
    features: int = 16
    channels: int = 64
    patch_size: int = 4

    axis: ClassVar[int]  # of `[N, h, w, F]`, along which a sequence lies

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents to `[N, H, W, features]`.

        Args:
            z: a map `[N, h, w, c]` of the grid of sub-pixels, a set of vectors, one for each
                sequence, `[N, n, d]`, or one vector for all `[N, d]`.
            image_shape: (H, W, C).

        Raises:
            ValueError: the latents are of another size than the grid.
        """
        grid = grid_of(image_shape, self.patch_size)
        h = _Placed(self.channels)(_on_grid(z, grid, self.axis), grid)
        h = nn.LayerNorm()(_along(self.axis, self.layers, h))
        patches = nn.Dense(self.patch_size**2 * self.features)(h)
        return from_patches(patches, image_shape, self.patch_size)


class HorizontalDecoder(_Decoder):
    """The mirror image of `HorizontalEncoder`: each row of the image from the latents of that row.

    Attributes:
        layers: `AxialAttention` or `AxialConvolution`.
        features: of each pixel.
        channels: of the layers.
        patch_size: side of a sub-pixel, in pixels.
    """

    axis: ClassVar[int] = ROW


class VerticalDecoder(_Decoder):
    """The mirror image of `VerticalEncoder`: each column of the image from the vector of that one.

    Attributes:
        layers, features, channels, patch_size: as of `HorizontalDecoder`.
    """

    axis: ClassVar[int] = COLUMN


class AxialDecoder(nn.Module):
    """The mirror image of `AxialEncoder`: a vertical decoder to a map, a horizontal one from it.

    Attributes:
        vertical: from the latents to a map of the horizontal decoder's sub-pixels.
        horizontal: from that map to the image.
    """

    vertical: VerticalDecoder
    horizontal: HorizontalDecoder

    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents, as `VerticalDecoder` takes them for the map, to `[N, H, W, features]`."""
        grid = grid_of(image_shape, self.horizontal.patch_size)
        return self.horizontal(self.vertical(z, grid), image_shape)


def _on_grid(z: Array, grid: Shape, axis: int) -> Array:
    """Latents as `[N, h or 1, w or 1, d]`; of a set, one for each sequence along `axis`."""
    height, width = grid
    number = width if axis == COLUMN else height
    match z.shape[1:]:
        case (_,):
            return z[:, None, None]
        case (n, _) if n == number:
            return jnp.expand_dims(z, axis)
        case (h, w, _) if (h, w) == grid:
            return z
    raise ValueError(
        f"latents of shape {z.shape[1:]} do not fit a grid of {height}x{width} sub-pixels: take a "
        f"vector (d,), a set of vectors ({number}, d) or a map ({height}, {width}, d)."
    )
