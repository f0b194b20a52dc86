"""Conversions between images, their patches, and sequences of tokens."""

import jax.numpy as jnp
from jax import Array

from vae_jax.distributions import Shape


def grid_of(size: Shape, patch_size: int) -> Shape:
    """The numbers (h, w) of patches of side `patch_size` that cover an image of `size` (H, W, ...).

    The last patches may cross an edge.
    """
    return tuple(-(-length // patch_size) for length in size[:2])


def to_patches(x: Array, patch_size: int) -> Array:
    """Images `[N, H, W, C]` to patches of side p, `[N, h, w, p * p * C]`, zero beyond the edges."""
    (h, w), p = grid_of(x.shape[1:], patch_size), patch_size
    below, right = h * p - x.shape[1], w * p - x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
    return x.reshape(-1, h, p, w, p, x.shape[-1]).swapaxes(2, 3).reshape(len(x), h, w, -1)


def from_patches(patches: Array, size: Shape, patch_size: int) -> Array:
    """The inverse of `to_patches`: patches of F features a pixel to `[N, H, W, F]`.

    Args:
        patches: `[N, h, w, p * p * F]` or `[N, h * w, p * p * F]`, with (h, w) from `grid_of`.
        size: (H, W, ...) of the image.
        patch_size: p.
    """
    (h, w), p = grid_of(size, patch_size), patch_size
    pixels = patches.reshape(len(patches), h, w, p, p, -1).swapaxes(2, 3)
    return pixels.reshape(len(patches), h * p, w * p, -1)[:, : size[0], : size[1]]


def to_tokens(z: Array) -> Array:
    """Latents as a sequence: a vector is one token, a map has a token for each position.

    Args:
        z: `[N, d]`, `[N, n, d]` or `[N, h, w, d]`.

    Returns:
        `[N, n, d]`.
    """
    return z[:, None] if z.ndim == 2 else z.reshape(len(z), -1, z.shape[-1])
