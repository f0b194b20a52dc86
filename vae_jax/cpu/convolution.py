"""A convolution that is fast inside a scan on the CPU, and its transpose.

XLA's CPU backend has no threaded convolution inside a loop, so there the same linear map is
computed as products of matrices: of the transformed tiles of Winograd's minimal filtering where
that saves products, else of patches. Accelerators keep the library's convolution.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from vae_jax.cpu.products import products
from vae_jax.interfaces import Shape

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding (low, high) that makes a strided convolution's output ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _pads(spatial: Sequence[int], kernel: Array, stride: int) -> list[tuple[int, int]]:
    return [_same_padding(n, k, stride) for n, k in zip(spatial, kernel.shape[:2], strict=True)]


def _blocks(x: Array, kernel: Array, stride: int) -> tuple[list[int], list[int]]:
    """Places of the kernel along both axes, and the blocks of `stride` pixels that it reaches."""
    return [-(-n // stride) for n in x.shape[1:3]], [-(-n // stride) for n in kernel.shape[:2]]


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
    (rows, columns), (down, across) = _blocks(x, kernel, stride)
    x = _pad(x, kernel, stride, (rows + down - 1, columns + across - 1))
    x = x.reshape(*x.shape[:4], -1)
    x = _windows(x, across, columns, axis=3, to=4)[..., : width * channels]
    x = _windows(x.swapaxes(2, 3), down, rows, axis=1, to=3)[..., :height, :]
    return x.reshape(*x.shape[:3], -1)


def _minimal_filter(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices A, G, B with sum_j g_j d_(i+j) = (A ((G g) * (B d)))_i for `outputs` places i.

    One product for each of outputs + taps - 1 entries of d, at most 8. They come from the product
    of two polynomials by its values at as many points, infinity and 0, 1, -1, 2, ..., transposed
    (Winograd 1980; Lavin & Gray 2016, section 4).
    """
    inputs = outputs + taps - 1

    def values(coefficients: int) -> np.ndarray:
        points = [0, 1, -1, 2, -0.5, 0.5, -2][: inputs - 1]
        finite = np.vander(points, coefficients, increasing=True)
        return np.vstack([finite, np.eye(coefficients)[-1:]])

    return values(outputs).T, values(taps), np.linalg.inv(values(inputs)).T


def _tile(x: Array, kernel: Array, stride: int) -> int | None:
    """Side of the tiles of outputs, or None where patches are faster.

    Counts multiplications, those of the transforms twice, for these wait for memory, but so do
    patches (the bounds are from layers timed both ways). Blocks of few channels would be moved in
    short pieces; bfloat16 is too coarse.
    """
    height, width, channels, features = kernel.shape
    (rows, columns), (taps, across) = _blocks(x, kernel, stride)
    if taps != across or taps not in (2, 3):
        return None
    if jnp.finfo(x.dtype).bits < 32 or stride * channels < 16:
        return None
    block = stride**2 * channels

    def cost(tile: int) -> float:
        inputs = tile + taps - 1
        transforms = 2 * inputs**3 * block + tile * inputs * (inputs + tile) * features
        each = inputs**2 * block * features + 2 * transforms
        return -(-rows // tile) * -(-columns // tile) * each

    tile = min((2, 4, 9 - taps), key=cost)
    of_patches = 1.1 * rows * columns * height * width * channels * features
    return tile if cost(tile) < of_patches else None


def _square(matrix: np.ndarray, x: Array) -> Array:
    """The matrix times the first axis and times the second, `[i, i, ...]` to `[o, o, ...]`."""
    o, i = matrix.shape
    rows = lax.dot(matrix, x.reshape(i, -1)).reshape(o, i, -1)
    each = jnp.broadcast_to(matrix, (o, o, i))
    return lax.dot_general(each, rows, (((2,), (1,)), ((0,), (0,)))).reshape(o, o, *x.shape[2:])


def _by_tiles(x: Array, kernel: Array, stride: int, tile: int) -> Array:
    """Winograd's algorithm in two dimensions, on blocks of stride x stride pixels.

    Places lead and images follow, so that memory is moved in long pieces.
    """
    channels, features = kernel.shape[2:]
    (rows, columns), (taps, _) = _blocks(x, kernel, stride)
    down, across = -(-rows // tile), -(-columns // tile)
    inputs = tile + taps - 1
    a, g, b = (one.astype(x.dtype) for one in _minimal_filter(tile, taps))
    num, block = x.shape[0], stride**2 * channels

    x = _pad(x, kernel, stride, (down * tile + taps - 1, across * tile + taps - 1))
    # Each of a block's rows by itself: all at once, XLA would turn them element by element.
    x = jnp.concatenate([x[:, :, i].transpose(1, 2, 0, 3, 4) for i in range(stride)], -2)
    x = x.reshape(*x.shape[:3], block)
    x = jnp.stack([x[i * tile : i * tile + inputs] for i in range(down)], 2)
    x = jnp.stack([x[:, j * tile : j * tile + inputs] for j in range(across)], 3)
    x = lax.optimization_barrier(x)  # [inputs, inputs, down, across, N, block]

    missing = [(0, taps * stride - size, 0) for size in kernel.shape[:2]]
    kernel = lax.pad(kernel, jnp.zeros((), x.dtype), [*missing, (0, 0, 0), (0, 0, 0)])
    kernel = kernel.reshape(taps, stride, taps, stride, channels, features).swapaxes(1, 2)
    filters = _square(g, kernel.reshape(taps, taps, block, features))
    tiles = _square(b, x).reshape(inputs**2, -1, block)
    y = products(tiles, filters.reshape(inputs**2, block, features))
    y = _square(a, y.reshape(inputs, inputs, down, across, num, features))
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
