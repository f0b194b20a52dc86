"""Spaces of features: functions from uint8 images `[N, H, W, C]` to numbers `[N, F]`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vae_jax.errors import VaeJaxError
from vae_jax.metrics.estimate import GROUPS

Features = Callable[[np.ndarray], np.ndarray]

MIN_IMAGES = 2 * GROUPS
IMAGES_AT_ONCE, PIXELS_AT_ONCE = 500, 2**20
LEAST_SCALE = 1e-4  # below it, images vary by rounding alone


def in_chunks(
    function: Callable[[Any], Any], images: np.ndarray, at_once: int = IMAGES_AT_ONCE
) -> np.ndarray:
    """A function of images `[n, H, W, C]`, a few at a time, `at_once` at most: float64 `[N, F]`.

    The last chunk repeats images up to the size of the others, so that one program serves all.
    """
    size = min(len(images), at_once, max(1, PIXELS_AT_ONCE // images[0].size))
    found = []
    for first in range(0, len(images), size):
        rows = np.resize(np.arange(first, min(first + size, len(images))), size)
        found.append(np.asarray(function(images[rows]), np.float64))
    return np.concatenate(found)[: len(images)]


def standardized(space: Features, images: np.ndarray) -> Features:
    """A space moved and scaled as a whole: on these images mean 0 and mean variance 1.

    One number divides all features, so that they keep their relative sizes. A polynomial kernel
    then sees more than means, and F is the images' total variance: the unit of Fréchet distances.

    Args:
        space: the features.
        images: those that say what is usual, of training.
    """
    features = space(images)
    centre, scale = features.mean(0), max(float(np.sqrt(features.var(0).mean())), LEAST_SCALE)
    return lambda images: (space(images) - centre) / scale


def check_images(images: np.ndarray) -> np.ndarray:
    """The images, if they are uint8 `[N, H, W, C]`, C = 1 or 3, N > 0.

    Raises:
        VaeJaxError: they are not.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise VaeJaxError(
            f"Images are {images.dtype} {images.shape}: give uint8 [N, H, W, C], C = 1 or 3."
        )
    if not images.size:
        raise VaeJaxError(f"Images of the shape {images.shape} are none: give at least one.")
    return images


def check_features(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features as float64.

    Raises:
        VaeJaxError: they are not `[N, F]` and `[M, F]` with at least 40 rows each, all finite.
    """
    for features in (x, y):
        if features.ndim != 2 or len(features) < MIN_IMAGES or features.shape[1] != x.shape[-1]:
            raise VaeJaxError(
                f"Features {x.shape} and {y.shape} cannot be compared: give [N, F] and [M, F] of "
                f"at least {MIN_IMAGES} images each."
            )
        if not np.isfinite(features).all():
            raise VaeJaxError("A feature is not finite: mend the function that makes them.")
    return x.astype(np.float64), y.astype(np.float64)
