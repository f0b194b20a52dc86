"""Colour as features: which colours a picture has, wherever they are."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.metrics.spaces import check_images, in_chunks

LEVELS = 4  # of each of the three channels
GREY_LEVELS = 16


def colour(images: np.ndarray) -> np.ndarray:
    """Joint histogram of the channels, then mean, standard deviation and skewness of each.

    A pixel counts in the two levels next to its value in each channel, by its nearness (trilinear
    weights), so that a shift smaller than a level shows. The skewness is the cube root of the third
    central moment, which has the unit of the others.

    Args:
        images: uint8 `[N, H, W, C]`, C = 1 or 3, of any size.

    Returns:
        `[N, 4^3 + 9]`, of grey images `[N, 16 + 3]`.

    Raises:
        VaeJaxError: they are no such images.

    References:
        Swain & Ballard (1991), Color indexing. Stricker & Orengo (1995), Similarity of color
        images.
    """
    return in_chunks(_colour, check_images(images))


@jax.jit
def _colour(images: Array) -> Array:
    x = images.reshape(len(images), -1, images.shape[-1]) / 255.0
    levels = GREY_LEVELS if x.shape[-1] == 1 else LEVELS
    place = x[..., None] * (levels - 1)
    weights = jnp.maximum(1 - jnp.abs(place - jnp.arange(levels)), 0)  # [N, pixels, C, levels]
    first, *others = jnp.unstack(weights, axis=2)
    joint = first
    for other in others:
        joint = (joint[..., None] * other[:, :, None]).reshape(*joint.shape[:2], -1)
    mean = x.mean(1)
    centred = x - mean[:, None]
    deviation = jnp.sqrt((centred**2).mean(1))
    skewness = jnp.cbrt((centred**3).mean(1))
    return jnp.concatenate([joint.mean(1), mean, deviation, skewness], -1)
