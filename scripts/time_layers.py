"""Times layers, with their gradients, beside what the machine's products and memory allow.

    python scripts/time_layers.py

For each layer, on 32 images: the milliseconds of it and its gradients with respect to images and
parameters, in a loop; the share of the rate of square products of 2048 that its multiplications
have (its own, as in the definition, where a method needs fewer); and the share of the rate at which
an array of 256 MB is read and written, for the bytes that have to be moved if each array is read or
written once: x and y, then x, dy and dx, and the parameters. The larger share is the layer's limit;
the smallest time of four loops counts.
"""

import time
from collections.abc import Callable
from functools import partial
from math import prod
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array, lax
from rich.console import Console
from rich.table import Table

from vae_jax import random
from vae_jax.cpu.compiler import KEEP_BARRIERS
from vae_jax.networks import layers

LOOP = 5


class Upsampled(nn.Module):
    """A 3x3 convolution of the map at twice its size."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, F]` to `[N, 2 H, 2 W, features]`."""
        size = (2 * x.shape[1], 2 * x.shape[2])
        return layers.Conv(self.features, (3, 3))(x, upsampled_to=size)


class Repeated(nn.Module):
    """The map at twice its size."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, F]` to `[N, 2 H, 2 W, F]`."""
        return layers.upsample(x, (2 * x.shape[1], 2 * x.shape[2]))


Conv = layers.Conv
# A layer, the side of its map and its features.
LAYERS: list[tuple[str, nn.Module, int, int]] = [
    ("3x3, 32 to 32", Conv(32, (3, 3)), 32, 32),
    ("3x3, 64 to 64", Conv(64, (3, 3)), 32, 64),
    ("3x3, 64 to 64", Conv(64, (3, 3)), 16, 64),
    ("3x3, 128 to 128", Conv(128, (3, 3)), 16, 128),
    ("3x3, 256 to 256", Conv(256, (3, 3)), 8, 256),
    ("3x3, 512 to 512", Conv(512, (3, 3)), 4, 512),
    ("1x1, 64 to 256", Conv(256, (1, 1)), 16, 64),
    ("4x4, stride 2, 32 to 64", Conv(64, (4, 4), 2), 32, 32),
    ("3x3, stride 2, 64 to 128", Conv(128, (3, 3), 2), 16, 64),
    ("upsampled, 3x3, 64 to 64", Upsampled(64), 16, 64),
    ("upsampled, 3x3, 128 to 64", Upsampled(64), 8, 128),
    ("upsampling alone, 64", Repeated(), 16, 64),
    ("GroupNorm, 32", layers.GroupNorm(1), 32, 32),
    ("GroupNorm, 64", layers.GroupNorm(2), 32, 64),
    ("GroupNorm, 128", layers.GroupNorm(4), 16, 128),
    ("GroupNorm, 256", layers.GroupNorm(8), 8, 256),
]


def seconds(step: Callable[..., Array], x: Array, *others: object) -> float:
    """One step of a loop from x to an array of its shape, given other arrays."""

    def loop(x: Array, *others: object) -> Array:
        return lax.scan(lambda x, _: (step(x, *others), None), x, length=LOOP)[0]

    compiled = jax.jit(loop, compiler_options=dict(KEEP_BARRIERS))
    jax.block_until_ready(compiled(x, *others))
    each = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(compiled(x, *others))
        each.append((time.perf_counter() - began) / LOOP)
    return min(each)


def with_gradients(
    apply: Callable[..., Array], x: Array, params: object, cotangent: Array
) -> Array:
    """The gradient of x, which depends on the output and on the gradients of the parameters too."""
    y, back = jax.vjp(apply, params, x)
    of_params, of_x = back(cotangent + 1e-9 * y)
    return of_x + 1e-9 * sum(leaf.sum() for leaf in jax.tree.leaves(of_params))


def multiplications(params: object, y: jax.ShapeDtypeStruct) -> int:
    """Those of a convolution to y and of its two gradients, by definition."""
    kernels = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    return sum(3 * prod(shape) * prod(y.shape[:3]) for shape in kernels)


def main(batch_size: int = 32) -> None:
    """Print the table.

    Args:
        batch_size: the number of images.
    """
    square = jnp.ones((2048, 2048))
    rate = 2048**3 / seconds(lambda a: a @ a / 2048, square)
    long = jnp.ones(2**26)
    bandwidth = 2 * long.nbytes / seconds(lambda a: a + 1, long)
    console = Console(width=120)
    console.print(f"{2e-9 * rate:.0f} GFLOP/s in square products, {1e-9 * bandwidth:.1f} GB/s")
    table = Table("layer", "map", "ms", "of the products' rate", "of the memory's rate")
    for name, layer, side, features in LAYERS:
        shape = batch_size, side, side, features
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        params = layer.init(random.key(0), x)
        y = jax.eval_shape(layer.apply, params, x)
        cotangent = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.float32)
        taken = seconds(
            partial(with_gradients, cast(Callable[..., Array], layer.apply)), x, params, cotangent
        )
        floats = 3 * x.size + 2 * y.size + 2 * sum(w.size for w in jax.tree.leaves(params))
        products = multiplications(params, y) / taken / rate
        table.add_row(
            name,
            f"{side}x{side}",
            f"{1e3 * taken:.2f}",
            f"{products:.0%}" if products else "",
            f"{4 * floats / taken / bandwidth:.0%}",
        )
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
