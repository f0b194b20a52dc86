"""Encoders and decoders of strided convolutions."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.cpu.convolution import conv, conv_transpose
from vae_jax.distributions import Shape


def halvings(image_shape: Shape, num: int) -> list[Shape]:
    """(H, W) of an image and of its halves, the coarsest first: `num + 1` sizes."""
    sizes = [tuple(image_shape[:2])]
    for _ in range(num):
        height, width = sizes[0]
        sizes.insert(0, (-(-height // 2), -(-width // 2)))
    return sizes


class ResidualBlock(nn.Module):
    """x + W ac(C ac(x)), C a 3x3 and W a 1x1 convolution (van den Oord et al. 2017, section 4.1).

    Attributes:
        activation: ac.
        kernel_init: of both; biases start at zero.
    """

    activation: Callable[[Array], Array]
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` to the same shape."""
        channels = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 3, channels, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        h = self.activation(conv(self.activation(x), kernel, stride=1) + bias)
        return x + nn.Dense(channels, kernel_init=self.kernel_init)(h)


class ConvEncoder(nn.Module):
    """Strided convolutions that halve the image, residual blocks, then one dense layer.

    Attributes:
        features: channels of each map; each has half the height and width of the one before.
        dense: width of the dense layer on the flattened last map; None leaves it a map.
        kernel_size: side of the square kernels.
        residual_blocks: on the last map.
        activation: after every layer.
        kernel_init: of every layer; biases start at zero.
    """

    features: Sequence[int]
    dense: int | None
    kernel_size: int = 4
    residual_blocks: int = 0
    activation: Callable[[Array], Array] = jax.nn.relu
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to `[N, dense]`, or to the map `[N, h, w, features[-1]]`."""
        for layer, width in enumerate(self.features):
            shape = (self.kernel_size, self.kernel_size, x.shape[-1], width)
            kernel = self.param(f"kernel_{layer}", self.kernel_init, shape)
            bias = self.param(f"bias_{layer}", nn.initializers.zeros, (width,))
            x = self.activation(conv(x, kernel, stride=2) + bias)
        for _ in range(self.residual_blocks):
            x = ResidualBlock(self.activation, self.kernel_init)(x)
        if self.dense is None:
            return self.activation(x) if self.residual_blocks else x
        x = x.reshape(x.shape[0], -1)
        return self.activation(nn.Dense(self.dense, kernel_init=self.kernel_init)(x))


class ConvDecoder(nn.Module):
    """One dense layer, then transposed convolutions that double the map up to the image's size.

    Attributes:
        features: channels of each map from the coarsest to the full-size one, so there are
            `len(features) - 1` doublings; any image size is met exactly.
        dense: width of the dense layer before the coarsest map; None where the latents are a map
            of that size themselves, which a 3x3 convolution takes instead.
        kernel_size: side of the square kernels.
        residual_blocks: on the coarsest map.
        activation: after every layer.
        affine_last: leave it out after the last layer, as where that has a channel for each
            parameter of a pixel and the likelihood's own affine map adds nothing.
        kernel_init: of every layer; biases start at zero.
    """

    features: Sequence[int]
    dense: int | None
    kernel_size: int = 4
    residual_blocks: int = 0
    activation: Callable[[Array], Array] = jax.nn.relu
    affine_last: bool = False
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents `[N, ...]`, flattened, or maps `[N, h, w, D]`, to `[N, H, W, features[-1]]`.

        Raises:
            ValueError: `dense` is None and the latents are no map of the coarsest size.
        """
        sizes = halvings(image_shape, len(self.features) - 1)
        if self.dense is None:
            x = self._from_map(z, sizes[0])
        else:
            x = self._from_vector(z, sizes[0], self.dense)
        for _ in range(self.residual_blocks):
            x = ResidualBlock(self.activation, self.kernel_init)(x)
        if self.residual_blocks:
            x = self.activation(x)
        for layer, (size, channels) in enumerate(zip(sizes[1:], self.features[1:], strict=True)):
            shape = (self.kernel_size, self.kernel_size, channels, x.shape[-1])
            kernel = self.param(f"kernel_{layer}", self.kernel_init, shape)
            bias = self.param(f"bias_{layer}", nn.initializers.zeros, (channels,))
            x = conv_transpose(x, kernel, 2, size) + bias
            if layer + 2 < len(self.features) or not self.affine_last:
                x = self.activation(x)
        return x

    def _from_vector(self, z: Array, size: Shape, dense: int) -> Array:
        x = z.reshape(z.shape[0], -1)
        x = self.activation(nn.Dense(dense, kernel_init=self.kernel_init)(x))
        width = size[0] * size[1] * self.features[0]
        x = self.activation(nn.Dense(width, kernel_init=self.kernel_init)(x))
        return x.reshape(-1, *size, self.features[0])

    def _from_map(self, z: Array, size: Shape) -> Array:
        if z.shape[1:-1] != tuple(size):
            raise ValueError(
                f"the latents have the shape {z.shape[1:]}, the decoder's coarsest map is "
                f"{size[0]}x{size[1]} pixels."
            )
        kernel = self.param("kernel_map", self.kernel_init, (3, 3, z.shape[-1], self.features[0]))
        bias = self.param("bias_map", nn.initializers.zeros, (self.features[0],))
        return self.activation(conv(z, kernel, stride=1) + bias)
