"""Hyperspherical variational autoencoders (Davidson et al. 2018) beside Gaussian ones.

    vae-jax train experiments/hyperspherical.py --latent-dim 10 --workdir runs/hyperspherical/vmf-10
    vae-jax evaluate runs/hyperspherical/vmf-10 --num-samples 500
    vae-jax figures experiments/hyperspherical.py

The paper's network on dynamically binarized MNIST: 256-128 ReLU units and back, von Mises-Fisher
posterior and uniform prior on the unit sphere of R^d, Adam at 1e-3, batches of 64. `--latents
gaussian` is its baseline, a diagonal Gaussian in R^(d-1), which has as many degrees of freedom.
"""

from pathlib import Path
from typing import Literal

import jax
import optax

from vae_jax import (
    ELBO,
    MLP,
    VAE,
    Bernoulli,
    DiagonalGaussian,
    Experiment,
    HypersphericalUniform,
    StandardNormal,
    VonMisesFisher,
    generate,
    load,
    plots,
    train_file,
)


def experiment(
    *,
    latents: Literal["sphere", "gaussian"] = "sphere",
    latent_dim: int = 10,
    dataset: Literal["mnist", "fashion_mnist", "mnist_5k"] = "mnist",
    epochs: int = 10,
) -> Experiment:
    """One model.

    Args:
        latents: unit vectors, or the Gaussian baseline.
        latent_dim: d of the sphere in R^d; the Gaussian has d - 1 dimensions.
        dataset: dynamically binarized.
        epochs: passes over the training images.
    """
    data = load(dataset)
    if latents == "sphere":
        posterior, prior = VonMisesFisher(latent_dim), HypersphericalUniform(latent_dim)
    else:
        posterior, prior = DiagonalGaussian(latent_dim - 1), StandardNormal(latent_dim - 1)
    return Experiment(
        data=data,
        model=VAE(
            encoder=MLP((256, 128), jax.nn.relu),
            posterior=posterior,
            prior=prior,
            decoder=MLP((128, 256), jax.nn.relu),
            likelihood=Bernoulli(),
            image_shape=data.image_shape,
        ),
        objective=ELBO(),
        optimizer=optax.adam(1e-3),
        batch_size=64,
        num_steps=epochs * len(data.train) // 64,
        checkpoint_every=500,
    )


def figures(*, workdir: Path = Path("runs/hyperspherical"), epochs: int = 5) -> list[Path]:
    """Samples and great-circle interpolations, training what is missing.

    Args:
        workdir: holds a run for each model, and the figures.
        epochs: passes over the training images.
    """
    runs = {
        name: train_file(__file__, workdir / name, {"latents": name, "epochs": epochs})
        for name in ("sphere", "gaussian")
    }
    samples = {name: generate.sample(run, 100) for name, run in runs.items()}
    paths = [plots.save(plots.sample_panels(samples), workdir / "samples.png")]
    for name, run in runs.items():
        figure = plots.interpolations(generate.interpolate(run, "valid", 6, 11))
        paths.append(plots.save(figure, workdir / f"interpolations_{name}.png"))
    return paths
