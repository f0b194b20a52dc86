"""Feature spaces: functions from uint8 images `[N, H, W, C]` to numbers `[N, F]`."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from vae_jax import given
from vae_jax.errors import VaeJaxError

Features = Callable[[np.ndarray], np.ndarray]

IMAGES_AT_ONCE, PIXELS_AT_ONCE = 500, 2**20
LEAST_SCALE = 1e-4  # below it, images vary by rounding alone


def in_chunks(
    function: Callable[[np.ndarray], np.ndarray | Array],
    images: np.ndarray,
    at_once: int = IMAGES_AT_ONCE,
) -> np.ndarray:
    """Apply a function to chunks of images.

    The last chunk repeats images up to the size of the others, so that one program serves all.

    Args:
        function: a function of uint8 images `[n, H, W, C]`.
        images: uint8 `[N, H, W, C]`.
        at_once: the largest number n of images in a chunk.

    Returns:
        Float64 `[N, F]`.
    """
    size = min(len(images), at_once, max(1, PIXELS_AT_ONCE // images[0].size))
    found = []
    for first in range(0, len(images), size):
        rows = np.resize(np.arange(first, min(first + size, len(images))), size)
        # By default accelerators round the factors of a product to ten bits or eight.
        with jax.default_matmul_precision("float32"):
            found.append(np.asarray(function(images[rows]), np.float64))
    return np.concatenate(found)[: len(images)]


def standardized(space: Features, images: np.ndarray) -> Features:
    """A space shifted and scaled as a whole: mean 0 and mean variance 1 on these images.

    One number divides all features, so that they keep their relative sizes. A polynomial kernel
    then depends on more than means, and F is the images' total variance: the unit of Fréchet
    distances.

    Args:
        space: the features.
        images: training images, which define the mean and the scale.
    """
    features = space(images)
    centre, scale = features.mean(0), max(float(np.sqrt(features.var(0).mean())), LEAST_SCALE)
    return lambda images: (space(images) - centre) / scale


def check_images(images: np.ndarray) -> np.ndarray:
    """Return the images if they are uint8 `[N, H, W, C]`, C = 1 or 3, N > 0.

    Raises:
        VaeJaxError: the images have another type or shape, or there are none.
    """
    found = given.pictures(images)
    if found.dtype != np.uint8:
        raise VaeJaxError(
            f"Images are {found.dtype}: give uint8 from 0 to 255 (for images in [0, 1], "
            "np.rint(255 * images).astype(np.uint8))."
        )
    return found
