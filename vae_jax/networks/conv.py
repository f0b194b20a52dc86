"""Convolutional networks, and a convolution that is fast inside a scan on the CPU.

XLA's CPU backend has no threaded convolution inside a loop, so there the same linear map is
computed as products of matrices: of the transformed tiles of Winograd's minimal filtering where
that saves products, else of patches. Accelerators keep the library's convolution.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
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


def _blocks(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Places of the kernel on an axis, and the blocks of `stride` pixels that it reaches across."""
    return -(-size // stride), -(-kernel // stride)


def _pad(x: Array, kernel: Array, stride: int, blocks: Sequence[int]) -> Array:
    """Pads, or cuts where a stride skips pixels, to `[N, blocks[0], s, blocks[1], s, C]`."""
    lows = [low for low, _ in _pads(x.shape[1:3], kernel, stride)]
    edges = [
        (low, count * stride - low - size, 0)
        for low, count, size in zip(lows, blocks, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return x.reshape(-1, blocks[0], stride, blocks[1], stride, x.shape[-1])


def _windows(x: Array, size: int, count: int, axis: int, to: int) -> Array:
    """Each of `count` places on an axis beside the `size - 1` after it, along axis `to`."""
    shifted = (lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(size))
    return jnp.concatenate(list(shifted), to)


def _patches(x: Array, kernel: Array, stride: int) -> Array:
    """What the kernel sees of each place, `[N, ceil(H/stride), ceil(W/stride), h * w * I]`.

    Of blocks of stride x stride pixels, so that memory is moved in long pieces, forward and in the
    transpose: strided slices, and the padding that is theirs, are several times slower.
    """
    height, width, channels, _ = kernel.shape
    (rows, down), (columns, across) = (
        _blocks(n, k, stride) for n, k in zip(x.shape[1:3], (height, width), strict=True)
    )
    x = _pad(x, kernel, stride, (rows + down - 1, columns + across - 1))
    x = x.reshape(*x.shape[:4], -1)
    x = _windows(x, across, columns, axis=3, to=4)[..., : width * channels]
    x = _windows(x.swapaxes(2, 3), down, rows, axis=1, to=3)[..., :height, :]
    return x.reshape(*x.shape[:3], -1)


def _minimal_filter(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices A, G, B with sum_j g_j d_(i+j) = (A ((G g) * (B d)))_i for `outputs` places i.

    One product for each of outputs + taps - 1 entries of d. They come from the product of two
    polynomials by its values at as many points, 0, 1, -1, 2, -1/2 and infinity, transposed
    (Winograd 1980; Lavin & Gray 2016, section 4).
    """
    inputs = outputs + taps - 1

    def values(coefficients: int) -> np.ndarray:
        finite = np.vander([0, 1, -1, 2, -0.5][: inputs - 1], coefficients, increasing=True)
        return np.vstack([finite, np.eye(coefficients)[-1:]])

    return values(outputs).T, values(taps), np.linalg.inv(values(inputs)).T


def _tile(x: Array, kernel: Array, stride: int) -> int | None:
    """Side of the tiles of outputs, 2 or 4, or None where patches are about as fast.

    Counts multiplications, of the transforms too; bfloat16 is too coarse for them.
    """
    height, width, channels, features = kernel.shape
    (rows, taps), (columns, across) = (
        _blocks(n, k, stride) for n, k in zip(x.shape[1:3], (height, width), strict=True)
    )
    if taps != across or taps not in (2, 3) or (height % stride, width % stride) != (0, 0):
        return None
    if jnp.finfo(x.dtype).bits < 32:
        return None
    block = stride**2 * channels

    def products(tile: int) -> float:
        inputs = (tile + taps - 1) ** 2
        each = inputs * (inputs * block + block * features + tile**2 * features)
        return -(-rows // tile) * -(-columns // tile) * each

    tile = min((2, 4), key=products)
    return tile if products(tile) < 0.7 * rows * columns * taps**2 * block * features else None


def _by_tiles(x: Array, kernel: Array, stride: int, tile: int) -> Array:
    """Winograd's algorithm in two dimensions, on blocks of stride x stride pixels.

    Places lead and images follow, so that memory is moved in long pieces; the transforms are
    products with the matrices' squares.
    """
    height, width, channels, features = kernel.shape
    (rows, taps), (columns, _) = (
        _blocks(n, k, stride) for n, k in zip(x.shape[1:3], (height, width), strict=True)
    )
    down, across = -(-rows // tile), -(-columns // tile)
    inputs = tile + taps - 1
    a, g, b = (np.kron(one, one).astype(x.dtype) for one in _minimal_filter(tile, taps))
    num, block = x.shape[0], stride**2 * channels

    x = _pad(x, kernel, stride, (down * tile + taps - 1, across * tile + taps - 1))
    x = lax.optimization_barrier(x.transpose(1, 3, 0, 2, 4, 5).reshape(*x.shape[1:4:2], num, block))
    x = jnp.stack([x[i * tile : i * tile + inputs] for i in range(down)], 2)
    x = lax.optimization_barrier(x)
    x = jnp.stack([x[:, j * tile : j * tile + inputs] for j in range(across)], 3)
    x = lax.optimization_barrier(x)  # [inputs, inputs, down, across, N, block]

    kernel = kernel.reshape(taps, stride, taps, stride, channels, features).swapaxes(1, 2)
    filters = lax.dot(g, kernel.reshape(taps**2, -1)).reshape(-1, block, features)
    tiles = lax.dot(b, x.reshape(inputs**2, -1)).reshape(inputs**2, -1, block)
    products = lax.dot_general(tiles, filters, (((2,), (1,)), ((0,), (0,))))
    y = lax.dot(a, products.reshape(inputs**2, -1)).reshape(tile, tile, down, across, num, features)
    y = y.transpose(4, 2, 0, 3, 1, 5).reshape(num, down * tile, across * tile, features)
    return y[:, :rows, :columns]


def conv(x: Array, kernel: Array, stride: int) -> Array:
    """Strided cross-correlation with "SAME" padding.

    Args:
        x: `[N, H, W, I]`.
        kernel: `[h, w, I, O]`.
        stride: in both directions.

    Returns:
        `[N, ceil(H/stride), ceil(W/stride), O]`.
    """

    tile = _tile(x, kernel, stride)

    def as_matrix_products(x: Array, kernel: Array) -> Array:
        if tile is not None:
            return _by_tiles(x, kernel, stride, tile)
        patches = _patches(x, kernel, stride)
        # Flat, and with the matrix turned first, or gradients would turn the patches.
        turned = lax.optimization_barrier(kernel.reshape(-1, kernel.shape[-1]).T)
        y = lax.dot_general(patches.reshape(-1, turned.shape[1]), turned, (((1,), (1,)), ((), ())))
        return y.reshape(*patches.shape[:3], -1)

    library = partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=_pads(x.shape[1:3], kernel, stride),
        dimension_numbers=_LAYOUT,
    )
    return lax.platform_dependent(x, kernel, cpu=as_matrix_products, default=library)


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
    image = jax.ShapeDtypeStruct((x.shape[0], *spatial, kernel.shape[2]), x.dtype)
    return jax.linear_transpose(partial(conv, kernel=kernel, stride=stride), image)(x)[0]


def halvings(image_shape: Shape, num: int) -> list[Shape]:
    """(H, W) of an image and of its halves, the coarsest first: `num + 1` sizes."""
    sizes = [tuple(image_shape[:2])]
    for _ in range(num):
        height, width = sizes[0]
        sizes.insert(0, (-(-height // 2), -(-width // 2)))
    return sizes


class ResidualBlock(nn.Module):
    """x + W ac(C ac(x)), C a 3x3 and W a 1x1 convolution (van den Oord et al. 2017, section 4.1).

    Attributes:
        activation: ac.
        kernel_init: of both; biases start at zero.
    """

    activation: Callable[[Array], Array]
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` to the same shape."""
        channels = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 3, channels, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        h = self.activation(conv(self.activation(x), kernel, stride=1) + bias)
        return x + nn.Dense(channels, kernel_init=self.kernel_init)(h)


class ConvEncoder(nn.Module):
    """Strided convolutions that halve the image, residual blocks, then one dense layer.

    Attributes:
        features: channels of each map; each has half the height and width of the one before.
        dense: width of the dense layer on the flattened last map; None leaves it a map.
        kernel_size: side of the square kernels.
        residual_blocks: on the last map.
        activation: after every layer.
        kernel_init: of every layer; biases start at zero.
    """

    features: Sequence[int]
    dense: int | None
    kernel_size: int = 4
    residual_blocks: int = 0
    activation: Callable[[Array], Array] = jax.nn.relu
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to `[N, dense]`, or to the map `[N, h, w, features[-1]]`."""
        for layer, width in enumerate(self.features):
            shape = (self.kernel_size, self.kernel_size, x.shape[-1], width)
            kernel = self.param(f"kernel_{layer}", self.kernel_init, shape)
            bias = self.param(f"bias_{layer}", nn.initializers.zeros, (width,))
            x = self.activation(conv(x, kernel, stride=2) + bias)
        for _ in range(self.residual_blocks):
            x = ResidualBlock(self.activation, self.kernel_init)(x)
        if self.dense is None:
            return self.activation(x) if self.residual_blocks else x
        x = x.reshape(x.shape[0], -1)
        return self.activation(nn.Dense(self.dense, kernel_init=self.kernel_init)(x))


class ConvDecoder(nn.Module):
    """One dense layer, then transposed convolutions that double the map up to the image's size.

    Attributes:
        features: channels of each map from the coarsest to the full-size one, so there are
            `len(features) - 1` doublings; any image size is met exactly.
        dense: width of the dense layer before the coarsest map; None where the latents are a map
            of that size themselves, which a 3x3 convolution takes instead.
        kernel_size: side of the square kernels.
        residual_blocks: on the coarsest map.
        activation: after every layer.
        affine_last: leave it out after the last layer, as where that has a channel for each
            parameter of a pixel and the likelihood's own affine map adds nothing.
        kernel_init: of every layer; biases start at zero.
    """

    features: Sequence[int]
    dense: int | None
    kernel_size: int = 4
    residual_blocks: int = 0
    activation: Callable[[Array], Array] = jax.nn.relu
    affine_last: bool = False
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents `[N, ...]`, flattened, or maps `[N, h, w, D]`, to `[N, H, W, features[-1]]`.

        Raises:
            ValueError: `dense` is None and the latents are no map of the coarsest size.
        """
        sizes = halvings(image_shape, len(self.features) - 1)
        if self.dense is None:
            x = self._from_map(z, sizes[0])
        else:
            x = self._from_vector(z, sizes[0], self.dense)
        for _ in range(self.residual_blocks):
            x = ResidualBlock(self.activation, self.kernel_init)(x)
        if self.residual_blocks:
            x = self.activation(x)
        for layer, (size, channels) in enumerate(zip(sizes[1:], self.features[1:], strict=True)):
            shape = (self.kernel_size, self.kernel_size, channels, x.shape[-1])
            kernel = self.param(f"kernel_{layer}", self.kernel_init, shape)
            bias = self.param(f"bias_{layer}", nn.initializers.zeros, (channels,))
            x = conv_transpose(x, kernel, 2, size) + bias
            if layer + 2 < len(self.features) or not self.affine_last:
                x = self.activation(x)
        return x

    def _from_vector(self, z: Array, size: Shape, dense: int) -> Array:
        x = z.reshape(z.shape[0], -1)
        x = self.activation(nn.Dense(dense, kernel_init=self.kernel_init)(x))
        width = size[0] * size[1] * self.features[0]
        x = self.activation(nn.Dense(width, kernel_init=self.kernel_init)(x))
        return x.reshape(-1, *size, self.features[0])

    def _from_map(self, z: Array, size: Shape) -> Array:
        if z.shape[1:-1] != tuple(size):
            raise ValueError(
                f"the latents have the shape {z.shape[1:]}, the decoder's coarsest map is "
                f"{size[0]}x{size[1]} pixels."
            )
        kernel = self.param("kernel_map", self.kernel_init, (3, 3, z.shape[-1], self.features[0]))
        bias = self.param("bias_map", nn.initializers.zeros, (self.features[0],))
        return self.activation(conv(z, kernel, stride=1) + bias)
