"""VQ-VAE with an autoregressive prior over its codes, trained together, on MNIST.

    vae-jax train experiments/vqvae.py --workdir runs/vqvae
    vae-jax figures experiments/vqvae.py

Van den Oord et al. (2017) have no experiment on MNIST; the parts are theirs: two convolutions of
stride 2 and two residual blocks, a map of codes from a codebook that is a running average, beta =
0.25, and the mirror image of the encoder. Ours differ in the likelihood, which is one of the 256
levels, so that the negative ELBO is a bound in nats on images as they are stored, and in the prior,
a small transformer that is trained with the model, instead of a PixelCNN after it.

Other quantizers by `--quantizer`: residual, finite scalars, lookup-free.
"""

from pathlib import Path
from typing import Literal

import flax.linen as nn
import optax

from vae_jax import (
    VAE,
    VQVAE,
    AutoregressiveCodes,
    ConvDecoder,
    ConvEncoder,
    DiscretizedLogistic,
    Experiment,
    FiniteScalarQuantized,
    LookupFree,
    ResidualVectorQuantized,
    VectorQuantized,
    generate,
    load,
    plots,
    train_file,
)
from vae_jax.standard_figures import curves

Quantizer = Literal["vector", "residual", "finite_scalar", "lookup_free"]

QUANTIZERS: dict[Quantizer, nn.Module] = {
    "vector": VectorQuantized(num_codes=64, dim=16),
    "residual": ResidualVectorQuantized(num_codes=16, dim=16, depth=2),
    "finite_scalar": FiniteScalarQuantized((4, 4, 4)),
    "lookup_free": LookupFree(6),
}


def experiment(
    *,
    dataset: Literal["mnist", "fashion_mnist", "mnist_5k"] = "mnist",
    quantizer: Quantizer = "vector",
    num_steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> Experiment:
    """Codes on a grid of a quarter of the image's height and width.

    Args:
        dataset: mnist, fashion_mnist or mnist_5k.
        quantizer: of the codes: 64 of them, with residual ones 16 at each of two levels.
        num_steps: steps.
        batch_size: images a step.
        learning_rate: Adam's, which decays to zero along a cosine.
    """
    data = load(dataset, protocol="grey")
    height, width, _ = data.image_shape
    return Experiment(
        data=data,
        model=VAE(
            encoder=ConvEncoder((16, 32), dense=None, residual_blocks=2),
            posterior=QUANTIZERS[quantizer],
            prior=AutoregressiveCodes((-(-height // 4), -(-width // 4))),
            decoder=ConvDecoder((32, 16, 16), dense=None, residual_blocks=2),
            likelihood=DiscretizedLogistic(),
            image_shape=data.image_shape,
        ),
        objective=VQVAE(),
        optimizer=optax.chain(
            optax.clip_by_global_norm(100.0),
            optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps)),
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        checkpoint_every=500,
    )


def figures(
    *,
    workdir: Path = Path("runs/vqvae"),
    dataset: Literal["mnist", "fashion_mnist", "mnist_5k"] = "mnist",
    num_steps: int = 2000,
) -> list[Path]:
    """Reconstructions, samples and codes in use for every quantizer, training what is missing.

    Args:
        workdir: holds a run for each quantizer, and the figures.
        dataset: as in `experiment`.
        num_steps: of each run.
    """
    runs = {}
    for quantizer in QUANTIZERS:
        arguments = {"dataset": dataset, "quantizer": quantizer, "num_steps": num_steps}
        runs[quantizer] = train_file(__file__, workdir / f"{dataset}-{quantizer}", arguments)
    paths = []
    for quantizer, run in runs.items():
        pairs = plots.reconstructions(*generate.reconstruct(run, "valid", 20))
        paths.append(plots.save(pairs, workdir / f"{dataset}_reconstructions_{quantizer}.png"))
    titles = {quantizer: quantizer.replace("_", " ") for quantizer in runs}
    samples = {titles[name]: generate.sample(run, 64) for name, run in runs.items()}
    paths.append(plots.save(plots.sample_panels(samples), workdir / f"{dataset}_samples.png"))
    for name, ylabel in (("valid_neg_elbo", "nats per image"), ("perplexity", "perplexity")):
        found = {titles[q]: curves(run, {name: name})[name] for q, run in runs.items()}
        chart = plots.learning_curves(found, ylabel=ylabel)
        paths.append(plots.save(chart, workdir / f"{dataset}_{name}.png"))
    return paths
