"""The benchmark's work as experiments of vae_jax, on images of noise.

    vae-jax train scripts/contenders/ours.py --work mlp --workdir runs/bench

Speed does not depend on what images show, so that no data set is needed.
"""

import tempfile
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from vae_jax import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Bernoulli,
    ConvDecoder,
    ConvEncoder,
    DiagonalGaussian,
    Experiment,
    GatedMLP,
    Gaussian,
    StandardNormal,
    VampPrior,
    XceptionDecoder,
    XceptionEncoder,
)
from vae_jax.data import Data
from vae_jax.interfaces import Shape

Work = Literal["mlp", "iwae", "conv", "conv3", "vampprior", "residual", "separable", "stream"]


def model_of(work: Work) -> VAE:
    """The model of a kind of work."""
    if work == "mlp":
        return VAE(
            encoder=MLP((500,), activation=jnp.tanh),
            posterior=DiagonalGaussian(20),
            prior=StandardNormal(20),
            decoder=MLP((500,), activation=jnp.tanh),
            likelihood=Bernoulli(),
        )
    if work == "iwae":
        return VAE(
            encoder=MLP((200, 200), activation=jnp.tanh),
            posterior=DiagonalGaussian(50),
            prior=StandardNormal(50),
            decoder=MLP((200, 200), activation=jnp.tanh),
            likelihood=Bernoulli(),
        )
    if work in ("conv", "conv3"):
        size = 3 if work == "conv3" else 4
        return VAE(
            encoder=ConvEncoder((32, 64), dense=256, kernel_size=size),
            posterior=DiagonalGaussian(32),
            prior=StandardNormal(32),
            decoder=ConvDecoder((64, 32, 1), dense=256, kernel_size=size, affine_last=True),
            likelihood=Bernoulli(),
        )
    if work == "vampprior":
        return VAE(
            encoder=GatedMLP((300, 300)),
            posterior=DiagonalGaussian(40),
            prior=VampPrior(500),
            decoder=GatedMLP((300, 300)),
            likelihood=Bernoulli(),
        )
    if work == "stream":
        return VAE(
            encoder=MLP((64,)),
            posterior=DiagonalGaussian(20),
            prior=StandardNormal(20),
            decoder=MLP((64,)),
            likelihood=Gaussian(0.1),
        )
    if work == "separable":
        sizes = ((32, 64), (128,), 2, (128, 128, 256))
        return VAE(
            encoder=XceptionEncoder(*sizes, output="vector"),
            posterior=DiagonalGaussian(64),
            prior=StandardNormal(64),
            decoder=XceptionDecoder(*sizes),
            likelihood=Gaussian(0.1),
            image_shape=(32, 32, 3),
        )
    # PyTorch's initialization: that of He et al. makes residual blocks without norms explode.
    init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return VAE(
        encoder=ConvEncoder((64, 128), dense=256, residual_blocks=3, kernel_init=init),
        posterior=DiagonalGaussian(64),
        prior=StandardNormal(64),
        decoder=ConvDecoder((128, 64, 32), dense=256, residual_blocks=3, kernel_init=init),
        likelihood=Gaussian(0.1),
    )


def noise(count: int, image_shape: Shape) -> np.ndarray:
    """uint8 `[count, *image_shape]`, mapped from a file that goes with the process."""
    shape = (count, *image_shape)
    with tempfile.TemporaryFile() as file:
        images = np.memmap(file, np.uint8, "w+", shape=shape)
    images[:] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return images


def experiment(
    *, work: Work = "mlp", batch_size: int = 128, k: int = 1, log_every: int = 100
) -> Experiment:
    """Training without an end; a checkpoint every 1,000 steps, the default, or every epoch.

    Whichever is rarer, where a chunk of steps ends.

    Args:
        work: mlp is 784-500-20-500-784; iwae Burda et al.'s one-layer network, 200-200-50; conv
            two strided convolutions, 32 and 64, of 4x4, conv3 of 3x3, and a dense layer of 256;
            vampprior Tomczak & Welling's 300-300-40 with 500 pseudo-inputs; residual three residual
            blocks of 128 features in encoder and decoder, on 32x32 colours; separable a small
            Xception and its mirror image on 32x32 colours; stream a small MLP on 64x64 colours.
        batch_size: images of a step.
        k: samples of the importance-weighted bound; the ELBO where it is 1.
        log_every: steps between two lines of metrics.
    """
    shape = {"stream": (64, 64, 3), "residual": (32, 32, 3)}.get(work, (28, 28, 1))
    images = noise(20_000 if work == "stream" else 50_000, shape)
    interval = max(1000, len(images) // batch_size)
    protocol = "grey" if work in ("residual", "separable", "stream") else "dynamic"
    return Experiment(
        data=Data.from_arrays("noise", images, test=images[:1000], protocol=protocol),
        model=model_of(work),
        objective=ELBO() if k == 1 else IWAE(k),
        optimizer=optax.adam(1e-3 if work != "vampprior" else 5e-4),
        batch_size=batch_size,
        num_steps=10**8,
        log_every=log_every,
        checkpoint_every=-(-interval // log_every) * log_every,
    )
