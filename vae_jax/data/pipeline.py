"""From stored bytes to the x that a likelihood scores: protocols and the order of batches.

Everything here is a pure function of a seed, a step and the positions of the images, so that a run
does not depend on the number of devices, and a resumed one needs no saved iterator.
"""

import functools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from vae_jax import random
from vae_jax.interfaces import Support

SplitName = Literal["train", "valid", "test"]

T = TypeVar("T")


@dataclass(frozen=True)
class Protocol:
    """A map from uint8 pixels v to the observed x.

    Attributes:
        name: the name by which users choose it.
        support: the values that x takes, which the likelihood must support.
        resampled: whether training draws new noise each time it sees an image. Evaluation splits,
            and training images if this is False, keep the noise of `random.image_keys`.
        description: one clause for the records of results.
        apply: the function from images, uint8 `[B, H, W, C]`, and typed keys `[B]` to x, float32
            `[B, H, W, C]`.
    """

    name: str
    support: Support
    resampled: bool
    description: str
    apply: Callable[[Array, Array], Array]


def _drawn_once(x: Array) -> Array:
    """x behind a barrier, without which XLA draws its noise again in each operation that uses x."""
    return lax.optimization_barrier(x)


def _bernoulli(images: Array, keys: Array) -> Array:
    flat = images.reshape(len(images), -1)  # loops over one long axis vectorize
    u = random.draw(jax.random.uniform, keys, (), flat.shape)
    x = 255 * u < flat  # u is in [0, 1): 0 is never on, 255 always
    return _drawn_once(x.astype(jnp.float32).reshape(images.shape))


def _threshold(images: Array, keys: Array) -> Array:
    return (images > 127).astype(jnp.float32)


def _grey(images: Array, keys: Array) -> Array:
    return images.astype(jnp.float32) / 255


def _five_bits(images: Array, keys: Array) -> Array:
    return (images // 8).astype(jnp.float32) / 31


def _dequantize(images: Array, keys: Array) -> Array:
    # u is an odd multiple of 2^-16, so v + u is exact in float32 and x never rounds to 0 or 1.
    bits = random.draw(partial(jax.random.bits, dtype=jnp.uint16), keys, (), images.shape)
    u = (bits | 1).astype(jnp.float32) / 65536
    return _drawn_once((images + u) / 256)


_RESAMPLED = "drawn at each presentation in training and once for evaluation"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="dynamic",
            support="binary",
            resampled=True,
            description=f"x ~ Bernoulli(v/255), {_RESAMPLED}",
            apply=_bernoulli,
        ),
        Protocol(
            name="fixed",
            support="binary",
            resampled=False,
            description="x ~ Bernoulli(v/255), drawn once per image",
            apply=_bernoulli,
        ),
        Protocol(
            name="threshold",
            support="binary",
            resampled=False,
            description="x = 1 where v > 127, else 0",
            apply=_threshold,
        ),
        Protocol(
            name="grey",
            support="uint8",
            resampled=False,
            description="x = v/255, the 256 grey levels",
            apply=_grey,
        ),
        Protocol(
            name="five_bits",
            support="uint5",
            resampled=False,
            description="x = floor(v/8)/31, the 32 grey levels of five bits",
            apply=_five_bits,
        ),
        Protocol(
            name="dequantize",
            support="unit",
            resampled=True,
            description=f"x = (v + u)/256 with u ~ U(0, 1), {_RESAMPLED}",
            apply=_dequantize,
        ),
    )
}


@functools.lru_cache(maxsize=16)  # two epochs for each of a few seeds that train side by side
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(num_images).astype(np.int32)


def batch_indices(
    seed: int, first_step: int, num_steps: int, num_images: int, batch_size: int
) -> np.ndarray:
    """The images of training steps.

    Step s takes positions s * batch_size to (s + 1) * batch_size of an endless sequence of
    permutations, one per epoch: every image is seen exactly once in each epoch, and a batch may
    straddle two.

    Args:
        seed: the seed of the run, at least 0.
        first_step: the first of the steps, counted from 0 at the start of the run.
        num_steps: the number of steps.
        num_images: the number of images in the training split.
        batch_size: the number of images in a step, over all devices; it may exceed num_images.

    Returns:
        Positions in the training split, int32 `[num_steps, batch_size]`, a function of (seed, step)
        alone.
    """
    start = first_step * batch_size
    stop = start + num_steps * batch_size
    epochs = range(start // num_images, stop // num_images + 1)
    order = np.concatenate([_permutation(seed, epoch, num_images) for epoch in epochs])
    offset = start % num_images
    return order[offset : offset + stop - start].reshape(num_steps, batch_size)


def prefetched(items: Iterator[T]) -> Generator[T]:
    """Yield the same `items`; a thread makes each while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item
