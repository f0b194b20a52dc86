"""Axial networks: horizontal ones mix along an image's width, vertical ones along its height.

An image is a grid of patches, which may be single pixels. A horizontal encoder treats each row as a
sequence and returns a map; a vertical encoder treats each column as a sequence and pools it to a
vector, so that the image becomes a set of vectors. A vertical encoder after a horizontal one sees
the whole image, at the cost of attention within rows and columns alone (Ho et al. 2019).
"""

from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from typing_extensions import override

from vae_jax.distributions import Shape
from vae_jax.errors import VaeJaxError
from vae_jax.given import Count
from vae_jax.interfaces import Part
from vae_jax.networks.layers import Conv, Dense
from vae_jax.networks.patches import from_patches, grid_of, to_patches
from vae_jax.networks.transformer import SMALL, Block, check_heads

ROW, COLUMN = 2, 1  # the axes of `[N, h, w, F]` along which rows and columns run


class AxialAttention(Part):
    """Transformer blocks in which the positions of a row attend to one another.

    Attributes:
        num_layers: the number of blocks.
        num_heads: the number of attention heads of each block, a divisor of the width.

    References:
        Ho et al. (2019), "Axial attention in multidimensional transformers".
    """

    num_layers: Count = 2
    num_heads: Count = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, rows, positions, width]` to the same shape."""
        h = x.reshape(-1, *x.shape[2:])
        for _ in range(self.num_layers):
            h, _ = Block(self.num_heads, causal=False)(h)
        return h.reshape(x.shape)


class AxialConvolution(Part):
    """Layers x + W gelu(k * LayerNorm(x)) whose kernels k lie along a row.

    A position then sees num_layers * (kernel_size - 1) / 2 positions to either side.

    Attributes:
        num_layers: the number of residual layers.
        kernel_size: the length of the kernels.
        kernel_init: the initializer of k and W; biases start at zero.
    """

    num_layers: Count = 2
    kernel_size: Count = 5
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, rows, positions, width]` to the same shape."""
        width = x.shape[-1]
        for _ in range(self.num_layers):
            h = Conv(width, (1, self.kernel_size), 1, True, self.kernel_init)(nn.LayerNorm()(x))
            x += Dense(width, kernel_init=self.kernel_init)(jax.nn.gelu(h))
        return x


class _Embedding(nn.Module):
    """An affine map of each position's inputs, plus learned embeddings of its row and column."""

    width: int

    @nn.compact
    def __call__(self, x: Array, grid: Shape) -> Array:
        """Inputs `[N, h or 1, w or 1, F]` to `[N, h, w, width]`, with (h, w) = `grid`."""
        num_rows, num_columns = grid
        rows = self.param("rows", SMALL, (num_rows, 1, self.width))
        columns = self.param("columns", SMALL, (num_columns, self.width))
        return Dense(self.width)(x) + rows + columns


def _along(axis: int, layers: nn.Module, x: Array) -> Array:
    """Layers that mix along axis 2, applied along another axis of x."""
    return layers(x.swapaxes(axis, 2)).swapaxes(axis, 2)


class _Encoder(Part):
    """An encoder of each row or column of patches separately; columns are pooled."""

    layers: Annotated[nn.Module, "layers, such as AxialAttention()"]
    width: Count = 64
    patch_size: Count = 4

    axis: ClassVar[int]  # ROW or COLUMN

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        if isinstance(self.layers, AxialAttention):
            check_heads(self, self.width, self.layers.num_heads)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to the map `[N, h, w, width]`, or its columns' means."""
        patches = to_patches(x, self.patch_size)
        h = _Embedding(self.width)(patches, patches.shape[1:3])
        h = _along(self.axis, self.layers, h)
        return nn.LayerNorm()(h.mean(COLUMN) if self.axis == COLUMN else h)


class HorizontalEncoder(_Encoder):
    """An encoder of each row of patches separately: features of a position depend on its row alone.

    From images `[N, H, W, C]` to the map `[N, h, w, width]`.

    Attributes:
        layers: an `AxialAttention` or `AxialConvolution`.
        width: the number of features of each position.
        patch_size: the side of the square patches, in pixels; patches that cross the image's edges
            are padded with zeros.
    """

    axis: ClassVar[int] = ROW


class VerticalEncoder(_Encoder):
    """An encoder that pools each column of patches separately: the image as a set of vectors.

    From images `[N, H, W, C]` to a vector for each column, its mean, `[N, w, width]`.

    Attributes:
        layers: an `AxialAttention` or `AxialConvolution`.
        width: the number of features of each vector.
        patch_size: the side of the square patches, in pixels; patches that cross the image's edges
            are padded with zeros.
    """

    axis: ClassVar[int] = COLUMN


class AxialEncoder(Part):
    """A horizontal encoder, then a vertical one on its map: every vector sees the whole image.

    Attributes:
        horizontal: the encoder from the image to a map.
        vertical: the encoder from the map to a set of vectors; its `patch_size` is in positions of
            the map.

    References:
        Ho et al. (2019), "Axial attention in multidimensional transformers".

    Example:
        Images of 28x28 pixels to a set of 7 vectors:

        >>> horizontal = HorizontalEncoder(AxialAttention())
        >>> vertical = VerticalEncoder(AxialAttention(), patch_size=1)
        >>> model = VAE(
        ...     encoder=AxialEncoder(horizontal, vertical), posterior=DiagonalGaussian((7, 8)), ...
        ... )
    """

    horizontal: HorizontalEncoder
    vertical: VerticalEncoder

    def __call__(self, x: Array) -> Array:
        """Images x `[N, H, W, C]` to `[N, w, width]`."""
        return self.vertical(self.horizontal(x))


class _Decoder(Part):
    """A decoder of each row or column of patches separately, from its latents to its pixels."""

    layers: Annotated[nn.Module, "layers, such as AxialAttention()"]
    features: Count = 16
    width: Count = 64
    patch_size: Count = 4

    axis: ClassVar[int]  # ROW or COLUMN

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        if isinstance(self.layers, AxialAttention):
            check_heads(self, self.width, self.layers.num_heads)

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents to `[N, H, W, features]`.

        Args:
            z: a map `[N, h, w, c]` with the height and width of the grid of patches; a set of
                vectors `[N, n, d]`, one for each row or column; or a single vector `[N, d]`.
            image_shape: (H, W, C).

        Raises:
            VaeJaxError: the latents do not fit the grid.
        """
        grid = grid_of(image_shape, self.patch_size)
        h = _Embedding(self.width)(_on_grid(z, grid, self.axis), grid)
        h = nn.LayerNorm()(_along(self.axis, self.layers, h))
        patches = Dense(self.patch_size**2 * self.features)(h)
        return from_patches(patches, image_shape, self.patch_size)


class HorizontalDecoder(_Decoder):
    """The mirror image of `HorizontalEncoder`: each row of the image from the latents of that row.

    Attributes:
        layers: an `AxialAttention` or `AxialConvolution`.
        features: the number of features of each pixel.
        width: the number of features of each patch within the layers.
        patch_size: the side of the square patches, in pixels.
    """

    axis: ClassVar[int] = ROW


class VerticalDecoder(_Decoder):
    """The mirror image of `VerticalEncoder`: each column of the image from that column's vector.

    Attributes:
        layers: an `AxialAttention` or `AxialConvolution`.
        features: the number of features of each pixel.
        width: the number of features of each patch within the layers.
        patch_size: the side of the square patches, in pixels.
    """

    axis: ClassVar[int] = COLUMN


class AxialDecoder(Part):
    """The mirror image of `AxialEncoder`: a vertical decoder to a map, then a horizontal decoder.

    Attributes:
        vertical: the decoder from the latents to a map with a position for each patch of the
            horizontal decoder.
        horizontal: the decoder from that map to the image.

    References:
        Ho et al. (2019), "Axial attention in multidimensional transformers".
    """

    vertical: VerticalDecoder
    horizontal: HorizontalDecoder

    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents z, as for the vertical decoder, and the image shape to `[N, H, W, features]`."""
        grid = grid_of(image_shape, self.horizontal.patch_size)
        return self.horizontal(self.vertical(z, grid), image_shape)


def _on_grid(z: Array, grid: Shape, axis: int) -> Array:
    """Latents as `[N, h or 1, w or 1, d]`; a set of vectors has one for each row or column."""
    height, width = grid
    number = width if axis == COLUMN else height
    match z.shape[1:]:
        case (_,):
            return z[:, None, None]
        case (n, _) if n == number:
            return jnp.expand_dims(z, axis)
        case (h, w, _) if (h, w) == grid:
            return z
    raise VaeJaxError(
        f"Latents of shape {z.shape[1:]} do not fit a grid of {height}x{width} patches: take a "
        f"vector (d,), a set of vectors ({number}, d) or a map ({height}, {width}, d)."
    )
