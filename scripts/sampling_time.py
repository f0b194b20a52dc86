"""The time to draw 64 pictures of 32x32 pixels from each prior over maps, with default settings.

    python scripts/sampling_time.py

The model has an 8x8 map of latents, vectors of 4 components or 240 codes, with variables at their
initial values; the program is compiled first. Ours, the median of five calls in seconds:

    GIVT                  0.45
    AutoregressiveCodes   0.11
    MaskedCodes           1.37
    StandardNormal        0.02
    UniformCodes          0.06
    FlowMatching          2.56
    Diffusion             3.44

2026-11-29, two CPU cores shared with other work, seed 0. The last two use an ODE solver, which
needs more steps once the velocity has been trained.
"""

import time
from typing import Any

import jax
import numpy as np

import vae_jax as vj
from vae_jax import parallel, random
from vae_jax.interfaces import Prior

NUM, TIMES = 64, 5
SHAPE, GRID = (8, 8, 4), (8, 8)
PRIORS: dict[str, Prior] = {
    "GIVT": vj.GIVT(SHAPE),
    "AutoregressiveCodes": vj.AutoregressiveCodes(GRID),
    "MaskedCodes": vj.MaskedCodes(GRID),
    "StandardNormal": vj.StandardNormal(SHAPE),
    "UniformCodes": vj.UniformCodes(GRID),
    "FlowMatching": vj.FlowMatching(SHAPE),
    "Diffusion": vj.Diffusion(SHAPE),
}


def model(prior: Prior) -> vj.VAE:
    """A model of colour pictures of 32x32 with this prior."""
    codes = "codes" in prior.spaces
    return vj.VAE(
        encoder=vj.ConvEncoder((32, 64), dense=None, residual_blocks=2),
        posterior=vj.FiniteScalarQuantized((8, 6, 5)) if codes else vj.DiagonalGaussian(SHAPE),
        prior=prior,
        decoder=vj.ConvDecoder((64, 32, 32), dense=None, residual_blocks=2),
        likelihood=vj.DiscretizedLogistic(),
        image_shape=(32, 32, 3),
    )


def seconds(prior: Prior) -> float:
    """The median time of a call."""
    made = model(prior)
    x, keys = np.zeros((1, 32, 32, 3), np.float32), random.indexed(random.key(0), np.arange(NUM))
    variables = jax.jit(lambda: made.init(random.key(0), x, keys[:1]))()

    @parallel.jit
    def drawn(variables: Any, keys: jax.Array) -> jax.Array:
        found: Any = made.apply(variables, keys, method="sample")
        return found[1].mean

    def once() -> float:
        start = time.perf_counter()
        drawn(variables, keys).block_until_ready()
        return time.perf_counter() - start

    once()
    return float(np.median([once() for _ in range(TIMES)]))


if __name__ == "__main__":
    print(f"| prior | seconds for {NUM} pictures |\n|---|---|")
    for name, prior in PRIORS.items():
        print(f"| {name} | {seconds(prior):.2f} |", flush=True)
