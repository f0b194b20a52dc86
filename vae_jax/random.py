"""Randomness: the only file that makes, folds and splits keys.

Every draw is a function of (seed, purpose, step, global example index) alone, so a run does not
depend on the number of devices and resumes without any saved generator.

A purpose has a name, `purpose(keys, "posterior")`, which is folded in by its checksum with the
highest bit set; indices of examples, samples, layers and chunks are below 2^31. So no purpose can
meet an index, nor what `jax.random` itself splits off, for
`jax.random.split(key)[i] == jax.random.fold_in(key, i)`. A key is either drawn from or folded,
never both.
"""

# pyright: strict, reportUnknownMemberType=false

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vae_jax.cpu import threefry

Shape = tuple[int, ...]

DATA_SEED = 0
"""The seed of the noise that belongs to the data: binarization and dequantization for evaluation,
the same for every run."""


def key(seed: Array | int) -> Array:
    """A typed key, from which `jax.random` draws the same bits as from `jax.random.key`.

    Args:
        seed: a whole number below 2^32, scalar.
    """
    return threefry.key(seed)


def purpose(keys: Array, name: str) -> Array:
    """Keys for one purpose: noise drawn from them is independent of that for any other name.

    Args:
        keys: typed keys of any shape.
        name: what the noise is for, such as `"posterior"`.
    """
    return _fold(keys, zlib.crc32(name.encode()) | 1 << 31)


def purposes(keys: Array, *names: str) -> tuple[Array, ...]:
    """Keys for several purposes, one after the other."""
    return tuple(purpose(keys, name) for name in names)


def indexed(keys: Array, index: ArrayLike) -> Array:
    """Keys for the examples, samples, layers or chunks with these indices.

    Args:
        keys: typed keys; their shape broadcasts against that of `index`.
        index: whole numbers from 0 to 2^31 - 1.
    """
    return _fold(keys, index)


def image_keys(split: str, rows: ArrayLike, seed: int = DATA_SEED) -> Array:
    """The keys that belong to images for good, one for each, whatever batch they are in.

    Args:
        split: the split the images are from; different splits have different noise.
        rows: positions `[B]` of the images in that split.
        seed: `DATA_SEED` where the noise is part of the data.

    Returns:
        Typed keys `[B]`.
    """
    return indexed(purpose(key(seed), split), rows)


def draw(
    sampler: Callable[[Array, Shape], Array], key: Array, sample_shape: Shape, shape: Shape
) -> Array:
    """Noise of shape `[*sample_shape, *shape]`, from one key or from one key per example.

    Args:
        sampler: `(key, shape) -> noise`, such as `jax.random.normal`.
        key: one typed key for everything; or keys `[B]` (or `[K, B]`), the leading axes of `shape`:
            then the noise of example b depends on `key[b]` alone, whatever the batch or the number
            of devices around it.
        sample_shape: leading axes of independent draws.
        shape: `[*batch, *event]`.
    """
    if key.ndim == 0:
        return sampler(key, sample_shape + shape)
    key_ndim = key.ndim

    def one(key: Array) -> Array:
        return sampler(key, sample_shape + shape[key_ndim:])

    per_example = jax.vmap(one, out_axes=len(sample_shape))
    return per_example(key.reshape(-1)).reshape(sample_shape + shape)


def draw_keys(key: Array, sample_shape: Shape, shape: Shape) -> Array:
    """A key for each element of `[*sample_shape, *shape]`; `key` as in `draw`."""
    return draw(_spread, key, sample_shape, shape)


def _spread(key: Array, shape: Shape) -> Array:
    return indexed(key, jnp.arange(math.prod(shape)).reshape(shape))


def _fold(keys: Array, data: ArrayLike) -> Array:
    data = jnp.asarray(data, jnp.uint32)
    shape = jnp.broadcast_shapes(keys.shape, data.shape)
    if not shape:
        return jax.random.fold_in(keys, data)
    flat = jnp.broadcast_to(keys, shape).reshape(-1), jnp.broadcast_to(data, shape).reshape(-1)
    return jax.vmap(jax.random.fold_in)(*flat).reshape(shape)
