"""L_5000 of 1,000 images by vae_jax's evaluator, over and over; a step is an image."""

import json
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array
from our_step_in_a_loop import operations
from ours import experiment

from vae_jax import Experiment, random
from vae_jax.evaluation.bounds import make_bounds_evaluator
from vae_jax.step import init_state

IMAGES, SAMPLES = 20, 50  # of one call of the plain loop


def plain(
    this: Experiment, variables: Any, num_samples: int, num_images: int
) -> Callable[[Any], dict[str, Array]]:
    """The same bound by a jitted function of some samples of some images, called in a loop.

    Its matrix products are float32, as the evaluator's are.

    Prints the operations of an image's bound as XLA counts them.
    """
    protocol, images = this.data.protocol, jnp.asarray(this.data.test.images)

    def log_sum_w(variables: Any, first: Array, number: Array) -> Array:
        rows = first + jnp.arange(IMAGES)
        x_keys = random.indexed(random.key(0), rows)
        keys = random.indexed(random.indexed(random.key(1), number), jnp.arange(IMAGES))
        x = protocol.apply(images[rows], x_keys)
        terms: Any = this.model.apply(variables, x, keys, SAMPLES)
        return jax.nn.logsumexp(terms.log_w, axis=0)

    calls = num_samples // SAMPLES
    flops = operations(log_sum_w, variables, 0, 0) * calls / IMAGES
    print(json.dumps({"flops": flops}), flush=True)
    with jax.default_matmul_precision("float32"):
        compiled: Any = jax.jit(log_sum_w).lower(variables, 0, 0).compile()

    def evaluate(variables: Any) -> dict[str, Array]:
        parts = [
            [compiled(variables, first, number) for number in range(calls)]
            for first in range(0, num_images, IMAGES)
        ]
        return {"nll": math.log(num_samples) - jax.nn.logsumexp(jnp.asarray(parts), axis=1)}

    return evaluate


def main(num_samples: int = 5000, num_images: int = 1000, plain_loop: bool = False) -> None:
    """Evaluate until it is killed.

    Args:
        num_samples: the number of samples K.
        num_images: the number of images in one evaluation.
        plain_loop: whether to run the plain loop, which our evaluator must not be slower than.
    """
    this = experiment(work="mlp")
    variables: Any = jax.jit(lambda: init_state(this, 0).variables)()
    if plain_loop:
        evaluate = plain(this, variables, num_samples, num_images)
    else:
        evaluate = make_bounds_evaluator(this, "test", num_samples, num_images)
        variables = jax.tree.map(lambda leaf: np.asarray(leaf)[None], variables)
    for done in range(num_images, 10**8, num_images):
        assert np.isfinite(evaluate(variables)["nll"]).all()
        print(json.dumps({"step": done, "time": time.time()}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
