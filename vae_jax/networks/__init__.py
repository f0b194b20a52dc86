"""Linen modules from arrays to features: no probability here.

An encoder takes images `[N, H, W, C]`, a decoder latents `[N, ...]` and the image shape.
"""

from vae_jax.networks.conv import ConvDecoder, ConvEncoder
from vae_jax.networks.mlp import MLP, GatedMLP
from vae_jax.networks.resnet import ResNetDecoder, ResNetEncoder
from vae_jax.networks.spectral import SpectralNorm
from vae_jax.networks.vgg import VGGDecoder, VGGEncoder
from vae_jax.networks.xception import XceptionDecoder, XceptionEncoder

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "GatedMLP",
    "ResNetDecoder",
    "ResNetEncoder",
    "SpectralNorm",
    "VGGDecoder",
    "VGGEncoder",
    "XceptionDecoder",
    "XceptionEncoder",
]
