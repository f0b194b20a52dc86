"""What the likelihoods share: declarations, and the affine map from features to pixels."""

import math
from typing import Any, Literal

import flax.linen as nn
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.cpu.softplus import softplus as softplus
from vae_jax.distributions import Distribution, Shape

Measure = Literal["mass", "density", "pseudo"]

# No pixel needs a scale of e^10 times the data's range, and e^89 overflows float32.
MAX_LOG_SCALE = 10.0


def observed(likelihood: Any, px: Distribution, x: Array, remember: bool = True) -> Distribution:
    """p(x|z), batch `[K, B]`, after a likelihood that wants to has seen images `[B, H, W, C]`.

    What it remembers of them moves once in a step: a second density takes `remember=False`.
    """
    return likelihood.observe(px, x, remember) if hasattr(likelihood, "observe") else px


def per_pixel(
    features: Array,
    shape: Shape,
    name: str,
    kernel_init: Initializer,
    bias_init: Initializer = nn.initializers.zeros,
) -> Array:
    """Affine outputs for each pixel, `[N, H, W, ...]`, inside a compact method.

    Vector features `[N, F]` go through a dense layer to all outputs (so `bias_init` sees shape
    `[H * W * ...]`); spatial features `[N, H, W, F]` through a 1x1 convolution (bias `[...]`).

    Args:
        features: the decoder's.
        shape: of one image's outputs: the image's (H, W, C), or (H, W) and whatever axes a pixel's
            parameters have.
        name: of the layer.
        kernel_init, bias_init: of the layer.

    Raises:
        ValueError: spatial features of another height or width than the image.
    """
    height, width, *own = shape
    if features.ndim == 2:
        outputs = math.prod(shape)
    elif features.shape[1:3] == (height, width):
        outputs = math.prod(own)
    else:
        raise ValueError(
            f"The decoder's features are {features.shape[1]}x{features.shape[2]} pixels, "
            f"the images {height}x{width}."
        )
    dense = nn.Dense(outputs, kernel_init=kernel_init, bias_init=bias_init, name=name)
    return dense(features).reshape(-1, *shape)
