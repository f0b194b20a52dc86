"""The Inception network of published Fréchet distances, from a user's file of its weights."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import KeyPath, keystr, tree_map_with_path

from vae_jax import parallel, random
from vae_jax.errors import VaeJaxError
from vae_jax.metrics.spaces import Features, check_images, in_chunks

SIDE = 299
AT_ONCE = 32  # images; their largest map, 147 x 147 x 64, takes 177 MB
EPSILON = 1e-3

Sizes = tuple[int, int, int]  # a convolution's features, and its kernel's height and width
Branches = dict[str, list[Sizes | list[Sizes]]]  # convolutions of an inner list share their input


class NormalizedConv(nn.Module):
    """A convolution without bias, BatchNorm with the statistics of training, and a ReLU.

    Its arrays have PyTorch's names and order of axes.

    Attributes:
        conv: (features, height, width).
        stride: the stride along both sides.
        padding: "SAME" or "VALID".
    """

    conv: Sizes
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` to `[N, h, w, features]`."""
        features, *kernel = self.conv
        zeros = nn.initializers.zeros
        y = lax.conv_general_dilated(
            x,
            self.param("conv.weight", zeros, (features, x.shape[-1], *kernel)),
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        scale, shift, mean, variance = (
            self.param(f"bn.{name}", zeros, (features,))
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        return nn.relu((y - mean) * scale * lax.rsqrt(variance + EPSILON) + shift)


class InceptionV3(nn.Module):
    """Inception-v3 up to the spatial means of its last map, the 2,048 features called pool3.

    This is the TensorFlow network of 2015, with which FID was defined: average pools exclude
    padding, and the last block has a max pool instead of an average pool.

    References:
        Szegedy et al. (2016), "Rethinking the Inception architecture for computer vision".
        Heusel et al. (2017), "GANs trained by a two time-scale update rule converge to a local Nash
            equilibrium".
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, 299, 299, 3]` in [-1, 1] to `[N, 2048]`."""
        x = NormalizedConv((32, 3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = NormalizedConv((32, 3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = NormalizedConv((64, 3, 3), name="Conv2d_2b_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = NormalizedConv((80, 1, 1), name="Conv2d_3b_1x1")(x)
        x = NormalizedConv((192, 3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        for block, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = _mixed(block, x, _a(pooled))
        x = _reduced("Mixed_6a", x, B)
        for block, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = _mixed(f"Mixed_6{block}", x, _c(width))
        x = _reduced("Mixed_7a", x, D)
        x = _mixed("Mixed_7b", x, E)
        x = _mixed("Mixed_7c", x, E, pool=partial(nn.max_pool, padding="SAME"))
        return x.mean((1, 2))


def _a(pooled: int) -> Branches:
    return {
        "branch1x1": [(64, 1, 1)],
        "branch5x5": [(48, 1, 1), (64, 5, 5)],
        "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
        "branch_pool": [(pooled, 1, 1)],
    }


B: Branches = {
    "branch3x3": [(384, 3, 3)],
    "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
}


def _c(width: int) -> Branches:
    narrow, row, column = (width, 1, 1), (width, 1, 7), (width, 7, 1)
    return {
        "branch1x1": [(192, 1, 1)],
        "branch7x7": [narrow, row, (192, 7, 1)],
        "branch7x7dbl": [narrow, column, row, column, (192, 1, 7)],
        "branch_pool": [(192, 1, 1)],
    }


D: Branches = {
    "branch3x3": [(192, 1, 1), (320, 3, 3)],
    "branch7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)],
}

E: Branches = {
    "branch1x1": [(320, 1, 1)],
    "branch3x3": [(384, 1, 1), [(384, 1, 3), (384, 3, 1)]],
    "branch3x3dbl": [(448, 1, 1), (384, 3, 3), [(384, 1, 3), (384, 3, 1)]],
    "branch_pool": [(192, 1, 1)],
}

_average = partial(nn.avg_pool, padding="SAME", count_include_pad=False)


def _mixed(
    block: str, x: Array, branches: Branches, pool: Callable[..., Array] = _average
) -> Array:
    """Concatenate the branches' maps; `branch_pool` takes the pooled input."""
    maps = [
        _chain(f"{block}.{name}", pool(x, (3, 3)) if name == "branch_pool" else x, convs)
        for name, convs in branches.items()
    ]
    return jnp.concatenate(maps, -1)


def _reduced(block: str, x: Array, branches: Branches) -> Array:
    """Concatenate the branches' maps, halved by their last convolutions, and the pooled input."""
    maps = [_chain(f"{block}.{name}", x, convs, halves=True) for name, convs in branches.items()]
    return jnp.concatenate([*maps, nn.max_pool(x, (3, 3), (2, 2))], -1)


def _chain(
    name: str, x: Array, convs: Sequence[Sizes | list[Sizes]], halves: bool = False
) -> Array:
    for number, conv in enumerate(convs, 1):
        numbered = name if len(convs) == 1 else f"{name}_{number}"
        if isinstance(conv, list):
            pair = zip(conv, "ab", strict=True)
            both = [NormalizedConv(each, name=numbered + letter)(x) for each, letter in pair]
            x = jnp.concatenate(both, -1)
        elif halves and number == len(convs):
            x = NormalizedConv(conv, 2, "VALID", name=numbered)(x)
        else:
            x = NormalizedConv(conv, name=numbered)(x)
    return x


def inception_features(file: str | Path) -> Features:
    """The features of published FID, from an Inception network whose weights are in a file.

    Images are resized to 299 x 299 by bilinear interpolation without antialiasing and scaled to
    [-1, 1]; a grey image becomes three equal channels.

    Args:
        file: an `.npz` of the network's arrays under PyTorch's names, such as
            `Mixed_5b.branch1x1.conv.weight`; other arrays, such as the classifier's, are ignored.

    Returns:
        A function of uint8 images `[N, H, W, C]`, C = 1 or 3, to `[N, 2048]`.

    Raises:
        VaeJaxError: the file cannot be read, or an array is missing or has another shape.

    References:
        Heusel et al. (2017), "GANs trained by a two time-scale update rule converge to a local Nash
            equilibrium".
    """
    network = InceptionV3()
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, random.key(0), image)["params"]
    try:
        with Path(file).open("rb") as opened, np.load(opened) as arrays:
            weights = tree_map_with_path(partial(_array, file, arrays), shapes)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise VaeJaxError(
            f"The weights {file} cannot be read ({error}): give an .npz as np.savez writes it."
        ) from error

    @parallel.jit
    def pool3(weights: Mapping[str, object], images: Array) -> Array:
        x = images / 127.5 - 1
        x = jax.image.resize(x, (len(x), SIDE, SIDE, 3), "bilinear", antialias=False)
        return jnp.asarray(network.apply({"params": weights}, x))

    def features(images: np.ndarray) -> np.ndarray:
        images = check_images(images)
        coloured = np.repeat(images, 3 // images.shape[-1], -1)
        return in_chunks(partial(pool3, weights), coloured, AT_ONCE)

    return features


def _array(
    file: str | Path,
    arrays: Mapping[str, np.ndarray],
    path: KeyPath,
    wanted: jax.ShapeDtypeStruct,
) -> Array:
    """Read the array at a path of the network's parameters."""
    name = keystr(path, simple=True, separator=".")
    if name not in arrays:
        raise VaeJaxError(f"The weights {file} have no {name}: write all of Inception-v3's arrays.")
    found = arrays[name]
    if found.shape != wanted.shape or found.dtype.kind != "f":
        raise VaeJaxError(
            f"The weights {file} have {name} as {found.dtype} {found.shape}: give floats "
            f"{wanted.shape}, as Inception-v3 has."
        )
    return jnp.asarray(found, jnp.float32)
