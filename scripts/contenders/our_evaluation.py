"""L_5000 of 1,000 images by vae_jax's evaluator, over and over; a step is an image."""

import json
import time

import jax
import numpy as np
import tyro
from ours import experiment

from vae_jax import parallel
from vae_jax.evaluate import make_evaluator
from vae_jax.train import init_state


def main(num_samples: int = 5000, num_images: int = 1000) -> None:
    """Evaluates until it is killed."""
    this = experiment(work="mlp")
    evaluate = make_evaluator(this, "test", num_samples, num_images)
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[None], init_state(this, 0))
    variables = parallel.replicate(state.variables)
    for done in range(num_images, 10**8, num_images):
        assert np.isfinite(evaluate(variables)["nll"]).all()
        print(json.dumps({"step": done, "time": time.time()}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
