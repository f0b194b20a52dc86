"""Randomness: the only file that makes, folds and splits keys.

Every draw is a function of (seed, purpose, step, global example index) alone, so a run does not
depend on the number of devices and resumes without any saved generator.

A purpose has a name, `purpose(keys, "posterior")`, which is folded in by its checksum with the
highest bit set; indices of examples, samples, layers and chunks are below 2^31. Thus no purpose can
coincide with an index, nor with a key that `jax.random` itself splits off, since
`jax.random.split(key)[i] == jax.random.fold_in(key, i)`. A key is either drawn from or folded,
never both.
"""

# The stubs of jax.numpy leave members partly unknown.
# pyright: strict, reportUnknownMemberType=false

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Integer, Key, Shaped

from vae_jax.cpu import threefry

Shape = tuple[int, ...]

DATA_SEED = 0
"""The seed of the noise that belongs to the data: binarization and dequantization for evaluation,
the same for every run."""


def key(seed: int | Integer[Array, ""]) -> Key[Array, ""]:
    """A typed key from which `jax.random` draws the same bits as from `jax.random.key`.

    Args:
        seed: a whole number from 0 to 2^32 - 1.
    """
    return threefry.key(seed)


def purpose(keys: Key[Array, "*shape"], name: str) -> Key[Array, "*shape"]:
    """Keys for one purpose; noise drawn from them is independent of the noise for other purposes.

    Args:
        keys: typed keys of any shape.
        name: the purpose of the noise, such as `"posterior"`.

    Example:
        >>> keys = random.image_keys("test", jnp.arange(100))
        >>> terms = model.apply(variables, x, random.purpose(keys, "evaluation"))
    """
    return _fold(keys, zlib.crc32(name.encode()) | 1 << 31)


def purposes(keys: Key[Array, "*shape"], *names: str) -> tuple[Key[Array, "*shape"], ...]:
    """Keys for several purposes from `keys`, in the order of their `names`."""
    return tuple(purpose(keys, name) for name in names)


def indexed(
    keys: Key[Array, "*#shape"], index: Integer[ArrayLike, "*#shape"]
) -> Key[Array, "*#shape"]:
    """Keys for the examples, samples, layers or chunks with the given indices.

    Args:
        keys: typed keys; their shape and the shape of `index` are broadcast against each other.
        index: whole numbers from 0 to 2^31 - 1.
    """
    return _fold(keys, index)


def image_keys(
    split: str, rows: Integer[ArrayLike, "B"], seed: int | Integer[Array, ""] = DATA_SEED
) -> Key[Array, "B"]:
    """The permanent keys of images, whatever batch they are in.

    Args:
        split: the name of the images' split; different splits have different noise.
        rows: the positions of the images in that split.
        seed: `DATA_SEED` if the noise is part of the data.
    """
    return indexed(purpose(key(seed), split), rows)


def draw(
    sampler: Callable[[Array, Shape], Array],
    key: Key[Array, "..."],
    sample_shape: Shape,
    shape: Shape,
) -> Shaped[Array, "..."]:
    """Noise of shape `[*sample_shape, *shape]`, from one key or from one key per example.

    Args:
        sampler: a function of a key and a shape, such as `jax.random.normal`.
        key: one typed key for all noise; or one for each example, `[B]` or `[K, B]`, the leading
            axes of `shape`: then the noise of an example depends on its own key alone, whatever
            the batch or the number of devices.
        sample_shape: the leading axes, of independent draws.
        shape: the shape `[*batch, *event]` of one draw.

    Example:
        A thousand draws from each of B distributions over vectors `[d]`, by B keys:

        >>> eps = random.draw(jax.random.normal, keys, (1000,), (B, d))  # [1000, B, d]
    """
    if key.ndim == 0:
        return sampler(key, sample_shape + shape)
    key_ndim = key.ndim

    def one(key: Array) -> Array:
        return sampler(key, sample_shape + shape[key_ndim:])

    per_example = jax.vmap(one, out_axes=len(sample_shape))
    return per_example(key.reshape(-1)).reshape(sample_shape + shape)


def draw_keys(key: Key[Array, "..."], sample_shape: Shape, shape: Shape) -> Key[Array, "..."]:
    """A key for each element of `[*sample_shape, *shape]`, for samplers that take parameters.

    Args:
        key: one typed key, or one for each example, as in `draw`.
        sample_shape: the leading axes, of independent draws.
        shape: the shape `[*batch, *event]` of one draw.
    """
    return draw(_spread, key, sample_shape, shape)


def _spread(key: Key[Array, ""], shape: Shape) -> Key[Array, "..."]:
    return indexed(key, jnp.arange(math.prod(shape)).reshape(shape))


def _fold(
    keys: Key[Array, "*#shape"], data: Integer[ArrayLike, "*#shape"]
) -> Key[Array, "*#shape"]:
    data = jnp.asarray(data, jnp.uint32)
    shape = jnp.broadcast_shapes(keys.shape, data.shape)
    if not shape:
        return jax.random.fold_in(keys, data)
    flat = jnp.broadcast_to(keys, shape).reshape(-1), jnp.broadcast_to(data, shape).reshape(-1)
    return jax.vmap(jax.random.fold_in)(*flat).reshape(shape)
