"""Linen modules from arrays to features: no probability here; any can be encoder or decoder."""

from vae_jax.networks.conv import ConvDecoder, ConvEncoder
from vae_jax.networks.mlp import MLP

__all__ = ["MLP", "ConvDecoder", "ConvEncoder"]
