"""The rate-distortion curve of a beta-VAE: Alemi et al. (2018), "Fixing a broken ELBO".

    vae-jax train experiments/rate_distortion.py --beta 0.1 0.3 1 3 10 --workdir runs/rd
    vae-jax evaluate runs/rd
    vae-jax table runs/rd
    vae-jax figures experiments/rate_distortion.py

Published: as beta grows, the rate R falls and the distortion D rises along a convex curve, on which
dD/dR = -beta where the model is flexible enough; at beta = 1 R + D, the negative ELBO, is least.

Ours: not yet run.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import optax

from vae_jax import (
    ELBO,
    MLP,
    VAE,
    Bernoulli,
    DiagonalGaussian,
    Experiment,
    StandardNormal,
    evaluate,
    load,
    plots,
    train_grid,
)


def experiment(
    *,
    beta: float = 1.0,
    learning_rate: float = 1e-3,
    latent_dim: int = 20,
    hidden: int = 200,
    epochs: int = 50,
    data: Literal["mnist_5k", "mnist"] = "mnist_5k",
) -> Experiment:
    """A beta-VAE of MLPs on dynamically binarized digits.

    Args:
        beta: the weight of the rate in the loss D + beta R.
        learning_rate: Adam's, which decays to zero along a cosine.
        latent_dim: the dimensions of z.
        hidden: the units of either hidden layer of encoder and decoder.
        epochs: the number of passes over the training images.
        data: the data set.
    """
    loaded = load(data)
    batch_size = 100
    num_steps = epochs * len(loaded.train) // batch_size
    return Experiment(
        data=loaded,
        model=VAE(
            encoder=MLP((hidden, hidden)),
            posterior=DiagonalGaussian(latent_dim),
            prior=StandardNormal(latent_dim),
            decoder=MLP((hidden, hidden)),
            likelihood=Bernoulli(),
        ),
        objective=ELBO(beta=beta),
        optimizer=optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps)),
        batch_size=batch_size,
        num_steps=num_steps,
    )


def figures(
    *,
    workdir: Path = Path("runs/rate_distortion"),
    betas: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0),
    epochs: int = 50,
    num_seeds: int = 1,
) -> list[Path]:
    """Distortion against rate of the test images, with a point for each beta, and R + D.

    Args:
        workdir: the folder of the figure and of the cells' run folders.
        betas: the weights of the rate.
        epochs: the number of passes over the training images.
        num_seeds: the number of seeds of each beta, over which the points are means.
    """
    cells = [{"beta": beta, "epochs": epochs} for beta in betas]
    runs = train_grid(__file__, workdir, cells, num_seeds=num_seeds)
    means = [evaluate(run, num_samples=100).mean for run in runs.values()]
    rates, distortions = (
        np.array([mean[name].mean() for mean in means]) for name in ("kl", "distortion")
    )
    panels = {
        "against the rate R [nats]": {"distortion D": (rates, distortions)},
        "against beta": {"R + D": (betas, rates + distortions), "R": (betas, rates)},
    }
    figure = plots.scaling(panels, xlabel="", ylabel="nats per image", yscale="linear")
    return [plots.save(figure, workdir / "rate_distortion.png")]
