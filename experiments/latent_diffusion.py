"""Latent diffusion: an autoencoder to a map of latents, then a diffusion prior, as two runs.

    vae-jax figures experiments/latent_diffusion.py --quick
    vae-jax figures experiments/latent_diffusion.py
    vae-jax evaluate runs/latent_diffusion/fashion_mnist-diffusion --num-samples 16 --num-images 100

Published: no number on these data; Rombach et al. (2022) report the quality of pictures only,
Vahdat et al. (2021) train both stages together.

Ours, by the first command: the negative ELBO of 1,000 validation images, in the second stage with
the bound of its prior.

    N(0, I), the first stage          2172.0 nats
    diffusion                         2141.7

2026-11-29, two CPU cores shared with other work, four minutes of CPU time, seed 0. The full form,
the second command: not yet run.

The first stage is trained by the ELBO with a standard normal prior and a mass over the 256 grey
levels, so that both stages have a bound on ln p(x) of images as they are stored. The second stage
holds it fixed and fits the prior by the prior's own bound, so the gain is due to p(z) alone.
"""

from pathlib import Path

import optax

from vae_jax import (
    ELBO,
    VAE,
    ConvDecoder,
    ConvEncoder,
    DiagonalGaussian,
    Diffusion,
    DiscretizedLogistic,
    Experiment,
    StandardNormal,
    UNet,
    fit_prior,
    generate,
    load,
    plots,
    train_file,
)
from vae_jax.evaluation.table import Cell, Number, Table

CHANNELS = 4


def experiment(
    *,
    data: str = "fashion_mnist",
    width: int = 32,
    num_steps: int = 10_000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> Experiment:
    """The first stage: latents on a map of a quarter of the image's height and width.

    Args:
        data: the data set, by name or path, in grey levels.
        width: the features of the finest map; the coarser one has twice as many.
        num_steps: the number of optimizer steps.
        batch_size: the number of images in a step.
        learning_rate: Adam's initial learning rate, which decays to zero along a cosine.
    """
    loaded = load(data, protocol="grey")
    height, across, _ = loaded.image_shape
    shape = (-(-height // 4), -(-across // 4), CHANNELS)
    return Experiment(
        data=loaded,
        model=VAE(
            encoder=ConvEncoder((width, 2 * width), dense=None, residual_blocks=2),
            posterior=DiagonalGaussian(shape),
            prior=StandardNormal(shape),
            decoder=ConvDecoder((2 * width, width, width), dense=None, residual_blocks=2),
            likelihood=DiscretizedLogistic(),
        ),
        objective=ELBO(beta=optax.linear_schedule(0.0, 1.0, num_steps // 4)),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1000.0),
            optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps)),
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        validate_images=1000 if len(loaded.valid) > 1000 else None,
    )


def figures(
    *,
    workdir: Path = Path("runs/latent_diffusion"),
    data: str = "fashion_mnist",
    quick: bool = False,
) -> list[Path]:
    """Samples of both stages, and the validation bounds, training missing runs.

    Args:
        workdir: the folder of the figure, the table and both runs.
        data: the data set, by name or path.
        quick: small networks and a few hundred steps, under five minutes on two CPU cores.
    """
    name = Path(data).stem + ("-quick" if quick else "")
    arguments = {"data": data, "width": 8, "num_steps": 600} if quick else {"data": data}
    first = train_file(__file__, workdir / name, arguments)
    shape = first.experiment.model.latent_shapes(first.seed_variables)[0]
    network = UNet((16, 32), 1) if quick else UNet()
    second = fit_prior(
        first,
        Diffusion(shape, network),
        workdir / f"{name}-diffusion",
        num_steps=600 if quick else 20_000,
        batch_size=64,
    )
    runs = {"N(0, I)": first, "diffusion": second}
    samples = {prior: generate.sample(run, 64) for prior, run in runs.items()}
    figure = plots.save(plots.sample_panels(samples), workdir / f"{name}_samples")
    bounds: list[list[Cell]] = [
        [prior, Number(run.metric("valid_neg_elbo")[1][-1], decimals=1)]
        for prior, run in runs.items()
    ]
    table = Table(["prior", "negative ELBO"], bounds, "Nats per validation image.")
    return [figure, table.write(workdir / f"{name}.md")]
