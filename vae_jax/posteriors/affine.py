"""The affine map from an encoder's features to parameters of q(z|x), for z of any shape."""

import flax.linen as nn
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.compatibility import latent_shape
from vae_jax.distributions import Shape
from vae_jax.errors import VaeJaxError


def affine(features: Array, shape: int | Shape, name: str, kernel_init: Initializer) -> Array:
    """One output for each component of z, `[N, *shape]`, inside a compact method.

    For a vector z of the features, whatever they are, flattened; for a set of n vectors `(n, d)` or
    a map `(h, w, c)` one map of the last axis, shared by all places, so the features must be
    `[N, n, F]` or `[N, h, w, F]`.

    Args:
        features: the encoder's.
        shape: of z.
        name: of the layer.
        kernel_init: of the layer.

    Raises:
        VaeJaxError: the features have other places than z.
    """
    *places, outputs = event = latent_shape(shape)
    own = features.shape[1:-1]
    if not places:
        features = features.reshape(features.shape[0], -1)
    elif own != tuple(places):
        fitting = f"shape={(*own, outputs)}, one number for a vector" if own else "one number"
        raise VaeJaxError(
            f"Latents of shape {event} are made of features {_axes(*places)}, and the encoder's "
            f"are {_axes(*own)}: take {fitting}, or another encoder."
        )
    return nn.Dense(outputs, kernel_init=kernel_init, name=name)(features)


def _axes(*places: int) -> str:
    return f"[{', '.join(['N', *map(str, places), 'F'])}]"
