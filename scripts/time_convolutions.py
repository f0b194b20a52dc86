"""Times a convolution and its two gradients in a loop, by each method in `vae_jax/cpu`.

    python scripts/time_convolutions.py
    python scripts/time_convolutions.py --work resnet

Prints the milliseconds of each, by the clock and, in brackets, for all cores together: the smallest
over four loops of six calls. "XLA" is `jax.lax.conv_general_dilated` and its transposes unchanged,
in the first column outside loops; `vae_jax/cpu/convolution.py` chooses among the other methods by
these numbers.

With a workload of the benchmark it instead times every convolution of one training step, gradients
included, by the method that is chosen and by PyTorch, each alone: how much of the difference
between two steps is that between two libraries.
"""

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

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


def timed(function: Function, a: Array, b: Array, looped: bool = True) -> tuple[float, float]:
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
    wall, cores = 1e3 * np.min(each, 0) / STEPS
    return wall, cores


def normal(shape: Shape) -> Array:
    """An array of standard normal numbers."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


# --- Of a workload, beside PyTorch --------------------------------------------------------------

Form = tuple[Of, Geometry, tuple[Shape, Shape]]


def forms_in(jaxpr: Jaxpr, times: int = 1) -> Iterator[tuple[Form, int]]:
    """The convolutions and gradients in a traced function, and how often each is computed."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convolution_form":
            a, b = (cast(ShapedArray, variable.aval).shape for variable in equation.invars)
            yield (equation.params["of"], equation.params["geometry"], (a, b)), times
        inner = times * equation.params.get("length", 1)
        for each in functions_in(equation):
            yield from forms_in(each, inner)


def functions_in(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The functions that an operation such as a loop or a branch calls."""
    for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)
    ):
        if isinstance(value, Jaxpr | ClosedJaxpr):
            yield value.jaxpr if isinstance(value, ClosedJaxpr) else value


def forms_of(work: Work, batch_size: int) -> Counter[Form]:
    """The convolutions of a training step, gradients included."""
    this = experiment(work=work, batch_size=batch_size)
    state = jax.eval_shape(partial(init_state, this), 0)
    images, batch = empty_batch(this, batch_size)

    def step(state: TrainState) -> object:
        return loss_and_gradients(this, state, images, batch, jnp.uint32(0), None)

    traced = jax.make_jaxpr(step)(state)
    found: Counter[Form] = Counter()
    for form, times in forms_in(traced.jaxpr):
        found[form] += times
    return found


def operands(form: Form) -> tuple[Array, Array]:
    """Arrays of a convolution's shapes."""
    a, b = form[2]
    return normal(a), normal(b)


def of_pytorch(form: Form) -> tuple[str, int, Shape, int, int, Shape, int, int]:
    """What torch_convolutions.py is told of a convolution."""
    of, geometry, (a, b) = form
    shapes = dict(zip(OPERANDS[of], (a, b), strict=True)) | {of: geometry.shape(of, a, b)}
    images, inputs, features = shapes["image"][0], shapes["image"][3], shapes["output"][3]
    groups = inputs if geometry.depthwise else 1
    return of, images, geometry.size, inputs, features, geometry.window, geometry.stride, groups


def beside_pytorch(work: Work, batch_size: int, peers: Path) -> None:
    """Print the milliseconds of each convolution of a step, and their sums."""
    forms = forms_of(work, batch_size)
    told = [of_pytorch(form) for form in forms]
    ours, theirs = [], []
    for _ in range(2):  # in turns, since a machine's speed changes
        command = [peers / "bin" / "python", ROOT / "scripts/contenders/torch_convolutions.py"]
        theirs.append(
            json.loads(subprocess.check_output(command, input=json.dumps(told), text=True))
        )
        ours.append([timed(partial(_form, form), *operands(form))[0] for form in forms])
    each = list(zip(forms.items(), np.min(ours, 0), np.min(theirs, 0), strict=True))
    table = Table("of", "N, H, W, I, O, kernel, stride", "times a step", "ours, ms", "PyTorch, ms")
    for (form, times), our, their in sorted(each, key=lambda one: -one[0][1] * one[1]):
        of, images, size, inputs, features, window, stride, _ = of_pytorch(form)
        shape = f"{images}, {size}, {inputs}, {features}, {window}, {stride}"
        table.add_row(of, shape, str(times), f"{our:.2f}", f"{their:.2f}")
    times = np.array(list(forms.values()))
    sums = [f"{times @ np.min(one, 0):.0f}" for one in (ours, theirs)]
    table.add_row("all of a step", "", str(times.sum()), *sums)
    Console(width=120).print(table)


def _form(form: Form, a: Array, b: Array) -> Array:
    """The convolution or gradient, by the method that is chosen for its shapes."""
    of, geometry, _ = form
    return computed(a, b, of=of, geometry=geometry)


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
        work: the workload whose convolutions are timed, instead of some shapes.
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
