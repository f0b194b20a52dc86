"""Between images, their patches, and sequences of tokens."""

import jax.numpy as jnp
from jax import Array

from vae_jax.distributions import Shape


def grid_of(spatial: Shape, patch_size: int) -> Shape:
    """(h, w), how many patches cover an image of (H, W, ...); the last may reach beyond it."""
    return tuple(-(-size // patch_size) for size in spatial[:2])


def to_patches(x: Array, patch_size: int) -> Array:
    """Images `[N, H, W, C]` to `[N, h, w, p * p * C]`, zero beyond the image's edges."""
    (h, w), p = grid_of(x.shape[1:], patch_size), patch_size
    below, right = h * p - x.shape[1], w * p - x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
    return x.reshape(-1, h, p, w, p, x.shape[-1]).swapaxes(2, 3).reshape(len(x), h, w, -1)


def from_patches(patches: Array, spatial: Shape, patch_size: int) -> Array:
    """The inverse of `to_patches` for images of (H, W): `[N, h, w, p * p * C]` to `[N, H, W, C]`.

    Args:
        patches: as many as `grid_of` says; `[N, h * w, p * p * C]` will do.
        spatial: (H, W, ...).
        patch_size: p.
    """
    (h, w), p = grid_of(spatial, patch_size), patch_size
    pixels = patches.reshape(len(patches), h, w, p, p, -1).swapaxes(2, 3)
    return pixels.reshape(len(patches), h * p, w * p, -1)[:, : spatial[0], : spatial[1]]


def to_tokens(z: Array) -> Array:
    """Latents as a sequence: a vector is one token, a map one for each of its places.

    Args:
        z: `[N, d]`, `[N, n, d]` or `[N, h, w, d]`.

    Returns:
        `[N, n, d]`.
    """
    return z[:, None] if z.ndim == 2 else z.reshape(len(z), -1, z.shape[-1])
