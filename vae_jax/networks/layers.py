"""Layers that the convolutional architectures share.

Every halving has "SAME" padding, from n to ceil(n / 2) pixels, so that no image is too small: one
pixel remains one. A decoder retraces the sizes in `halvings`, so that it meets each one exactly.
"""

from functools import partial, reduce
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer

from vae_jax.cpu import convolution
from vae_jax.cpu.sums import add_bias, repeated_rows, sum_of_rows
from vae_jax.distributions import Shape

Output = Literal["map", "tokens", "vector"]
"""The form of an encoder's output: `[N, h, w, F]`, `[N, h * w, F]` or `[N, F]`."""

HE = nn.initializers.he_normal()
GROUP_SIZE = 16


def halvings(size: Shape, num: int) -> list[Shape]:
    """The sizes (H, W) of an image (H, W, ...) halved num, ..., 1 and 0 times, coarsest first."""
    sizes = [tuple(size[:2])]
    for _ in range(num):
        height, width = sizes[0]
        sizes.insert(0, (-(-height // 2), -(-width // 2)))
    return sizes


# --- Convolutions -------------------------------------------------------------------------------


def conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Strided cross-correlation with "SAME" padding.

    Args:
        x: `[N, H, W, I]`.
        kernel: `[h, w, I, O]`, or `[h, w, 1, I]` to convolve each feature separately.
        stride: the stride along both axes.

    Returns:
        `[N, ceil(H / stride), ceil(W / stride), O]`.
    """
    library = partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )
    on_cpu = partial(convolution.conv, stride=stride)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=library)


def conv_transpose(x: Array, kernel: Array, stride: int, size: Shape) -> Array:
    """The transpose of `conv`, seen as a linear map on images of a given size.

    Args:
        x: `[N, ceil(H / stride), ceil(W / stride), O]`.
        kernel: `[h, w, I, O]`.
        stride: the stride along both axes.
        size: (H, W) of the result.

    Returns:
        `[N, H, W, I]`.
    """
    image = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[2]), x.dtype)
    return jax.linear_transpose(partial(conv, kernel=kernel, stride=stride), image)(x)[0]


def conv_upsampled(x: Array, kernel: Array, size: Shape) -> Array:
    """`conv(upsample(x, size), kernel)`, computed without the upsampled map if that is 2h x 2w.

    Pairs of neighbours in the upsampled map are equal, so with an odd kernel this is a transposed
    convolution whose kernel sums neighbouring weights: a 3x3 kernel needs 4 of 9 products.

    Args:
        x: `[N, ceil(H / 2), ceil(W / 2), I]`.
        kernel: `[h, w, I, O]`.
        size: (H, W) of the result.

    Returns:
        `[N, H, W, O]`.
    """
    doubled = tuple(size) == tuple(2 * n for n in x.shape[1:3])
    if not (doubled and kernel.shape[0] % 2 == kernel.shape[1] % 2 == 1):
        return conv(upsample(x, size), kernel)
    reverse = kernel[::-1, ::-1].swapaxes(2, 3)
    for axis in (0, 1):
        edges = [(int(n == axis), 0) for n in range(4)]
        reverse = jnp.pad(reverse, edges) + jnp.pad(reverse, [edge[::-1] for edge in edges])
    return conv_transpose(x, reverse, 2, size)


class Conv(nn.Module):
    """A convolution with "SAME" padding.

    Attributes:
        features: the number of output features.
        kernel_size: the side of a square kernel, or its (height, width).
        stride: the stride along both axes.
        use_bias: whether to add a bias; leave it out before a normalization, which has its own.
        kernel_init: the initializer of the kernel; the bias starts at zero.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    stride: int = 1
    use_bias: bool = False
    kernel_init: Initializer = HE

    @nn.compact
    def __call__(self, x: Array, upsampled_to: Shape | None = None) -> Array:
        """`[N, H, W, F]` to `[N, ceil(H / stride), ceil(W / stride), features]`.

        Args:
            x: the map.
            upsampled_to: the size to which the map is first upsampled; the stride is then one.
        """
        size = self.kernel_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (height, width, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if upsampled_to is None:
            y = conv(x, kernel, self.stride)
        else:
            y = conv_upsampled(x, kernel, upsampled_to)
        if self.use_bias:
            y = add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,)))
        return y


class Dense(nn.Module):
    """An affine map of the last axis, with the parameters of Flax's Dense.

    Attributes:
        features: the number of output features.
        kernel_init: the initializer of the kernel; the bias starts at zero.
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[..., F]` to `[..., features]`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # As rows: for the kernel's gradient, XLA's CPU backend copies operands of more axes.
        rows = x.reshape(-1, x.shape[-1])
        return add_bias(rows @ kernel, bias).reshape(*x.shape[:-1], self.features)


class ConvTranspose(nn.Module):
    """The transpose of a convolution with "SAME" padding and stride 2, plus a bias.

    Attributes:
        features: the number of output features.
        kernel_size: the side of the square kernel.
        kernel_init: the initializer of the kernel; the bias starts at zero.
    """

    features: int
    kernel_size: int = 4
    kernel_init: Initializer = HE

    @nn.compact
    def __call__(self, x: Array, size: Shape) -> Array:
        """`[N, ceil(H / 2), ceil(W / 2), F]` to `[N, H, W, features]`, (H, W) = `size`."""
        shape = (self.kernel_size, self.kernel_size, self.features, x.shape[-1])
        y = conv_transpose(x, self.param("kernel", self.kernel_init, shape), 2, size)
        return add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,)))


class SeparableConv(nn.Module):
    """A 3x3 convolution of each feature separately, then a 1x1 convolution (Chollet 2017).

    Attributes:
        features: the number of output features.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, F]` to `[N, H, W, features]`."""
        kernel = self.param("depthwise", HE, (3, 3, 1, x.shape[-1]))
        return Conv(self.features, 1, name="pointwise")(conv(x, kernel))


# --- Normalization, pooling, upsampling ---------------------------------------------------------


class GroupNorm(nn.Module):
    """Normalizes each group of features of an example to mean 0, variance 1; then an affine map.

    The moments of each feature are summed over all positions, then one affine map is applied, so
    that x is read as rarely as possible. The parameters are those of Flax's GroupNorm.

    Attributes:
        group_size: the number of features of a group, a divisor of the number of features.
        epsilon: a small number added to the variance.
    """

    group_size: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, ..., F]` to the same shape."""
        features = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(len(x), -1, features)
        num_positions = wide.shape[1]

        def mean_of_group(y: Array) -> Array:
            each = sum_of_rows(y).reshape(len(x), -1, self.group_size).mean(-1, keepdims=True)
            mean = jnp.broadcast_to(each, (*each.shape[:2], self.group_size)) / num_positions
            return mean.reshape(len(x), features)

        mean, square = mean_of_group(wide), mean_of_group(wide**2)
        factor = scale * lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon)
        shift = bias - mean * factor
        y = wide * repeated_rows(factor, num_positions) + repeated_rows(shift, num_positions)
        return y.reshape(x.shape).astype(x.dtype)


def group_norm(x: Array) -> Array:
    """GroupNorm with 16 features per group (Wu & He 2018), or one group if 16 does not divide them.

    Statistics are taken over one example, so that results depend neither on the size of the batch
    nor on how devices share it. Call it in a compact method.
    """
    features = x.shape[-1]
    return GroupNorm(GROUP_SIZE if features % GROUP_SIZE == 0 else features)(x)


def max_pool(x: Array, window: int) -> Array:
    """The maximum of each feature over windows of stride 2, with "SAME" padding.

    Args:
        x: `[N, H, W, F]`.
        window: the side of the square windows, 2 or 3.

    Returns:
        `[N, ceil(H / 2), ceil(W / 2), F]`.
    """
    rows, columns = (-(-n // 2) for n in x.shape[1:3])
    excess = [max(2 * (-(-n // 2) - 1) + window - n, 0) for n in x.shape[1:3]]
    pads = [(total // 2, total - total // 2) for total in excess]
    padded = jnp.pad(x, [(0, 0), *pads, (0, 0)], constant_values=-jnp.inf)
    shifted = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i in range(window)
        for j in range(window)
    ]
    return reduce(jnp.maximum, shifted)


def average_pool(x: Array) -> Array:
    """The mean over squares of 2x2 pixels; squares at the end of an odd side have fewer.

    Args:
        x: `[N, H, W, F]`.

    Returns:
        `[N, ceil(H / 2), ceil(W / 2), F]`, which `upsample` takes back to the size of x.
    """
    number, height, width, features = x.shape
    x = jnp.pad(x, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    return x.reshape(number, -(-height // 2), 2, -(-width // 2), 2, features).mean((2, 4))


def upsample(x: Array, size: Shape) -> Array:
    """Nearest-neighbour upsampling, `[N, ceil(H / 2), ceil(W / 2), F]` to `[N, H, W, F]`.

    Args:
        x: the map.
        size: (H, W) of the result, to which the doubled map is cut.
    """
    number, height, width, features = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None], (number, height, 2, width, 2, features))
    doubled = doubled.reshape(number, 2 * height, 2 * width, features)
    return doubled[:, : size[0], : size[1]]


# --- Attention ----------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """x + self-attention over all positions of a map (Esser et al. 2021).

    Attributes:
        num_heads: the number of heads, a divisor of the features.
    """

    num_heads: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, h, w, F]` to the same shape."""
        number, height, width, features = x.shape
        qkv = Dense(3 * features, name="qkv")(group_norm(x))
        heads = qkv.reshape(number, height * width, 3, self.num_heads, -1)
        attended = jax.nn.dot_product_attention(*jnp.unstack(heads, axis=2))
        return x + Dense(features, name="out")(attended.reshape(x.shape))


# --- Between maps and vectors -------------------------------------------------------------------


def as_output(x: Array, output: Output) -> Array:
    """A map x `[N, h, w, F]` in the form `output`; a vector is its mean over positions."""
    if output == "vector":
        return x.mean((1, 2))
    return x.reshape(len(x), -1, x.shape[-1]) if output == "tokens" else x


def coarsest_map(z: Array, size: Shape, features: int) -> Array:
    """A decoder's first map `[N, h, w, features]`, affine in z; call it in a compact method.

    Latents `[N, h, w, c]` of size (h, w), or h * w vectors `[N, h * w, d]`, are mapped position by
    position; latents of any other shape are flattened and mapped by one dense layer.

    Args:
        z: the latents, `[N, ...]`.
        size: (h, w).
        features: the number of features at each position.
    """
    height, width = size
    if z.shape[1:-1] in ((height, width), (height * width,)):
        x = Dense(features, kernel_init=HE, name="pointwise")(z)
    else:
        flat = z.reshape(len(z), -1)
        x = Dense(height * width * features, kernel_init=HE, name="dense")(flat)
    return x.reshape(-1, height, width, features)
