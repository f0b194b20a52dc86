"""The founding document's example, a GPT encoder with a VGG decoder, on colour photographs.

    vae-jax figures experiments/founding_example.py
    vae-jax evaluate runs/founding_example --num-samples 100

Published: none for this pair of networks.

Ours: 7.455 bits/dim on 400 test images (K = 100), at a rate of 47.42 nats, after 2,500 steps of 32
images from 3,200 photographs of CIFAR-10; 2026-11-30, two CPU cores, 248 s of training, seed 0.
Runs with other random numbers had 7.343 and 7.461. The convolutional networks of
`experiments/cifar.py` reach 6.21 bits/dim on the same images, with a likelihood that models the
dependence between a pixel's colours.

The encoder reads an image as 64 patches of 4x4 pixels in raster order and keeps the features of the
last one (Radford et al. 2019); the decoder mirrors Simonyan & Zisserman (2014), with 3x3 kernels on
maps that double in size. Each has an optimizer of its own, with a smaller learning rate for the
transformer. Each value of a pixel is one of 256 levels.
"""

from pathlib import Path

import optax

from vae_jax import (
    ELBO,
    VAE,
    DiagonalGaussian,
    DiscretizedLogistic,
    Experiment,
    GPTEncoder,
    StandardNormal,
    VGGDecoder,
    generate,
    load,
    plots,
    train_file,
)
from vae_jax.optimizers import by_group

# Four of VGG-16's five stages, with a quarter of their features: 32 pixels become 2.
STAGES = ((16,) * 2, (32,) * 2, (64,) * 3, (128,) * 3)


def experiment(
    *,
    latent_dim: int = 128,
    width: int = 128,
    transformer_layers: int = 3,
    learning_rate: float = 2e-3,
    encoder_learning_rate: float = 5e-4,
    num_steps: int = 2500,
    data: str = "cifar10_4k",
) -> Experiment:
    """GPT to Gaussian to VGG, with discretized logistic pixels.

    Args:
        latent_dim: the dimensions of z.
        width: the width of the encoder's residual stream.
        transformer_layers: the number of the encoder's layers.
        learning_rate: Adam's initial learning rate for everything but the encoder; it decays to
            zero along a cosine.
        encoder_learning_rate: the same for the encoder.
        num_steps: the number of optimizer steps, of 32 images each.
        data: the data set, by name or path.
    """
    loaded = load(data, protocol="grey")

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(1000.0),
            optax.adam(optax.cosine_decay_schedule(rate, num_steps)),
        )

    return Experiment(
        data=loaded,
        model=VAE(
            encoder=GPTEncoder(
                patch_size=4, width=width, num_layers=transformer_layers, num_heads=4
            ),
            posterior=DiagonalGaussian(latent_dim),
            prior=StandardNormal(latent_dim),
            decoder=VGGDecoder(STAGES),
            likelihood=DiscretizedLogistic(),
        ),
        # Without a warm-up the decoder first learns the pixels' colours alone, and z is never used.
        objective=ELBO(beta=optax.linear_schedule(0.0, 1.0, num_steps // 2)),
        optimizer=by_group(adam(learning_rate), encoder=adam(encoder_learning_rate)),
        num_steps=num_steps,
        batch_size=32,
        checkpoint_every=200,
    )


def figures(*, workdir: Path = Path("runs/founding_example"), num_steps: int = 2500) -> list[Path]:
    """Photographs beside their reconstructions, and samples, training missing runs.

    Args:
        workdir: the run folder.
        num_steps: the number of optimizer steps.
    """
    run = train_file(__file__, workdir, {"num_steps": num_steps})
    pairs = plots.reconstructions(*generate.reconstruct(run, "test", 20))
    samples = plots.sample_panels({"samples": generate.sample(run, 36)})
    return [
        plots.save(pairs, workdir / "figures" / "founding_reconstructions"),
        plots.save(samples, workdir / "figures" / "founding_samples"),
    ]
