"""What TF32, the default of matrix products on Nvidia's GPUs, does to densities and gradients.

    python scripts/tensorfloat32.py

Of each case of `tests/test_float64.py` whose program multiplies matrices, and of a network, prints
the largest error of values and of gradients, relative to the largest number of an array in float64,
with `jax.default_matmul_precision` at "float32" and at "default", the precision of training.
The densities' products say their own precision, which this default does not change, so the columns
are equal; those of a network say none and differ, on a GPU. A CPU has no TF32: there all are equal.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import MLP, random

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_float64 import (  # pyright: ignore[reportMissingImports]
    CASES,
    Case,
    normal,
    products,
    value_and_gradients,
)

UNSAID = "MLP 784-200-200, a network"
PRECISIONS = "float32", "default"


def multiplies(case: Case) -> bool:
    """Whether the case's program, with its gradients, multiplies matrices."""
    function, arrays = case
    arrays = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), arrays)
    program = jax.make_jaxpr(partial(value_and_gradients, function))(arrays)
    return any(True for _ in products(program.jaxpr))


def error(found: Any, exact: Any) -> float:
    """The largest error of a tree's arrays, each relative to the largest number of its array."""

    def of_one(found: Any, exact: Any) -> float:
        difference = np.asarray(found, np.float64) - np.asarray(exact)
        return np.abs(difference).max() / np.abs(exact).max()

    return max(jax.tree.leaves(jax.tree.map(of_one, found, exact)))


def errors(case: Case) -> list[tuple[float, float]]:
    """Of values and of gradients, at each of `PRECISIONS`."""
    function, arrays = case
    arrays = jax.tree.map(lambda a: np.asarray(a, np.float32), arrays)
    with jax.enable_x64(True):
        exact = value_and_gradients(function, jax.tree.map(np.float64, arrays))
    found = []
    for precision in PRECISIONS:
        with jax.default_matmul_precision(precision):
            each = value_and_gradients(function, arrays)
        value, gradient = map(error, each, exact)
        found.append((value, gradient))
    return found


def main() -> None:
    """Print a row for each case."""
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    if jax.default_backend() == "cpu":
        print("A CPU has no TF32: both precisions are float32's, and the columns are the same.")
    print("\n| | value, float32 | gradient, float32 | value, default | gradient, default |")
    print("|---|---|---|---|---|")
    module, x = MLP((200, 200)), normal(20, 784)
    unsaid: Case = (module.apply, (module.init(random.key(0), x), x))
    for name, case in (CASES | {UNSAID: unsaid}).items():
        if not multiplies(case):
            continue
        cells = [f"{each:.1e}" for pair in errors(case) for each in pair]
        name = name.replace("||", "from")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
