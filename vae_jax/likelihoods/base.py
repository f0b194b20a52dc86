"""What the likelihoods share: declarations, and the affine map from features to pixels."""

from typing import Literal

import flax.linen as nn
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.distributions import Shape

Measure = Literal["mass", "density", "pseudo"]

# No pixel needs a scale of e^10 times the data's range, and e^89 overflows float32.
MAX_LOG_SCALE = 10.0


def per_pixel(
    features: Array,
    image_shape: Shape,
    name: str,
    kernel_init: Initializer,
    bias_init: Initializer = nn.initializers.zeros,
) -> Array:
    """One affine output for each pixel and channel, `[N, H, W, C]`, inside a compact method.

    Vector features `[N, F]` go through a dense layer to all H*W*C outputs (so `bias_init` sees
    shape `[H*W*C]`); spatial features `[N, H, W, F]` through a 1x1 convolution (bias `[C]`).

    Raises:
        ValueError: spatial features of another height or width than the image.
    """
    height, width, channels = image_shape
    if features.ndim == 2:
        dense = nn.Dense(
            height * width * channels, kernel_init=kernel_init, bias_init=bias_init, name=name
        )
        return dense(features).reshape(-1, height, width, channels)
    if features.shape[1:3] != (height, width):
        raise ValueError(
            f"The decoder's features are {features.shape[1]}x{features.shape[2]} pixels, "
            f"the images {height}x{width}."
        )
    return nn.Dense(channels, kernel_init=kernel_init, bias_init=bias_init, name=name)(features)
