"""VAE/GAN: images compared in a critic's features, Larsen et al. (2016), on two CPU cores.

    vae-jax train experiments/vaegan.py --workdir runs/vaegan/vaegan
    vae-jax figures experiments/vaegan.py
    vae-jax figures experiments/vaegan.py --objective patch_gan

The paper has 64x64 faces and no number for them that is ours to reproduce; what it shows is that
samples and reconstructions are sharper than a VAE's with the same networks. The figures set the two
side by side on small grey images. `patch_gan` has the same networks play as the autoencoders of
latent diffusion do, by a critic of 16x16 patches (Esser et al. 2021), without a perceptual loss.
"""

from pathlib import Path
from typing import Literal

import jax
import optax

from vae_jax import (
    ELBO,
    MLP,
    VAE,
    VAEGAN,
    ConvDecoder,
    ConvEncoder,
    DiagonalGaussian,
    Experiment,
    Gaussian,
    ImageCritic,
    PatchCritic,
    PatchGAN,
    StandardNormal,
    generate,
    load,
    plots,
    train_file,
)
from vae_jax.optimizers import by_group

LATENTS = 16


def experiment(
    *,
    objective: Literal["vaegan", "patch_gan", "vae"] = "vaegan",
    dataset: Literal["fashion_mnist", "mnist", "mnist_5k", "cifar10_4k"] = "fashion_mnist",
    gamma: float = 1e-2,
    weight: float = 0.5,
    start: int = 500,
    learning_rate: float = 5e-4,
    critic_learning_rate: float = 5e-4,
    num_steps: int = 3000,
) -> Experiment:
    """VAE/GAN, a critic of patches, or a VAE, with the same encoder, decoder and optimizer.

    Args:
        objective: of the three.
        dataset: of images in grey levels.
        gamma: the weight of the reconstruction against the game, for the decoder of VAE/GAN.
        weight: of the game against the ELBO, with patches.
        start: the step that the game of patches begins with.
        learning_rate: of encoder and decoder.
        critic_learning_rate: of the critic.
        num_steps: optimizer steps of 64 images.
    """
    data = load(dataset, "grey")
    model = VAE(
        encoder=ConvEncoder((16, 32), dense=128),
        posterior=DiagonalGaussian(LATENTS),
        prior=StandardNormal(LATENTS),
        decoder=ConvDecoder((32, 16, 8), dense=128),
        likelihood=Gaussian(scale=0.1),
        image_shape=data.image_shape,
    )
    adam = optax.adam(learning_rate, b1=0.5)
    images = ImageCritic(
        ConvEncoder((16, 32, 32), dense=None, activation=jax.nn.leaky_relu),
        MLP((128,), jax.nn.leaky_relu),
    )
    games = {
        "vaegan": (VAEGAN(gamma), images),
        "patch_gan": (PatchGAN(ELBO(), weight, start), PatchCritic((16, 32))),
        "vae": (ELBO(), None),
    }
    loss, critic = games[objective]
    return Experiment(
        data=data,
        model=model.clone(critic=critic),
        objective=loss,
        optimizer=by_group(adam, critic=optax.adam(critic_learning_rate, b1=0.5)),
        num_steps=num_steps,
        batch_size=64,
    )


def figures(
    *,
    workdir: Path = Path("runs/vaegan"),
    objective: Literal["vaegan", "patch_gan"] = "vaegan",
    dataset: Literal["fashion_mnist", "mnist", "mnist_5k"] = "fashion_mnist",
    num_steps: int = 3000,
) -> list[Path]:
    """Samples and reconstructions beside a plain VAE's, training what is missing.

    Args:
        workdir: holds both runs, and the figures.
        objective: the game.
        dataset: grey images.
        num_steps: of either.
    """
    titles = {"vae": "VAE", "vaegan": "VAE/GAN", "patch_gan": "with a critic of patches"}
    runs = {
        titles[name]: train_file(
            __file__,
            workdir / name,
            {"objective": name, "dataset": dataset, "num_steps": num_steps},
        )
        for name in ("vae", objective)
    }
    samples = {title: generate.sample(run, 100) for title, run in runs.items()}
    reconstructions = {title: generate.reconstruct(run, "valid", 64) for title, run in runs.items()}
    data = {"data": reconstructions["VAE"][0]}
    means = data | {title: pair[1] for title, pair in reconstructions.items()}
    return [
        plots.save(plots.sample_panels(samples), workdir / f"{objective}_samples.png"),
        plots.save(plots.sample_panels(means), workdir / f"{objective}_reconstructions.png"),
    ]
