"""GPT: a causal transformer over an image's patches, or pixels, in raster order."""

from typing import Any

import flax.linen as nn
from jax import Array

from vae_jax.distributions import Shape
from vae_jax.networks.layers import Output
from vae_jax.networks.vit import decode_patches, encode_patches


class GPTEncoder(nn.Module):
    """Patches through a causal transformer, GPT-2's (Radford et al. 2019).

    A place's features know the patches up to it, so the last ones know the whole image. Images of
    any size; at the edges patches are filled up with zeros.

    Attributes:
        patch_size: of the square patches, in pixels; 1 for a sequence of pixels.
        width, num_layers, num_heads: of the `Transformer`.
        output: features of the last place, of each place, or of each place as a map.
    """

    patch_size: int = 4
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    output: Output = "vector"

    @classmethod
    def small(cls, patch_size: int = 4, **attributes: Any) -> "GPTEncoder":
        """GPT-2's smallest (table 2), 124M parameters with its vocabulary and 1,024 places."""
        return cls(patch_size, width=768, num_layers=12, num_heads=12, **attributes)

    @classmethod
    def medium(cls, patch_size: int = 4, **attributes: Any) -> "GPTEncoder":
        """GPT-2's second (table 2), 355M parameters with its vocabulary and 1,024 places."""
        return cls(patch_size, width=1024, num_layers=24, num_heads=16, **attributes)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to `[N, width]`, `[N, h * w, width]` or `[N, h, w, width]`."""
        return encode_patches(self, x, causal=True)


class GPTDecoder(nn.Module):
    """Latents as tokens, then a place for each patch, through a causal transformer.

    A patch's place sees the tokens and the places before it, not pixels: `AutoregressivePixels` is
    the likelihood that looks at pixels.

    Attributes:
        channels: of the features of each pixel.
        patch_size: of the square patches, in pixels.
        width, num_layers, num_heads: of the `Transformer`.
    """

    channels: int = 16
    patch_size: int = 4
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4

    @classmethod
    def small(cls, channels: int = 16, patch_size: int = 4) -> "GPTDecoder":
        """With the layers of GPT-2's smallest (Radford et al. 2019, table 2)."""
        return cls(channels, patch_size, width=768, num_layers=12, num_heads=12)

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents `[N, d]`, `[N, n, d]` or `[N, h, w, d]` to `[N, H, W, channels]`."""
        return decode_patches(self, z, image_shape, causal=True)
