"""First stages of Esser et al. (2021) and Rombach et al. (2022): KL autoencoder and tokenizers.

    vae-jax train experiments/tokenizer.py --workdir runs/tokenizer/kl
    vae-jax train experiments/tokenizer.py --latents vq --critic-weight 0.5 --workdir runs/vq
    vae-jax evaluate runs/tokenizer/kl --num-samples 1 --quality-images 2000
    vae-jax figures experiments/tokenizer.py --quick --data mnist_5k
    vae-jax evaluate runs/tokenizer/mnist_5k-f4-quick-kl --num-samples 1 --quality-images 500

Published: no number to compare with. Rombach et al. reconstruct 256x256 pictures of OpenImages,
with a perceptual distance whose weights come from ImageNet.

Ours, by the last two commands, the latter for each kind of latents: reconstructions of 500 test
images of mnist_5k after 200 steps [95% interval], and the share of codes that are in use.

           PSNR [dB]               SSIM                    Fréchet, learned    codes in use
    KL     20.49 [20.32, 20.65]    0.779 [0.771, 0.787]    30.8 [29.4, 32.1]
    VQ     19.36 [19.19, 19.53]    0.746 [0.738, 0.754]    28.7 [27.4, 30.0]   40%
    FSQ    19.44 [19.27, 19.61]    0.751 [0.743, 0.759]    34.9 [32.9, 36.9]   31%
    LFQ    18.90 [18.73, 19.06]    0.727 [0.718, 0.735]    32.1 [30.8, 33.5]   62%

2026-11-30, two CPU cores of which another program used one, 261 s in all by `time`, seed 0.
Codes in use are required to be above 80 percent, which so few steps miss. On colours: not yet run.
"""

from pathlib import Path
from typing import Any, Literal

import optax

from vae_jax import (
    ELBO,
    VAE,
    VQVAE,
    Charbonnier,
    DiagonalGaussian,
    DiscretizedLogistic,
    Experiment,
    FiniteScalarQuantized,
    Gaussian,
    Laplace,
    LearnedPerceptual,
    LookupFree,
    PatchCritic,
    PatchGAN,
    Perceptual,
    StandardNormal,
    UniformCodes,
    VectorQuantized,
    VQGANDecoder,
    VQGANEncoder,
    generate,
    load,
    plots,
    train_file,
)
from vae_jax.interfaces import Likelihood, Objective
from vae_jax.optimizers import by_group

Latents = Literal["kl", "vq", "fsq", "lfq"]
Distortion = Literal["charbonnier", "l1", "l2", "density"]
LATENTS: tuple[Latents, ...] = ("kl", "vq", "fsq", "lfq")

# L1 and L2 give the same weight to an error of 0.05; a density also learns how large errors are.
DISTORTIONS: dict[Distortion, Likelihood] = {
    "charbonnier": Charbonnier(scale=0.05),
    "l1": Laplace(scale=0.05),
    "l2": Gaussian(scale=0.05),
    "density": DiscretizedLogistic(),
}


def experiment(
    *,
    data: str = "cifar10_jpeg",
    latents: Latents = "kl",
    downsampling: Literal[2, 4, 8] = 4,
    latent_channels: int = 8,
    codes: int = 1024,
    width: int = 64,
    blocks: int = 2,
    distortion: Distortion = "charbonnier",
    beta: float = 1e-3,
    perceptual: float = 100.0,
    critic_weight: float = 0.0,
    critic_start: int = 5000,
    num_steps: int = 20_000,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    quick: bool = False,
) -> Experiment:
    """An autoencoder to a map of latents, with residual blocks, and attention on that map.

    Args:
        data: the data set, by name or path, in grey levels.
        latents: kl, vectors with a lightly weighted KL to N(0, I); or codes: vq, of a learned
            codebook; fsq, of rounded components; lfq, of signs.
        downsampling: the number of pixels along a side of each position of the map.
        latent_channels: the number of components of a vector of kl and vq.
        codes: the number of codes of vq; fsq has 1,000, and lfq 1,024.
        width: the number of features at full resolution; the map has up to four times as many.
        blocks: the number of residual blocks at each resolution.
        distortion: -ln p(x|z).
        beta: the weight of the KL.
        perceptual: the weight of the perceptual distance, in features learned on the same data.
        critic_weight: the weight of the game against a critic of patches.
        critic_start: the step at which the game begins.
        num_steps: the number of optimizer steps.
        batch_size: the number of images in a step.
        learning_rate: Adam's initial learning rate, which decays to zero along a cosine.
        quick: a short form: 200 steps of 16 images, a quarter of the features, one block.
    """
    if quick:
        width, blocks, num_steps, batch_size, critic_start = width // 4, 1, 200, 16, 100
    loaded = load(data, "grey")
    height, columns, _ = loaded.image_shape
    grid = -(-height // downsampling), -(-columns // downsampling)
    widths = [width * min(2**level, 4) for level in range(downsampling.bit_length())]
    parts: dict[Latents, Any] = {
        "kl": (
            DiagonalGaussian((*grid, latent_channels)),
            StandardNormal((*grid, latent_channels)),
        ),
        "vq": (VectorQuantized(codes, latent_channels), UniformCodes(grid)),
        "fsq": (FiniteScalarQuantized((8, 5, 5, 5)), UniformCodes(grid)),
        "lfq": (LookupFree(10), UniformCodes(grid)),
    }
    posterior, prior = parts[latents]
    objective: Objective = ELBO(beta=beta) if latents == "kl" else VQVAE()
    if perceptual:
        features = LearnedPerceptual(200 if quick else 1000)
        objective = Perceptual(objective, perceptual, features)
    if critic_weight:
        objective = PatchGAN(objective, critic_weight, critic_start)
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps), b1=0.5)
    return Experiment(
        data=loaded,
        model=VAE(
            encoder=VQGANEncoder(widths, blocks),
            posterior=posterior,
            prior=prior,
            decoder=VQGANDecoder(widths, blocks),
            likelihood=DISTORTIONS[distortion],
            critic=PatchCritic((32, 64, 128)) if critic_weight else None,
        ),
        objective=objective,
        optimizer=by_group(
            optax.chain(optax.clip_by_global_norm(1000.0), adam),
            critic=optax.adam(learning_rate, b1=0.5),
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        ema_decay=0.99 if quick else 0.999,
        log_every=50 if quick else 100,
        checkpoint_every=100 if quick else 1000,
    )


def figures(
    *,
    workdir: Path = Path("runs/tokenizer"),
    data: str = "cifar10_jpeg",
    downsampling: Literal[2, 4, 8] = 4,
    critic_weight: float = 0.0,
    quick: bool = False,
) -> list[Path]:
    """Reconstructions of the same images by each kind of latents, training missing runs.

    Args:
        workdir: the folder of the figure and of a run for each kind.
        data: the data set, by name or path.
        downsampling: the number of pixels along a side of each position of the map.
        critic_weight: the weight of the game against a critic of patches.
        quick: the short form of each run.
    """
    shared = {
        "data": data,
        "downsampling": downsampling,
        "critic_weight": critic_weight,
        "quick": quick,
    }
    name = f"{Path(data).stem}-f{downsampling}{'-quick' if quick else ''}"
    panels = {}
    for latents in LATENTS:
        folder = workdir / f"{name}-{latents}"
        run = train_file(__file__, folder, {**shared, "latents": latents})
        images, drawn = generate.reconstruct(run, "valid", 36)
        panels = {"data": images, **panels, latents.upper(): drawn}
    return [plots.save(plots.sample_panels(panels), workdir / f"{name}.png")]
