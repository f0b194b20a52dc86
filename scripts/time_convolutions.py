"""Times a convolution and its two gradients in a loop, by each method in `vae_jax/cpu`.

    python scripts/time_convolutions.py

Prints the milliseconds of each, by the clock and, in brackets, for all cores together: the smallest
over four loops of six calls. "XLA" is `jax.lax.conv_general_dilated` and its transposes unchanged,
in the first column outside loops; `vae_jax/cpu/convolution.py` chooses among the other methods by
these numbers.
"""

import resource
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array, lax
from rich.console import Console
from rich.table import Table

from vae_jax.cpu.compiler import KEEP_BARRIERS
from vae_jax.cpu.convolution import LIBRARY, OPERANDS, Geometry, Of
from vae_jax.cpu.convolution_products import by_patches, by_tiles

STEPS = 6
Function = Callable[[Array, Array], Array]
# Images, their side, features in and out, the kernel's side, and the stride.
SHAPES = [
    (32, 32, 3, 32, 3, 1),
    (32, 32, 32, 32, 3, 1),
    (32, 16, 64, 64, 3, 1),
    (64, 8, 128, 128, 3, 1),
    (128, 2, 64, 64, 3, 1),
    (32, 32, 32, 64, 3, 2),
    (128, 28, 1, 32, 4, 2),
    (128, 14, 32, 64, 4, 2),
    (32, 32, 32, 64, 4, 2),
    (32, 8, 128, 256, 4, 2),
]


def of_all(method: Function, of: Of, shape: tuple[int, ...]) -> Function:
    """The output of a method of convolution, or the gradient that is its transpose."""
    sought = jax.ShapeDtypeStruct(shape, jnp.float32)
    match of:
        case "output":
            return method
        case "image":
            return lambda y, k: jax.linear_transpose(lambda x: method(x, k), sought)(y)[0]
        case "kernel":
            return lambda x, y: jax.linear_transpose(lambda k: method(x, k), sought)(y)[0]


def timed(function: Function, a: Array, b: Array, looped: bool = True) -> str:
    """Milliseconds of one call, by the clock and of all cores together."""

    def loop(a: Array, b: Array) -> Array:
        def step(a: Array, _: None) -> tuple[Array, None]:
            first = function(a, b).ravel()[0]
            return a.at[(0,) * a.ndim].set(1e-9 * first), None

        return lax.scan(step, a, length=STEPS)[0]

    compiled = jax.jit(loop if looped else function, compiler_options=dict(KEEP_BARRIERS))
    jax.block_until_ready(compiled(a, b))
    each = []
    for _ in range(4):
        used, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(1 if looped else STEPS):
            jax.block_until_ready(compiled(a, b))
        wall, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        each.append((wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime))
    wall, cores = (1e3 * value / STEPS for value in np.min(each, 0))
    return f"{wall:.1f} ({cores:.1f})"


def main(slow: bool = False) -> None:
    """Print the table.

    Args:
        slow: whether to time XLA's own gradients in a loop too, which take seconds.
    """
    columns = ["XLA, no loop", *(["XLA"] if slow else []), "library", "patches", "tiles"]
    table = Table("N, H, I, O, kernel, stride", "of", *columns)
    generator = np.random.default_rng(0)
    for number, side, inputs, features, width, stride in SHAPES:
        geometry = Geometry((side, side), (width, width), stride)
        shapes: dict[Of, tuple[int, ...]] = {
            "image": (number, side, side, inputs),
            "kernel": (width, width, inputs, features),
            "output": (number, *geometry.small, features),
        }
        arrays = {
            of: jnp.asarray(generator.normal(size=shape), jnp.float32)
            for of, shape in shapes.items()
        }
        plain = partial(
            lax.conv_general_dilated,
            window_strides=(stride, stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for of, operands in OPERANDS.items():
            a, b = (arrays[operand] for operand in operands)
            librarys = of_all(plain, of, shapes[of])
            cells = [timed(librarys, a, b, looped=False)]
            cells += [timed(librarys, a, b)] if slow else []
            cells.append(timed(partial(LIBRARY[of], geometry=geometry), a, b))
            cells.append(timed(of_all(partial(by_patches, stride=stride), of, shapes[of]), a, b))
            tiled = (width, stride) == (3, 1)
            cells.append(timed(of_all(by_tiles, of, shapes[of]), a, b) if tiled else "")
            shape = str((number, side, inputs, features, width, stride))
            table.add_row(shape if of == "output" else "", of, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    tyro.cli(main)
