"""Auto-encoding variational Bayes: Figures 2, 4 and 5 of Kingma & Welling (2013).

    vae-jax train experiments/aevb.py --latent-dim 2 --workdir runs/aevb2
    vae-jax figures experiments/aevb.py

Figure 2: the lower bound per image against the training samples seen, MNIST with N_z = 3, 5, 10,
20, 200 and Frey Faces with N_z = 2, 5, 10, 20, here up to 10^6 samples (the paper's axes reach
10^8; they span -150 to -100 nats on MNIST, 0 to 1600 on Frey Faces). Its held-out curve is the
paper's test set; ours is the validation split, for test images are not looked at in training.
Figure 4: 2-D manifolds. Figure 5: samples for N_z = 2, 5, 10, 20.

The recipe: one tanh layer of 500 (MNIST) or 200 (Frey Faces) units in encoder and decoder, a
Bernoulli decoder on MNIST, a Gaussian one with sigmoid means on Frey Faces, weights from
N(0, 0.01), batches of 100, Adagrad, weight decay from the prior N(0, I) on the weights. The paper
does not say how MNIST was binarized; we draw it anew at every presentation.
"""

from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax

from vae_jax import (
    ELBO,
    MLP,
    VAE,
    Bernoulli,
    DiagonalGaussian,
    Experiment,
    HeteroscedasticGaussian,
    Run,
    StandardNormal,
    generate,
    load,
    plots,
    train_file,
)
from vae_jax.standard_figures import bound_curves

BATCH_SIZE = 100


def experiment(
    *,
    dataset: Literal["mnist", "frey_faces"] = "mnist",
    latent_dim: int = 2,
    num_samples: int = 1_000_000,
    learning_rate: float | None = None,
    init_stddev: float = 0.1,
) -> Experiment:
    """One curve of Figure 2.

    Args:
        dataset: mnist or frey_faces.
        latent_dim: N_z.
        num_samples: training samples seen in all.
        learning_rate: Adagrad's. The paper chose from 0.01, 0.02 and 0.1 by the training bound of
            the first iterations; so did we, at N_z = 10 after 10^5 samples: None is 0.02 on MNIST
            and 0.01 on Frey Faces.
        init_stddev: of the initial weights, reading the paper's N(0, 0.01) as a variance.
    """
    data = load(dataset)
    init = jax.nn.initializers.normal(init_stddev)
    if dataset == "mnist":
        hidden, default_rate, likelihood = 500, 0.02, Bernoulli(kernel_init=init)
    else:
        hidden, default_rate = 200, 0.01
        likelihood = HeteroscedasticGaussian(kernel_init=init)
    return Experiment(
        data=data,
        model=VAE(
            encoder=MLP((hidden,), kernel_init=init),
            posterior=DiagonalGaussian(latent_dim, kernel_init=init),
            prior=StandardNormal(latent_dim),
            decoder=MLP((hidden,), kernel_init=init),
            likelihood=likelihood,
            image_shape=data.image_shape,
        ),
        objective=ELBO(),
        # ln N(theta; 0, I), a share of 1/N of it for each image, is this much weight decay.
        optimizer=optax.chain(
            optax.add_decayed_weights(1 / len(data.train)),
            optax.adagrad(learning_rate or default_rate, initial_accumulator_value=0.0, eps=1e-8),
        ),
        batch_size=BATCH_SIZE,
        num_steps=num_samples // BATCH_SIZE,
        checkpoint_every=500,
    )


def figures(*, workdir: Path = Path("runs/aevb"), num_samples: int = 1_000_000) -> list[Path]:
    """Figures 2, 4 and 5, training whatever is missing.

    Args:
        workdir: holds a run for each curve, and the figures.
        num_samples: training samples for each curve.
    """
    runs: dict[tuple[str, int], Run] = {}
    for dataset, latent_dims in (("mnist", (2, 3, 5, 10, 20, 200)), ("frey_faces", (2, 5, 10, 20))):
        for latent_dim in latent_dims:
            arguments = {"dataset": dataset, "latent_dim": latent_dim, "num_samples": num_samples}
            folder = workdir / f"{dataset}-{latent_dim}"
            runs[dataset, latent_dim] = train_file(__file__, folder, arguments)
    titles = {"mnist": "MNIST", "frey_faces": "Frey Faces"}
    paths = []
    for dataset, title in titles.items():
        panels = {
            f"{title}, $N_z$ = {latent_dim}": lower_bound(run)
            for (name, latent_dim), run in runs.items()
            if name == dataset
            and (dataset, latent_dim) != ("mnist", 2)  # not in the paper's figure
        }
        paths.append(plots.save(plots.curve_panels(panels), workdir / f"figure2_{dataset}.png"))
        manifold = plots.manifold(*generate.manifold(runs[dataset, 2], 20))
        paths.append(plots.save(manifold, workdir / f"figure4_{dataset}.png"))
    samples = {
        f"$N_z$ = {latent_dim}": generate.sample(runs["mnist", latent_dim], 100)
        for latent_dim in (2, 5, 10, 20)
    }
    paths.append(plots.save(plots.sample_panels(samples), workdir / "figure5.png"))
    return paths


def lower_bound(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Training and validation ELBO in nats against training samples seen."""
    return {
        split: (steps * BATCH_SIZE, -values) for split, (steps, values) in bound_curves(run).items()
    }
