"""Convolutions as matrix products, which XLA's CPU backend runs on every core, in a loop too.

Within `lax.scan` XLA computes a convolution on one core. Here the same linear map is a product of
matrices: of tiles transformed by Winograd's minimal filtering where that saves multiplications, of
patches elsewhere. A depthwise convolution is a sum of shifted images.
"""

from collections.abc import Sequence
from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from vae_jax.cpu.batched_matmul import batched_matmul


def conv(x: Array, kernel: Array, stride: int) -> Array:
    """Strided cross-correlation with "SAME" padding; equals XLA's up to rounding.

    Args:
        x: `[N, H, W, I]`.
        kernel: `[h, w, I, O]`, or `[h, w, 1, I]` to convolve each of I > 1 features by itself.
        stride: along both axes.

    Returns:
        `[N, ceil(H / stride), ceil(W / stride), O]`.
    """
    if kernel.shape[2] == 1 < x.shape[-1]:
        return _by_shifts(x, kernel, stride)
    tile = _tile_size(x, kernel, stride)
    if tile is None:
        return _by_patches(x, kernel, stride)
    return _by_tiles(x, kernel, stride, tile)


# --- Padding ------------------------------------------------------------------------------------


def _padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding (low, high) that makes a strided convolution's output ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _counts(x: Array, kernel: Array, stride: int) -> tuple[list[int], list[int]]:
    """Outputs along both axes, and blocks of `stride` pixels that the kernel spans there."""
    return [-(-n // stride) for n in x.shape[1:3]], [-(-n // stride) for n in kernel.shape[:2]]


def _to_blocks(x: Array, kernel: Array, stride: int, blocks: Sequence[int]) -> Array:
    """Pads images to blocks of s x s pixels, s the stride: `[N, blocks[0], s, blocks[1], s, I]`.

    Pixels that no output sees, as a kernel smaller than its stride leaves, are cut off.
    """
    lows = [_padding(n, k, stride)[0] for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)]
    edges = [
        (low, count * stride - low - size, 0)
        for low, count, size in zip(lows, blocks, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return x.reshape(-1, blocks[0], stride, blocks[1], stride, x.shape[-1])


# --- Depthwise ----------------------------------------------------------------------------------


def _by_shifts(x: Array, kernel: Array, stride: int) -> Array:
    """The sum over the kernel's weights of the image shifted to each, times that weight."""
    pads = [_padding(n, k, stride) for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)]
    (rows, columns), _ = _counts(x, kernel, stride)
    padded = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    terms = [
        padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
        * kernel[i, j, 0]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return reduce(jnp.add, terms)


# --- Patches ------------------------------------------------------------------------------------


def _windows(x: Array, size: int, count: int, axis: int, to: int) -> Array:
    """The `size` entries that begin at each of `count` positions of an axis, along axis `to`."""
    shifted = (lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(size))
    return jnp.concatenate(list(shifted), to)


def _patches(x: Array, kernel: Array, stride: int) -> Array:
    """The pixels under the kernel at each output, `[N, ceil(H/stride), ceil(W/stride), h * w * I]`.

    Built from blocks, so that memory moves in long runs, forward and in the transpose: strided
    slices, whose transpose pads with strides, are several times slower.
    """
    height, width, features, _ = kernel.shape
    (rows, columns), (down, across) = _counts(x, kernel, stride)
    x = _to_blocks(x, kernel, stride, (rows + down - 1, columns + across - 1))
    x = x.reshape(*x.shape[:4], -1)
    x = _windows(x, across, columns, axis=3, to=4)[..., : width * features]
    x = _windows(x.swapaxes(2, 3), down, rows, axis=1, to=3)[..., :height, :]
    return x.reshape(*x.shape[:3], -1)


def _by_patches(x: Array, kernel: Array, stride: int) -> Array:
    patches = _patches(x, kernel, stride)
    # Flat, and with the kernel transposed in advance; otherwise gradients transpose the patches.
    transposed = lax.optimization_barrier(kernel.reshape(-1, kernel.shape[-1]).T)
    flat = patches.reshape(-1, transposed.shape[1])
    y = lax.dot_general(flat, transposed, (((1,), (1,)), ((), ())))
    return y.reshape(*patches.shape[:3], -1)


# --- Winograd's tiles ---------------------------------------------------------------------------


def _minimal_filter(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices A, G, B with sum_j g_j d_(i+j) = (A ((G g) * (B d)))_i for `outputs` positions i.

    One multiplication for each of the outputs + taps - 1 entries of d, at most 8. The matrices are
    the transpose of multiplying two polynomials by their values at as many points: 0, 1, -1, 2,
    ..., and infinity (Winograd 1980; Lavin & Gray 2016, section 4).
    """
    inputs = outputs + taps - 1

    def values(coefficients: int) -> np.ndarray:
        points = [0, 1, -1, 2, -0.5, 0.5, -2][: inputs - 1]
        finite = np.vander(points, coefficients, increasing=True)
        return np.vstack([finite, np.eye(coefficients)[-1:]])

    return values(outputs).T, values(taps), np.linalg.inv(values(inputs)).T


def _tile_size(x: Array, kernel: Array, stride: int) -> int | None:
    """The side of the tiles of outputs; None where patches are faster.

    Counts multiplications, those of the transforms twice, since these wait for memory, and 1.1 for
    each of the patches', which wait for it too (both factors from layers timed either way). Blocks
    of few features would move memory in short runs, and bfloat16 is too coarse for the transforms.
    """
    height, width, in_features, features = kernel.shape
    (rows, columns), (taps, across) = _counts(x, kernel, stride)
    if taps != across or taps not in (2, 3):
        return None
    if jnp.finfo(x.dtype).bits < 32 or stride * in_features < 16:
        return None
    block = stride**2 * in_features

    def cost(tile: int) -> float:
        inputs = tile + taps - 1
        transforms = 2 * inputs**3 * block + tile * inputs * (inputs + tile) * features
        each = inputs**2 * block * features + 2 * transforms
        return -(-rows // tile) * -(-columns // tile) * each

    tile = min((2, 4, 9 - taps), key=cost)
    of_patches = 1.1 * rows * columns * height * width * in_features * features
    return tile if cost(tile) < of_patches else None


def _along_both(matrix: np.ndarray, x: Array) -> Array:
    """The matrix applied along the first axis and the second, `[i, i, ...]` to `[o, o, ...]`."""
    o, i = matrix.shape
    rows = lax.dot(matrix, x.reshape(i, -1)).reshape(o, i, -1)
    each = jnp.broadcast_to(matrix, (o, o, i))
    return lax.dot_general(each, rows, (((2,), (1,)), ((0,), (0,)))).reshape(o, o, *x.shape[2:])


def _by_tiles(x: Array, kernel: Array, stride: int, tile: int) -> Array:
    """Winograd's algorithm in two dimensions, on blocks of stride x stride pixels.

    Positions come first and images after them, so that memory moves in long runs.
    """
    in_features, features = kernel.shape[2:]
    (rows, columns), (taps, _) = _counts(x, kernel, stride)
    down, across = -(-rows // tile), -(-columns // tile)
    inputs = tile + taps - 1
    a, g, b = (one.astype(x.dtype) for one in _minimal_filter(tile, taps))
    num, block = x.shape[0], stride**2 * in_features

    x = _to_blocks(x, kernel, stride, (down * tile + taps - 1, across * tile + taps - 1))
    # Row by row of a block; all rows at once, XLA would transpose them element by element.
    x = jnp.concatenate([x[:, :, i].transpose(1, 2, 0, 3, 4) for i in range(stride)], -2)
    x = x.reshape(*x.shape[:3], block)
    x = jnp.stack([x[i * tile : i * tile + inputs] for i in range(down)], 2)
    x = jnp.stack([x[:, j * tile : j * tile + inputs] for j in range(across)], 3)
    x = lax.optimization_barrier(x)  # [inputs, inputs, down, across, N, block]

    missing = [(0, taps * stride - size, 0) for size in kernel.shape[:2]]
    kernel = lax.pad(kernel, jnp.zeros((), x.dtype), [*missing, (0, 0, 0), (0, 0, 0)])
    kernel = kernel.reshape(taps, stride, taps, stride, in_features, features).swapaxes(1, 2)
    filters = _along_both(g, kernel.reshape(taps, taps, block, features))
    tiles = _along_both(b, x).reshape(inputs**2, -1, block)
    y = batched_matmul(tiles, filters.reshape(inputs**2, block, features))
    y = _along_both(a, y.reshape(inputs, inputs, down, across, num, features))
    y = y.transpose(4, 2, 0, 3, 1, 5).reshape(num, down * tile, across * tile, features)
    return y[:, :rows, :columns]
