"""Times a convolution and its two gradients in a loop, by each method in `vae_jax/cpu`.

    python scripts/time_operations.py
    python scripts/time_operations.py --work resnet

Prints the milliseconds of each, by the clock and, in brackets, for all cores together: the smallest
over loops of six calls, which go on for 0.3 seconds and four times at least. "XLA" is
`jax.lax.conv_general_dilated` and its transposes unchanged, in the first column outside loops;
`vae_jax/cpu/convolution.py` chooses among the other methods by these numbers.

With a workload of the benchmark it instead times every convolution and every product of matrices of
one training step, gradients included, by the method that is chosen and by PyTorch, each alone: how
much of the difference between two steps is that between two libraries.
"""

import json
import resource
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from rich.console import Console
from rich.table import Table

from vae_jax.cpu.compiler import KEEP_BARRIERS
from vae_jax.cpu.convolution import LIBRARY, OPERANDS, Geometry, Of, Shape, computed
from vae_jax.cpu.convolution_products import by_patches, by_tiles
from vae_jax.step import TrainState, empty_batch, init_state, loss_and_gradients

sys.path.insert(0, str(Path(__file__).parent / "contenders"))
from ours import Work, experiment  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
STEPS, LOOPS, SECONDS = 6, 4, 0.3  # as in contenders/torch_operations.py
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


def timed(function: Function, a: Array, b: Array, looped: bool = True) -> tuple[float, float]:
    """Milliseconds of one call, by the clock and of all cores together."""

    def loop(a: Array, b: Array) -> Array:
        def step(a: Array, _: None) -> tuple[Array, None]:
            first = function(a, b).ravel()[0]
            return a.at[(0,) * a.ndim].set(1e-9 * first), None

        return lax.scan(step, a, length=STEPS)[0]

    compiled = jax.jit(loop if looped else function, compiler_options=dict(KEEP_BARRIERS))
    jax.block_until_ready(compiled(a, b))
    each, end = [], time.perf_counter() + SECONDS
    while len(each) < LOOPS or time.perf_counter() < end:
        used, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(1 if looped else STEPS):
            jax.block_until_ready(compiled(a, b))
        wall, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        each.append((wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime))
    wall, cores = 1e3 * np.min(each, 0) / STEPS
    return wall, cores


def normal(shape: Shape) -> Array:
    """An array of standard normal numbers."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


# --- Of a workload, beside PyTorch --------------------------------------------------------------

Shapes = tuple[Shape, Shape]
Convolution = tuple[Of, Geometry, Shapes]
Dimensions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]
Product = tuple[Dimensions, Shapes]
"""The axes that are summed over and those of the batch, of both operands; their shapes."""
Operation = Convolution | Product
OF_MATRICES: Dimensions = (((1,), (0,)), ((), ()))


def operations_in(jaxpr: Jaxpr, times: int = 1) -> Iterator[tuple[Operation, int]]:
    """The convolutions and products in a traced function, and how often each is computed."""
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name in ("convolution_form", "dot_general", "product_of_rows"):
            a, b = (cast(ShapedArray, variable.aval).shape for variable in equation.invars)
            if name == "convolution_form":
                yield (parameters["of"], parameters["geometry"], (a, b)), times
            else:
                yield (parameters.get("dimension_numbers", OF_MATRICES), (a, b)), times
        for each in functions_in(equation):
            yield from operations_in(each, times * parameters.get("length", 1))


def functions_in(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The functions that an operation such as a loop or a branch calls."""
    for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)
    ):
        if isinstance(value, Jaxpr | ClosedJaxpr):
            yield value.jaxpr if isinstance(value, ClosedJaxpr) else value


def operations_of(work: Work, batch_size: int) -> Counter[Operation]:
    """The convolutions and products of a training step, gradients included."""
    this = experiment(work=work, batch_size=batch_size)
    state = jax.eval_shape(partial(init_state, this), 0)
    images, batch = empty_batch(this, batch_size)

    def step(state: TrainState) -> object:
        return loss_and_gradients(this, state, images, batch, jnp.uint32(0), None)

    found: Counter[Operation] = Counter()
    for operation, times in operations_in(jax.make_jaxpr(step)(state).jaxpr):
        found[operation] += times
    return found


def equation_of(product: Product) -> str:
    """A product as Einstein's summation."""
    ((summed, summed_b), (batch, batch_b)), (a, b) = product
    letters = iter(string.ascii_letters)
    of_a = [next(letters) for _ in a]
    of_b = ["" for _ in b]
    for own, other in zip((*summed, *batch), (*summed_b, *batch_b), strict=True):
        of_b[other] = of_a[own]
    of_b = [letter or next(letters) for letter in of_b]
    free = [of_a[i] for i in range(len(a)) if i not in (*summed, *batch)]
    free += [of_b[i] for i in range(len(b)) if i not in (*summed_b, *batch_b)]
    return f"{''.join(of_a)},{''.join(of_b)}->{''.join([*(of_a[i] for i in batch), *free])}"


def for_pytorch(operation: Operation) -> list[Any]:
    """What torch_operations.py is told of an operation."""
    if len(operation) == 2:
        return [equation_of(operation), *operation[1]]
    of, geometry, (a, b) = operation
    shapes = dict(zip(OPERANDS[of], (a, b), strict=True)) | {of: geometry.shape(of, a, b)}
    images, inputs, features = shapes["image"][0], shapes["image"][3], shapes["output"][3]
    groups = inputs if geometry.depthwise else 1
    return [of, images, geometry.size, inputs, features, geometry.window, geometry.stride, groups]


def ours(operation: Operation, a: Array, b: Array) -> Array:
    """The operation; a convolution by the method that is chosen for its shapes."""
    if len(operation) == 2:
        return lax.dot_general(a, b, operation[0])
    of, geometry, _ = operation
    return computed(a, b, of=of, geometry=geometry)


def beside_pytorch(work: Work, batch_size: int, peers: Path) -> None:
    """Print the milliseconds of each convolution and product of a step, and their sums."""
    operations = operations_of(work, batch_size)
    told = json.dumps([for_pytorch(each) for each in operations])
    rounds: list[list[list[float]]] = []
    for _ in range(2):  # in turns, since a machine's speed changes
        command = [peers / "bin" / "python", ROOT / "scripts/contenders/torch_operations.py"]
        theirs = json.loads(subprocess.check_output(command, input=told, text=True))
        own = [
            timed(partial(ours, each), normal(each[-1][0]), normal(each[-1][1]))[0]
            for each in operations
        ]
        rounds.append([own, theirs])
    each = list(zip(operations.items(), np.min(rounds, 0).T, strict=True))
    table = Table("operation", "shapes", "times a step", "ours, ms", "PyTorch, ms")
    for (operation, times), both in sorted(each, key=lambda one: -one[0][1] * one[1][0]):
        name, *rest = for_pytorch(operation)
        table.add_row(name, ", ".join(map(str, rest)), str(times), *(f"{ms:.2f}" for ms in both))
    for kind, length in (("convolutions", 3), ("products", 2)):
        some = [(times, both) for (one, times), both in each if len(one) == length]
        sums = [f"{sum(times * both[n] for times, both in some):.0f}" for n in (0, 1)]
        table.add_row(f"all {kind}", "", str(sum(times for times, _ in some)), *sums)
    Console(width=140).print(table)


# --- Of some shapes, by every method ------------------------------------------------------------


def main(
    slow: bool = False,
    work: Work | None = None,
    batch_size: int = 32,
    peers: Path = ROOT / ".venv-peers",
) -> None:
    """Print a table.

    Args:
        slow: whether to time XLA's own gradients in a loop too, which take seconds.
        work: the workload whose operations are timed, instead of convolutions of some shapes.
        batch_size: the number of images of its step.
        peers: an environment with torch.
    """
    if work is not None:
        return beside_pytorch(work, batch_size, peers)
    columns = ["XLA, no loop", *(["XLA"] if slow else []), "library", "patches", "tiles"]
    table = Table("N, H, I, O, kernel, stride", "of", *columns)
    for number, side, inputs, features, width, stride in SHAPES:
        geometry = Geometry((side, side), (width, width), stride)
        shapes: dict[Of, tuple[int, ...]] = {
            "image": (number, side, side, inputs),
            "kernel": (width, width, inputs, features),
            "output": (number, *geometry.small, features),
        }
        arrays = {of: normal(shape) for of, shape in shapes.items()}
        plain = partial(
            lax.conv_general_dilated,
            window_strides=(stride, stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for of, operands in OPERANDS.items():
            a, b = (arrays[operand] for operand in operands)
            librarys = of_all(plain, of, shapes[of])
            times = [timed(librarys, a, b, looped=False)]
            times += [timed(librarys, a, b)] if slow else []
            times.append(timed(partial(LIBRARY[of], geometry=geometry), a, b))
            times.append(timed(of_all(partial(by_patches, stride=stride), of, shapes[of]), a, b))
            if (width, stride) == (3, 1):
                times.append(timed(of_all(by_tiles, of, shapes[of]), a, b))
            cells = [f"{wall:.1f} ({cores:.1f})" for wall, cores in times]
            shape = str((number, side, inputs, features, width, stride))
            table.add_row(shape if of == "output" else "", of, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    tyro.cli(main)
