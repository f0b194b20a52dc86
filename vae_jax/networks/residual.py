"""The residual networks of deep hierarchies: R in h + R(h)."""

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import flax.linen as nn
import jax
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.given import Count, Positive, Weight
from vae_jax.interfaces import Part
from vae_jax.networks.layers import Conv, Dense


class Residual(Protocol):
    """A constructor of a hierarchy's networks, such as `Bottleneck` or a partial of it."""

    def __call__(
        self, features: int, width: int, last: float = 1.0, *, name: str | None = None
    ) -> nn.Module:
        """A network from maps `[N, h, w, F]` to `[N, h, w, features]`.

        Args:
            features: the number of output features.
            width: the number of features of the hierarchy's state h.
            last: the factor of the last convolution's initial weights; 0 starts from R = 0.
            name: the name of the module.
        """
        ...


def scaled(factor: float) -> Initializer:
    """Uniform weights of variance factor² / (3 inputs), PyTorch's default for a factor of one."""
    if factor == 0:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(factor**2 / 3, "fan_in", "uniform")


def convolution(features: int, x: Array, name: str) -> nn.Module:
    """A 3x3 convolution with a bias, or a 1x1 one where maps are at most 2x2 (Child 2021).

    Args:
        features: the number of output features.
        x: a map of the size of the inputs, `[N, h, w, F]`.
        name: the name of the module.

    Returns:
        A module from maps of this size, `[N, h, w, F]`, to `[N, h, w, features]`.
    """
    if max(x.shape[1:3]) <= 2:
        return Dense(features, kernel_init=scaled(1.0), name=name)
    return Conv(features, use_bias=True, kernel_init=scaled(1.0), name=name)


def activated(layer: nn.Module, activation: Callable[[Array], Array], x: Array) -> Array:
    """`layer(activation(x))`, of which the backward pass keeps x alone.

    The blocks of a level are a loop, which writes all that is kept to memory and reads it again.

    Args:
        layer: from maps `[N, h, w, F]` to `[N, h, w, features]`.
        activation: an elementwise function.
        x: `[N, h, w, F]`.

    Returns:
        `[N, h, w, features]`.
    """

    def both(layer: Callable[[Array], Array], x: Array) -> Array:
        return layer(activation(x))

    return cast(Array, nn.remat(both, prevent_cse=False)(layer, x))


class Bottleneck(Part):
    """1x1, 3x3, 3x3 and 1x1 convolutions with an activation before each.

    Attributes:
        features: the number of output features.
        width: the number of features of the hierarchy's state h.
        last: the factor of the last convolution's initial weights.
        ratio: the number of features in between, in units of `width`.
        activation: the elementwise function before each convolution.
        excite: whether the output passes through `SqueezeExcite`.

    References:
        Child (2021), "Very deep VAEs generalize autoregressive models and can outperform them on
            images", figure 3.
    """

    features: Count
    width: Count
    last: Weight = 1.0
    ratio: Positive = 0.25
    activation: Callable[[Array], Array] = jax.nn.gelu
    excite: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, h, w, F]` to `[N, h, w, features]`."""
        width = max(1, int(self.width * self.ratio))
        r = x
        for layer in (
            Dense(width, kernel_init=scaled(1.0), name="in"),
            convolution(width, x, "first"),
            convolution(width, x, "second"),
            Dense(self.features, kernel_init=scaled(self.last), name="out"),
        ):
            r = activated(layer, self.activation, r)
        return SqueezeExcite(name="excite")(r) if self.excite else r


class Gated(Part):
    """Two 3x3 convolutions, then ac(c) sigmoid(g) with the 1x1 convolutions c and g.

    The gated residual blocks of Dittadi's ladder VAE, without its batch normalization and dropout.

    Attributes:
        features: the number of output features.
        width: the number of features of the hierarchy's state h, and of the maps in between.
        last: the factor of the initial weights of c.
        activation: the elementwise function ac, also before each 3x3 convolution.

    References:
        Dittadi (2019), "Ladder variational autoencoders (LVAE) in PyTorch",
            github.com/addtt/ladder-vae-pytorch.
    """

    features: Count
    width: Count
    last: Weight = 1.0
    activation: Callable[[Array], Array] = jax.nn.elu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, h, w, F]` to `[N, h, w, features]`."""
        r = activated(convolution(self.width, x, "first"), self.activation, x)
        r = activated(convolution(self.width, x, "second"), self.activation, r)
        dense = partial(Dense, self.features)
        content = dense(kernel_init=scaled(self.last), name="content")(r)
        gate = dense(kernel_init=scaled(1.0), name="gate")(r)

        def gated(content: Array, gate: Array) -> Array:
            return self.activation(content) * jax.nn.sigmoid(gate)

        return jax.checkpoint(gated, prevent_cse=False)(content, gate)


class SqueezeExcite(nn.Module):
    """Features times gates in (0, 1), which depend on the features' means (Hu et al. 2018).

    Attributes:
        reduction: the factor by which the gates' hidden layer is narrower than the map.
    """

    reduction: int = 16

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, h, w, F]` to the same shape."""
        features = x.shape[-1]
        hidden = nn.Dense(max(4, features // self.reduction), name="squeeze")(x.mean((1, 2)))
        gates = jax.nn.sigmoid(nn.Dense(features, name="excite")(jax.nn.relu(hidden)))
        return x * gates[:, None, None]
