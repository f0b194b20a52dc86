"""The road of a training step: which functions of the package JAX enters while it traces one.

    python scripts/trace_step.py

Traces `vae_jax.step.train_step` for the plainest run (an MLP with a Gaussian posterior, binarized
images, the ELBO, Adam, one device) and prints the files in the order in which they are entered,
each with its functions: all that has to be read to know what a step does. Functions of JAX, Flax
and Optax are left out.
"""

import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from vae_jax import (
    ELBO,
    MLP,
    VAE,
    Bernoulli,
    Data,
    DiagonalGaussian,
    Experiment,
    StandardNormal,
    step,
)

PACKAGE = Path(vae_jax.__file__).parent
Road = dict[str, list[str]]
"""Functions by file, both in the order of their first call."""


def plainest() -> Experiment:
    """The plainest run: as few parts of the package as possible have anything to do."""
    images = np.zeros((8, 4, 4, 1), np.uint8)
    return Experiment(
        data=Data.from_arrays("dark", images, protocol="dynamic"),
        model=VAE(
            encoder=MLP((3,)),
            posterior=DiagonalGaussian(2),
            prior=StandardNormal(2),
            decoder=MLP((3,)),
            likelihood=Bernoulli(),
            image_shape=images.shape[1:],
        ),
        objective=ELBO(),
        optimizer=optax.adam(1e-3),
        num_steps=1,
        batch_size=4,
    )


def road(experiment: Experiment) -> Road:
    """The functions of this package that tracing one step of an experiment enters.

    A function defined within another counts as that one.
    """
    rows = jnp.arange(experiment.batch_size)
    y = None if experiment.model.labels is None else jnp.zeros_like(rows)
    images = jnp.zeros((len(rows), *experiment.data.image_shape), jnp.uint8)
    state = jax.eval_shape(partial(step.init_state, experiment), 0)
    batch = step.Batch(rows=rows, images=None, y=y)
    entered: Road = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        name = frame.f_code.co_qualname.partition(".<locals>")[0]
        if event == "call" and file.is_relative_to(PACKAGE) and not name.startswith("<"):
            functions = entered.setdefault(file.relative_to(PACKAGE).as_posix(), [])
            if name not in functions:
                functions.append(name)

    jax.clear_caches()  # what was traced once is not entered again
    sys.setprofile(note)
    try:
        jax.eval_shape(partial(step.train_step, experiment, axis=None), state, images, batch, 0)
    finally:
        sys.setprofile(None)
    return entered


def main() -> None:
    """Print the road of the plainest step."""
    found = road(plainest())
    for file, functions in found.items():
        print(f"{file}: {', '.join(functions)}")
    count = sum(map(len, found.values()))
    print(f"{count} functions in {len(found)} files")


if __name__ == "__main__":
    main()
