"""GIVT: an autoencoder to a map of latents, then an autoregressive transformer over its vectors.

    vae-jax figures experiments/givt.py --quick
    vae-jax figures experiments/givt.py
    vae-jax figures experiments/givt.py --data cifar10_jpeg
    vae-jax figures experiments/givt.py --data emoji_styles --downsampling 8
    vae-jax evaluate runs/givt/fashion_mnist-givt --num-samples 64 --num-images 1000
    vae-jax sample runs/givt/fashion_mnist-givt --temperature 0.9 --out drawn.png

Published: no number on these data; Tschannen et al. (2023) draw 256x256 pictures of ImageNet.

Ours, by the first command: negative ELBO of 1,000 validation images of Fashion-MNIST, nats.

    N(0, I), after 600 steps      2172.3
    GIVT, after 800 steps more    2130.8

Draws from N(0, I) become clouds, and GIVT's become clothes and shoes with soft edges. 2026-11-30,
two CPU cores of which another program used one, 10 s and 50 s of training, seed 0. The full form:
not yet run.

The first stage is trained by the ELBO with a standard normal prior and a mass over the 256 grey
levels; the second holds it fixed and fits the prior. Its ln p(z) is exact, so that both stages have
L_K, a bound on ln p(x) of images as they are stored, and the gain is due to p(z) alone.
"""

from pathlib import Path
from typing import Literal

import optax

from vae_jax import (
    ELBO,
    GIVT,
    VAE,
    ConvDecoder,
    ConvEncoder,
    DiagonalGaussian,
    DiscretizedLogistic,
    Experiment,
    StandardNormal,
    fit_prior,
    load,
    plots,
    train_file,
)
from vae_jax.evaluation.table import Cell, Number, Table

TEMPERATURES = (1.0, 0.9, 0.7)


def experiment(
    *,
    data: str = "fashion_mnist",
    downsampling: Literal[2, 4, 8] = 4,
    latent_channels: int = 4,
    width: int = 32,
    num_steps: int = 10_000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> Experiment:
    """The first stage: latents on a map with a fraction of the image's height and width.

    Args:
        data: the data set, by name or path, in grey levels.
        downsampling: the number of pixels along a side of each position of the map.
        latent_channels: the components of a vector.
        width: the features at half resolution; coarser maps have twice as many.
        num_steps: the number of optimizer steps.
        batch_size: the number of images in a step.
        learning_rate: Adam's initial learning rate, which decays to zero along a cosine.
    """
    loaded = load(data, protocol="grey")
    height, across, _ = loaded.image_shape
    shape = (-(-height // downsampling), -(-across // downsampling), latent_channels)
    widths = [width, *[2 * width] * (downsampling.bit_length() - 2)]
    return Experiment(
        data=loaded,
        model=VAE(
            encoder=ConvEncoder(widths, dense=None, residual_blocks=2),
            posterior=DiagonalGaussian(shape),
            prior=StandardNormal(shape),
            decoder=ConvDecoder([*widths[::-1], width], dense=None, residual_blocks=2),
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
    workdir: Path = Path("runs/givt"),
    data: str = "fashion_mnist",
    downsampling: Literal[2, 4, 8] = 4,
    quick: bool = False,
) -> list[Path]:
    """Samples of both stages, the second at several temperatures, and the validation bounds.

    Args:
        workdir: the folder of the figure, the table and both runs.
        data: the data set, by name or path.
        downsampling: the number of pixels along a side of each position of the map.
        quick: small networks and a few hundred steps, under five minutes on two CPU cores.
    """
    name = Path(data).stem + ("-quick" if quick else "")
    small = {"width": 8, "num_steps": 600} if quick else {}
    first = train_file(
        __file__, workdir / name, {"data": data, "downsampling": downsampling, **small}
    )
    shape = first.experiment.model.latent_shapes(first.seed_variables)[0]
    width, layers = (64, 2) if quick else (256, 6)
    second = fit_prior(
        first,
        GIVT(shape, width, layers),
        workdir / f"{name}-givt",
        num_steps=800 if quick else 20_000,
        batch_size=64,
    )
    panels = {"N(0, I)": first.sample(64)}
    for temperature in TEMPERATURES:
        panels[f"GIVT, {temperature:g}"] = second.sample(64, temperature=temperature)
    figure = plots.save(plots.sample_panels(panels), workdir / f"{name}_samples")
    bounds: list[list[Cell]] = [
        [prior, Number(run.metric("valid_neg_elbo")[1][-1], decimals=1)]
        for prior, run in (("N(0, I)", first), ("GIVT", second))
    ]
    table = Table(["prior", "negative ELBO"], bounds, "Nats per validation image.")
    return [figure, table.write(workdir / f"{name}.md")]
