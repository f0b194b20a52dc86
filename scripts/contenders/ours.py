"""The benchmark's work as experiments of vae_jax, on images of noise.

    vae-jax train scripts/contenders/ours.py --work mlp --workdir runs/bench

Speed does not depend on the content of images, so no data set is needed.
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
    AxialAttention,
    AxialDecoder,
    AxialEncoder,
    Bernoulli,
    BottomUp,
    ConvDecoder,
    ConvEncoder,
    DeepVAE,
    DiagonalGaussian,
    DiT,
    Experiment,
    FlowMatching,
    GatedMLP,
    Gaussian,
    GPTDecoder,
    GPTEncoder,
    HorizontalDecoder,
    HorizontalEncoder,
    ResNetDecoder,
    ResNetEncoder,
    StandardNormal,
    TopDown,
    UNet,
    VampPrior,
    VerticalDecoder,
    VerticalEncoder,
    VGGDecoder,
    VGGEncoder,
    ViTDecoder,
    ViTEncoder,
    XceptionDecoder,
    XceptionEncoder,
)
from vae_jax.data import Data
from vae_jax.interfaces import Model, Shape
from vae_jax.optimizers import by_group
from vae_jax.second_stage import FitPrior

Work = Literal[
    "mlp",
    "iwae",
    "vampprior",
    "stream",
    "conv",
    "conv3",
    "conv32",
    "conv64",
    "conv128",
    "residual",
    "resnet",
    "vgg",
    "separable",
    "vit",
    "gpt",
    "axial",
    "deep",
    "unet",
    "dit",
]
SIZES = {"stream": 64, "conv64": 64, "conv128": 128}
GREY = ("mlp", "iwae", "vampprior", "conv", "conv3")  # binarized, of 28x28 pixels; others 32x32
LATENTS = {"mlp": 20, "stream": 20, "iwae": 50, "conv": 32, "conv3": 32, "vampprior": 40}
DOWN = {
    "conv": (32, 64),
    "conv3": (32, 64),
    "conv32": (32, 64, 128),
    "conv64": (32, 64, 128, 256),
    "conv128": (32, 64, 128, 256, 256),
    "residual": (64, 128),
}


def size_of(work: Work) -> int:
    """The side of the images."""
    return 28 if work in GREY else SIZES.get(work, 32)


def model_of(work: Work) -> Model:
    """The model of a kind of work."""
    if work == "deep":
        return DeepVAE(
            encoder=BottomUp((2, 2, 2), 64),
            decoder=TopDown((2, 2, 2), 64, latents=16),
            likelihood=Gaussian(0.1),
        )
    latents = LATENTS.get(work, 64)
    prior = StandardNormal(latents)
    if work == "vampprior":
        prior = VampPrior(500)
    elif work in ("unet", "dit"):
        latents = (16, 16, 4)
        prior = FlowMatching(latents, UNet((64, 128)) if work == "unet" else DiT(patch_size=2))
    encoder, decoder = networks_of(work)
    return VAE(
        encoder=encoder,
        posterior=DiagonalGaussian(latents),
        prior=prior,
        decoder=decoder,
        likelihood=Bernoulli() if work in GREY else Gaussian(0.1),
    )


def networks_of(work: Work) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder."""
    match work:
        case "mlp":
            return MLP((500,), jnp.tanh), MLP((500,), jnp.tanh)
        case "iwae":
            return MLP((200, 200), jnp.tanh), MLP((200, 200), jnp.tanh)
        case "vampprior":
            return GatedMLP((300, 300)), GatedMLP((300, 300))
        case "stream":
            return MLP((64,)), MLP((64,))
        case "resnet":
            return ResNetEncoder((2, 2, 2), 32, output="vector"), ResNetDecoder((2, 2, 2), 32)
        case "vgg":
            sizes = (((32, 32), (64, 64), (128, 128)), (256,))
            return VGGEncoder(sizes[0], "vector", sizes[1]), VGGDecoder(*sizes)
        case "separable":
            sizes = ((32, 64), (128,), 2, (128, 128, 256))
            return XceptionEncoder(*sizes, output="vector"), XceptionDecoder(*sizes)
        case "vit":
            return ViTEncoder(4, 128, 4), ViTDecoder(16, 4, 128, 4)
        case "gpt":
            return GPTEncoder(4, 128, 4), GPTDecoder(16, 4, 128, 4)
        case "axial":
            up = (
                HorizontalEncoder(AxialAttention(), 64, 2),
                VerticalEncoder(AxialAttention(), 64, 1),
            )
            first = VerticalDecoder(AxialAttention(), 16, 64, 1)
            down = first, HorizontalDecoder(AxialAttention(), 16, 64, 2)
            return AxialEncoder(*up), AxialDecoder(*down)
        case "unet" | "dit":
            down = ConvEncoder((4,), dense=None, kernel_size=2)
            return down, ConvDecoder((4, 4), dense=None, kernel_size=2)
    # PyTorch's initialization: that of He et al. makes residual blocks without norms explode.
    init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    down, of_both = DOWN[work], {"dense": 256, "kernel_init": init}
    of_both |= {"kernel_size": 3 if work == "conv3" else 4}
    of_both |= {"residual_blocks": 3 if work == "residual" else 0}
    grey = work in GREY
    up = (*reversed(down), 1) if grey else (*reversed(down), 32)
    return ConvEncoder(down, **of_both), ConvDecoder(up, affine_last=grey, **of_both)


def noise(count: int, image_shape: Shape) -> np.ndarray:
    """uint8 `[count, *image_shape]`, mapped from a file that is deleted with the process."""
    shape = (count, *image_shape)
    with tempfile.TemporaryFile() as file:
        images = np.memmap(file, np.uint8, "w+", shape=shape)
    images[:] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return images


def experiment(
    *,
    work: Work = "mlp",
    batch_size: int = 128,
    k: int = 1,
    log_every: int = 100,
    beta: float = 1.0,
    learning_rate: float = 1e-3,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Training without end; a checkpoint every 1,000 steps, the default, or every epoch.

    The rarer of the two is taken, at the end of a chunk of steps.

    Args:
        work: mlp is 784-500-20-500-784; iwae Burda et al.'s one-layer network, 200-200-50;
            vampprior Tomczak & Welling's 300-300-40 with 500 pseudo-inputs; stream a small MLP on
            64x64 colours; conv two strided convolutions, 32 and 64, of 4x4, conv3 of 3x3, and a
            dense layer of 256; conv32, conv64 and conv128 three to five of them on colours of that
            size. The others are of 32x32 colours: residual has three residual blocks of 128
            features in encoder and decoder, resnet two in each of three stages, with norms;
            separable is a small Xception, deep a hierarchy of six layers; unet and dit fit the
            velocity of flow matching to 16x16 maps of latents.
        batch_size: the number of images in a step.
        k: the number of samples of the importance-weighted bound; 1 takes the ELBO.
        log_every: the number of steps between two lines of metrics.
        beta: the weight of the KL in the ELBO.
        learning_rate: Adam's, of which vampprior takes half.
        compute_dtype: the type of float in which encoders and decoders compute.
    """
    size = size_of(work)
    shape = (size, size, 1 if work in GREY else 3)
    images = noise(min(50_000, 20_000 * 64**2 // size**2), shape)
    interval = max(1000, len(images) // batch_size)
    optimizer = optax.adam(learning_rate if work != "vampprior" else learning_rate / 2)
    objective = ELBO(beta=beta) if k == 1 else IWAE(k)
    if work in ("unet", "dit"):
        objective, optimizer = FitPrior(), by_group(optax.set_to_zero(), prior=optimizer)
    return Experiment(
        data=Data.from_arrays(
            "noise",
            images,
            test=images[:1000],
            protocol="dynamic" if work in GREY else "grey",
        ),
        model=model_of(work),
        objective=objective,
        optimizer=optimizer,
        batch_size=batch_size,
        compute_dtype=jnp.dtype(compute_dtype),
        num_steps=10**8,
        log_every=log_every,
        checkpoint_every=-(-interval // log_every) * log_every,
    )
