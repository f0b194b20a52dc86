"""Importance weighted autoencoders: Table 1 of Burda, Grosse & Salakhutdinov (2015).

    vae-jax train experiments/iwae.py --k 5 --stages 5 --workdir runs/iwae/iwae-1-5
    vae-jax evaluate runs/iwae/iwae-1-5
    vae-jax figures experiments/iwae.py

Published test NLL by L_5000 on MNIST, nats, active units in brackets, after all 8 stages (3,280
epochs): 1 layer, k = 1 / 5 / 50: VAE 86.76 (19) / 86.47 (20) / 86.35 (20), IWAE 86.76 (19) /
85.54 (22) / 84.78 (25); 2 layers: VAE 85.33 (16+5) / 85.01 (17+5) / 84.78 (17+5), IWAE 85.33
(16+5) / 83.89 (21+5) / 82.90 (26+7). Ours stand in docs/results.md with command, hardware, time.

Two recipes. `paper`: 60,000 shuffled training images, Adam with beta_1 = 0.9 on the batch's mean
gradient. `official_code` (github.com/yburda/iwae): 59,600 images in their order, beta_1 = 0.99,
second moments that start at one, and the batch's summed gradient; its one-step delay between a
gradient and its use is left out. The latter's remaining 400 images serve as validation.
"""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vae_jax import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Bernoulli,
    DiagonalGaussian,
    Experiment,
    HierarchicalVAE,
    StandardNormal,
    load,
    plots,
)
from vae_jax.figures import bound_curves
from vae_jax.generate import sample
from vae_jax.train import train_file

BATCH_SIZE = 20


def learning_rate(stages: int, steps_per_epoch: int) -> optax.Schedule:
    """1e-4 round(10^(1 - (i-1)/7), 1) for 3^(i-1) epochs, i = 1 ... `stages` (section 5)."""
    rates = [1e-4 * round(10 ** (1 - i / 7), 1) for i in range(stages)]
    ends = np.cumsum([3**i for i in range(stages)]) * steps_per_epoch
    schedules = [optax.constant_schedule(rate) for rate in rates]
    return optax.join_schedules(schedules, ends[:-1].tolist())


def adam_of_the_code(rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam with second moments that start at one, on gradients summed over the batch."""
    adam = optax.scale_by_adam(b1=0.99, b2=0.999, eps=1e-4)

    def init(params: optax.Params) -> optax.OptState:
        state = adam.init(params)
        assert isinstance(state, optax.ScaleByAdamState)
        return state._replace(nu=jax.tree.map(jnp.ones_like, params))

    return optax.chain(
        optax.scale(BATCH_SIZE),
        optax.GradientTransformation(init, adam.update),
        optax.scale_by_learning_rate(rate),
    )


def experiment(
    *,
    k: int = 1,
    objective: Literal["iwae", "vae"] = "iwae",
    layers: Literal[1, 2] = 1,
    stages: int = 8,
    recipe: Literal["paper", "official_code"] = "paper",
) -> Experiment:
    """One cell of Table 1.

    Args:
        k: samples.
        objective: the importance-weighted bound, or the ELBO averaged over k samples.
        layers: stochastic layers, of 50, or of 100 and 50 units.
        stages: of the schedule; all 8 are 3,280 epochs, the first 5 are 121.
        recipe: the paper's, or that of its code.
    """
    data = load("mnist", "dynamic", valid=0 if recipe == "paper" else 400)
    mean = np.clip(data.train.images.mean(0) / 255, 0.001, 0.999).reshape(-1)
    likelihood = Bernoulli(bias_init=jax.nn.initializers.constant(np.log(mean / (1 - mean))))
    if layers == 1:
        model = VAE(
            encoder=MLP((200, 200)),
            posterior=DiagonalGaussian(50),
            prior=StandardNormal(50),
            decoder=MLP((200, 200)),
            likelihood=likelihood,
        )
    else:
        model = HierarchicalVAE(
            encoders=(MLP((200, 200)), MLP((100, 100))),
            posteriors=(DiagonalGaussian(100), DiagonalGaussian(50)),
            prior=StandardNormal(50),
            decoders=(MLP((200, 200)), MLP((100, 100))),
            conditionals=(DiagonalGaussian(100),),
            likelihood=likelihood,
        )
    steps_per_epoch = len(data.train) // BATCH_SIZE
    rate = learning_rate(stages, steps_per_epoch)
    return Experiment(
        data=data,
        model=model,
        objective=IWAE(k) if objective == "iwae" else ELBO(k),
        optimizer=optax.adam(rate, eps=1e-4) if recipe == "paper" else adam_of_the_code(rate),
        num_steps=sum(3**i for i in range(stages)) * steps_per_epoch,
        batch_size=BATCH_SIZE,
        shuffle=recipe == "paper",
        log_every=1000,
        checkpoint_every=30_000,
    )
