"""Augmentations: what may be done to a picture without making it another one.

They map bytes to bytes, before the protocol, so that every likelihood sees the values it is for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.ndimage import map_coordinates

from vae_jax import random
from vae_jax.data.datasets import Data
from vae_jax.errors import VaeJaxError


class Augmentation(Protocol):
    """A random map of one image: uint8 `[H, W, C]` and a key to uint8 `[H, W, C]`."""

    def __call__(self, image: Array, key: Array) -> Array:
        """An image in place of another."""
        ...


@dataclass(frozen=True)
class HorizontalFlip:
    """Left and right are exchanged, with probability one half."""

    def __call__(self, image: Array, key: Array) -> Array:
        """uint8 `[H, W, C]` to the same."""
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


@dataclass(frozen=True)
class RandomShift:
    """The image moves by up to so many pixels each way; its mirror image fills the border.

    Padding and cropping at random, as in He et al. (2016), section 4.2, with reflection in place of
    zeros.

    Attributes:
        pixels: the most in each direction, below the image's height and width.
    """

    pixels: int

    def __call__(self, image: Array, key: Array) -> Array:
        """uint8 `[H, W, C]` to the same."""
        if not 0 <= self.pixels < min(image.shape[:2]):
            raise ValueError(f"a shift by {self.pixels} pixels does not suit {image.shape}")
        border = (self.pixels, self.pixels)
        padded = jnp.pad(image, (border, border, (0, 0)), mode="reflect")
        top, left = jax.random.randint(key, (2,), 0, 2 * self.pixels + 1)
        return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def _to_bytes(values: Array) -> Array:
    return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)


@dataclass(frozen=True)
class RandomAffine:
    """The image is turned, stretched and moved a little; its mirror image fills the border.

    From the centre, the new pixel (y, x) is the old image's at diag(e^a, e^b) R(t) (y, x) + c: the
    angle t from U(-degrees, degrees), a and b from U(-stretch, stretch), so that proportions change
    too, and both of c from U(-shift, shift). Between pixels it is bilinear, rounded to the nearest
    byte.

    Attributes:
        degrees: the largest angle.
        stretch: the largest logarithm of a factor: 0.1 is about 10 %.
        shift: the farthest that it moves in each direction, in pixels and parts of them.
    """

    degrees: float
    stretch: float
    shift: float

    def __call__(self, image: Array, key: Array) -> Array:
        """uint8 `[H, W, C]` to the same."""
        height, width, _ = image.shape
        turn, *stretches, down, across = jax.random.uniform(key, (5,), minval=-1)
        angle = jnp.deg2rad(self.degrees) * turn
        scale_y, scale_x = (jnp.exp(self.stretch * each) for each in stretches)
        centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
        y, x = jnp.indices((height, width))
        y, x = y - centre_y, x - centre_x
        old_y = scale_y * (jnp.cos(angle) * y - jnp.sin(angle) * x) + self.shift * down
        old_x = scale_x * (jnp.sin(angle) * y + jnp.cos(angle) * x) + self.shift * across

        def moved(channel: Array) -> Array:
            places = [old_y + centre_y, old_x + centre_x]
            return map_coordinates(channel, places, order=1, mode="mirror")

        return _to_bytes(jax.vmap(moved, -1, -1)(image.astype(jnp.float32)))


@dataclass(frozen=True)
class BrightnessJitter:
    """The image times a factor from U(1 - amount, 1 + amount), rounded to the nearest byte.

    Attributes:
        amount: in [0, 1].
    """

    amount: float

    def __call__(self, image: Array, key: Array) -> Array:
        """uint8 `[H, W, C]` to the same."""
        return _to_bytes(image * (1 + self.amount * jax.random.uniform(key, (), minval=-1)))


@dataclass(frozen=True)
class ColourJitter:
    """`BrightnessJitter` for each channel by itself, which shifts the colour balance.

    Attributes:
        amount: in [0, 1].
    """

    amount: float

    def __call__(self, image: Array, key: Array) -> Array:
        """uint8 `[H, W, C]` to the same."""
        factor = 1 + self.amount * jax.random.uniform(key, (image.shape[-1],), minval=-1)
        return _to_bytes(image * factor)


def augmented(augmentations: Sequence[Augmentation], images: Array, keys: Array) -> Array:
    """Applies one augmentation after the other.

    Args:
        augmentations: each with noise of its own.
        images: uint8 `[B, H, W, C]`.
        keys: `[B]` typed keys, one for each image.

    Returns:
        uint8 `[B, H, W, C]`.
    """

    def one(image: Array, key: Array) -> Array:
        for position, augmentation in enumerate(augmentations):
            image = augmentation(image, random.indexed(key, position))
        return image

    return jax.vmap(one)(images, keys)


def check_augmentations(augmentations: Sequence[Augmentation], data: Data) -> None:
    """Each makes images of the data's shape out of such.

    Raises:
        VaeJaxError: one does not.
    """
    image = jax.ShapeDtypeStruct(data.image_shape, jnp.uint8)
    for augmentation in augmentations:
        try:
            key = jax.eval_shape(lambda: random.key(0))
            made = jax.eval_shape(augmentation, image, key)
            fits = (made.shape, made.dtype) == (image.shape, image.dtype)
            reason = f"makes {made.dtype} {made.shape} of uint8 {image.shape}"
        except (TypeError, ValueError) as error:
            fits, reason = False, str(error).splitlines()[0]
        if not fits:
            raise VaeJaxError(
                f"The augmentation {augmentation} does not suit {data.name} ({reason}): it must "
                "keep the images' shape and bytes."
            )
