"""Fully connected networks."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.distributions import Shape
from vae_jax.given import Widths
from vae_jax.interfaces import Part


class MLP(Part):
    """Dense layers, each followed by the activation.

    Attributes:
        features: the width of each layer.
        activation: the elementwise function after each layer.
        kernel_init: the initializer of every kernel; biases start at zero.
    """

    features: Widths
    activation: Callable[[Array], Array] = jax.nn.tanh
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, x: Array, image_shape: Shape | None = None) -> Array:
        """`[N, ...]`, flattened, to `[N, features[-1]]`; the image shape is not used."""
        x = x.reshape(x.shape[0], -1)
        for width in self.features:
            x = self.activation(nn.Dense(width, kernel_init=self.kernel_init)(x))
        return x


class GatedMLP(Part):
    """Gated dense layers, (W x + b) * sigmoid(V x + c).

    Attributes:
        features: the width of each layer.
        kernel_init: the initializer of every kernel; biases start at zero.

    References:
        Dauphin et al. (2017), "Language modeling with gated convolutional networks".
        Tomczak & Welling (2018), "VAE with a VampPrior", for its use in VAEs.
    """

    features: Widths
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array, image_shape: Shape | None = None) -> Array:
        """`[N, ...]`, flattened, to `[N, features[-1]]`; the image shape is not used."""
        x = x.reshape(x.shape[0], -1)
        for width in self.features:
            gated, gate = jnp.split(nn.Dense(2 * width, kernel_init=self.kernel_init)(x), 2, -1)
            x = gated * jax.nn.sigmoid(gate)
        return x
