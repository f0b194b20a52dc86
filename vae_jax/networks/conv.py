"""Encoders and decoders of strided convolutions."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.distributions import Shape
from vae_jax.errors import VaeJaxError
from vae_jax.given import Count, Index, SomeWidths, Widths
from vae_jax.interfaces import Part
from vae_jax.networks.layers import Conv, ConvTranspose, Dense, halvings


class ResidualBlock(nn.Module):
    """x + W ac(C ac(x)), C a 3x3 and W a 1x1 convolution (van den Oord et al. 2017, section 4.1).

    Attributes:
        activation: the elementwise function ac.
        kernel_init: the initializer of C and W; biases start at zero.
    """

    activation: Callable[[Array], Array]
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, F]` to the same shape."""
        features = x.shape[-1]
        h = Conv(features, use_bias=True, kernel_init=self.kernel_init)(self.activation(x))
        return x + Dense(features, kernel_init=self.kernel_init)(self.activation(h))


class ConvEncoder(Part):
    """Strided convolutions that halve the image, residual blocks, then one dense layer.

    Attributes:
        features: the number of features of each map; each has half the height and width of the
            one before.
        dense: the width of the dense layer on the flattened last map; None returns the map.
        kernel_size: the side of the square kernels.
        residual_blocks: the number of residual blocks on the last map.
        activation: the elementwise function after every layer.
        kernel_init: the initializer of every kernel; biases start at zero.

    References:
        van den Oord et al. (2017), "Neural discrete representation learning", section 4.1, for the
            residual blocks.
    """

    features: Widths
    dense: Count | None
    kernel_size: Count = 4
    residual_blocks: Index = 0
    activation: Callable[[Array], Array] = jax.nn.relu
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to `[N, dense]`, or to the map `[N, h, w, features[-1]]`."""
        for features in self.features:
            x = self.activation(Conv(features, self.kernel_size, 2, True, self.kernel_init)(x))
        for _ in range(self.residual_blocks):
            x = ResidualBlock(self.activation, self.kernel_init)(x)
        if self.dense is None:
            return self.activation(x) if self.residual_blocks else x
        x = x.reshape(x.shape[0], -1)
        return self.activation(Dense(self.dense, kernel_init=self.kernel_init)(x))


class ConvDecoder(Part):
    """One dense layer, then transposed convolutions that double the map up to the image's size.

    Attributes:
        features: the number of features of each map, from the coarsest to the full-size one; the
            map is doubled `len(features) - 1` times, and any image size is met exactly.
        dense: the width of the dense layer before the coarsest map; None if the latents are
            themselves a map of that size, to which a 3x3 convolution is applied.
        kernel_size: the side of the square kernels.
        residual_blocks: the number of residual blocks on the coarsest map.
        activation: the elementwise function after every layer.
        affine_last: whether to leave out the activation after the last layer, for example if that
            layer has a feature for each parameter of a pixel, so that the likelihood's affine map
            adds nothing.
        kernel_init: the initializer of every kernel; biases start at zero.

    References:
        van den Oord et al. (2017), "Neural discrete representation learning", section 4.1, for the
            residual blocks.
    """

    features: SomeWidths
    dense: Count | None
    kernel_size: Count = 4
    residual_blocks: Index = 0
    activation: Callable[[Array], Array] = jax.nn.relu
    affine_last: bool = False
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents `[N, ...]`, flattened, or maps `[N, h, w, D]`, to `[N, H, W, features[-1]]`.

        Args:
            z: the latents.
            image_shape: (H, W, C).

        Raises:
            VaeJaxError: `dense` is None and the latents are not a map of the coarsest size.
        """
        coarsest, *sizes = halvings(image_shape, len(self.features) - 1)
        if self.dense is None:
            x = self._from_map(z, coarsest)
        else:
            x = self._from_vector(z, coarsest, self.dense)
        for _ in range(self.residual_blocks):
            x = ResidualBlock(self.activation, self.kernel_init)(x)
        if self.residual_blocks:
            x = self.activation(x)
        for layer, (size, features) in enumerate(zip(sizes, self.features[1:], strict=True), 1):
            x = ConvTranspose(features, self.kernel_size, self.kernel_init)(x, size)
            if layer < len(sizes) or not self.affine_last:
                x = self.activation(x)
        return x

    def _from_vector(self, z: Array, size: Shape, dense: int) -> Array:
        x = z.reshape(z.shape[0], -1)
        x = self.activation(Dense(dense, kernel_init=self.kernel_init)(x))
        width = size[0] * size[1] * self.features[0]
        x = self.activation(Dense(width, kernel_init=self.kernel_init)(x))
        return x.reshape(-1, *size, self.features[0])

    def _from_map(self, z: Array, size: Shape) -> Array:
        if z.shape[1:-1] != tuple(size):
            height, width = size
            raise VaeJaxError(
                f"Latents of shape {z.shape[1:]} do not fit a coarsest map of {height}x{width}: "
                f"give them the shape ({height}, {width}, d), or the decoder a width `dense`."
            )
        conv = Conv(self.features[0], use_bias=True, kernel_init=self.kernel_init)
        return self.activation(conv(z))
