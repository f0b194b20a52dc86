"""Augmentations: random changes that leave a picture's content as it is.

They map bytes to bytes, before the protocol, so that every likelihood sees values of its support.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.ndimage import map_coordinates

from vae_jax import random
from vae_jax.data.datasets import Data
from vae_jax.errors import VaeJaxError
from vae_jax.given import Checked, Index, Proportion, Weight


@runtime_checkable
class Augmentation(Protocol):
    """A random map of one image: uint8 `[H, W, C]` and a key to uint8 `[H, W, C]`."""

    def __call__(self, image: Array, key: Array) -> Array:
        """Change one image.

        Args:
            image: uint8 `[H, W, C]`.
            key: one typed key.
        """
        ...


@dataclass(frozen=True)
class HorizontalFlip(Checked):
    """Exchange left and right with probability one half."""

    def __call__(self, image: Array, key: Array) -> Array:
        """Change one image, uint8 `[H, W, C]`, with one typed key."""
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


@dataclass(frozen=True)
class RandomShift(Checked):
    """Shift the image by a few pixels each way; its mirror image fills the border.

    This is random padding and cropping with reflection instead of zeros.

    Attributes:
        pixels: the largest shift in each direction, below the image's height and width.

    References:
        He et al. (2016), "Deep residual learning for image recognition", section 4.2.
    """

    pixels: Index

    def __call__(self, image: Array, key: Array) -> Array:
        """Change one image, uint8 `[H, W, C]`, with one typed key.

        Raises:
            VaeJaxError: the shift is not below the image's height and width.
        """
        if self.pixels >= min(image.shape[:2]):
            raise VaeJaxError(
                f"RandomShift by {self.pixels} pixels does not fit images of shape {image.shape}: "
                "give fewer than the height and the width."
            )
        border = (self.pixels, self.pixels)
        padded = jnp.pad(image, (border, border, (0, 0)), mode="reflect")
        top, left = jax.random.randint(key, (2,), 0, 2 * self.pixels + 1)
        return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def _to_bytes(values: Array) -> Array:
    return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)


@dataclass(frozen=True)
class RandomAffine(Checked):
    """Rotate, stretch and shift the image a little; its mirror image fills the border.

    With the origin at the centre, the new pixel (y, x) is that of the old image at
    diag(e^a, e^b) R(t) (y, x) + c, where the angle t is from U(-degrees, degrees), a and b are from
    U(-stretch, stretch), so that proportions also change, and the components of c are from
    U(-shift, shift). Values between pixels are bilinear, rounded to the nearest byte.

    Attributes:
        degrees: the largest angle.
        stretch: the largest logarithm of a factor: 0.1 is about 10 %.
        shift: the largest shift in each direction, in pixels or fractions of them.
    """

    degrees: Weight
    stretch: Weight
    shift: Weight

    def __call__(self, image: Array, key: Array) -> Array:
        """Change one image, uint8 `[H, W, C]`."""
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
            positions = [old_y + centre_y, old_x + centre_x]
            return map_coordinates(channel, positions, order=1, mode="mirror")

        return _to_bytes(jax.vmap(moved, -1, -1)(image.astype(jnp.float32)))


@dataclass(frozen=True)
class BrightnessJitter(Checked):
    """Multiply the image by a factor from U(1 - amount, 1 + amount), rounded to the nearest byte.

    Attributes:
        amount: the largest change of the factor, in [0, 1].
    """

    amount: Proportion

    def __call__(self, image: Array, key: Array) -> Array:
        """Change one image, uint8 `[H, W, C]`."""
        return _to_bytes(image * (1 + self.amount * jax.random.uniform(key, (), minval=-1)))


@dataclass(frozen=True)
class ColourJitter(Checked):
    """Multiply each channel by a separate factor as in `BrightnessJitter`, to shift the colours.

    Attributes:
        amount: the largest change of a factor, in [0, 1].
    """

    amount: Proportion

    def __call__(self, image: Array, key: Array) -> Array:
        """Change one image, uint8 `[H, W, C]`."""
        factor = 1 + self.amount * jax.random.uniform(key, (image.shape[-1],), minval=-1)
        return _to_bytes(image * factor)


def augmented(augmentations: Sequence[Augmentation], images: Array, keys: Array) -> Array:
    """Apply one augmentation after another, each with separate noise.

    Args:
        augmentations: the augmentations, in their order.
        images: uint8 `[B, H, W, C]`.
        keys: typed keys `[B]`.

    Returns:
        Images, uint8 `[B, H, W, C]`.
    """

    def one(image: Array, key: Array) -> Array:
        for position, augmentation in enumerate(augmentations):
            image = augmentation(image, random.indexed(key, position))
        return image

    return jax.vmap(one)(images, keys)


def check_augmentations(augmentations: Sequence[Augmentation], data: Data) -> None:
    """Check that `augmentations` keep the shape and the type of the images of `data`.

    Raises:
        VaeJaxError: an augmentation fails, or changes the shape or the type of an image.
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
