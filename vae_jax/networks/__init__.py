"""Linen modules from arrays to features, which know nothing of probability.

An encoder takes images `[N, H, W, C]`; a decoder takes latents `[N, ...]` and the image shape.
"""

from vae_jax.networks.axial import (
    AxialAttention,
    AxialConvolution,
    AxialDecoder,
    AxialEncoder,
    HorizontalDecoder,
    HorizontalEncoder,
    VerticalDecoder,
    VerticalEncoder,
)
from vae_jax.networks.conditioned import AdaptiveMLP
from vae_jax.networks.conv import ConvDecoder, ConvEncoder
from vae_jax.networks.dit import DiT
from vae_jax.networks.mlp import MLP, GatedMLP
from vae_jax.networks.patch_transformer import GPTDecoder, GPTEncoder, ViTDecoder, ViTEncoder
from vae_jax.networks.resnet import ResNetDecoder, ResNetEncoder
from vae_jax.networks.spectral import SpectralNorm
from vae_jax.networks.unet import UNet
from vae_jax.networks.vgg import VGGDecoder, VGGEncoder
from vae_jax.networks.vqgan import VQGANDecoder, VQGANEncoder
from vae_jax.networks.xception import XceptionDecoder, XceptionEncoder

__all__ = [
    "MLP",
    "AdaptiveMLP",
    "AxialAttention",
    "AxialConvolution",
    "AxialDecoder",
    "AxialEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "DiT",
    "GPTDecoder",
    "GPTEncoder",
    "GatedMLP",
    "HorizontalDecoder",
    "HorizontalEncoder",
    "ResNetDecoder",
    "ResNetEncoder",
    "SpectralNorm",
    "UNet",
    "VGGDecoder",
    "VGGEncoder",
    "VQGANDecoder",
    "VQGANEncoder",
    "VerticalDecoder",
    "VerticalEncoder",
    "ViTDecoder",
    "ViTEncoder",
    "XceptionDecoder",
    "XceptionEncoder",
]
