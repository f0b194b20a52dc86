"""Linen modules from arrays to features: no probability here.

An encoder takes images `[N, H, W, C]`, a decoder latents `[N, ...]` and the image shape.
"""

from vae_jax.networks.conv import ConvDecoder, ConvEncoder
from vae_jax.networks.mlp import MLP, GatedMLP
from vae_jax.networks.spectral import SpectralNorm

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "GatedMLP", "SpectralNorm"]
