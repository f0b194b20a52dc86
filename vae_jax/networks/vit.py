"""The vision transformer: every patch sees all others."""

from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from vae_jax.distributions import Shape
from vae_jax.networks.layers import Output, as_output
from vae_jax.networks.patches import from_patches, grid_of, to_patches, to_tokens
from vae_jax.networks.transformer import Transformer


class ViTEncoder(nn.Module):
    """Patches through a transformer (Dosovitskiy et al. 2020).

    A place before the patches, whose input is zero and whose learned position so is the paper's
    class token, gathers what is pooled. Images of any size; at the edges patches are filled up with
    zeros.

    Attributes:
        patch_size: of the square patches, in pixels.
        width, num_layers, num_heads: of the `Transformer`.
        output: features of the class token, of each patch, or of each patch as a map.
    """

    patch_size: int = 4
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    output: Output = "vector"

    @classmethod
    def base(cls, patch_size: int = 16, **attributes: Any) -> "ViTEncoder":
        """ViT-Base, 86M parameters at 16 (table 1)."""
        return cls(patch_size, width=768, num_layers=12, num_heads=12, **attributes)

    @classmethod
    def large(cls, patch_size: int = 16, **attributes: Any) -> "ViTEncoder":
        """ViT-Large, 307M parameters (table 1)."""
        return cls(patch_size, width=1024, num_layers=24, num_heads=16, **attributes)

    @classmethod
    def huge(cls, patch_size: int = 14, **attributes: Any) -> "ViTEncoder":
        """ViT-Huge, 632M parameters (table 1)."""
        return cls(patch_size, width=1280, num_layers=32, num_heads=16, **attributes)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to `[N, width]`, `[N, h * w, width]` or `[N, h, w, width]`."""
        return encode_patches(self, x, causal=False)


class ViTDecoder(nn.Module):
    """Latents as tokens, then a place for each patch of the image, through a transformer.

    A latent vector is one token, a set of vectors one each, a map one for each of its places; the
    patches' places have no input but their positions, and see the tokens and one another.

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
    def base(cls, channels: int = 16, patch_size: int = 16) -> "ViTDecoder":
        """With ViT-Base's layers (Dosovitskiy et al. 2020, table 1)."""
        return cls(channels, patch_size, width=768, num_layers=12, num_heads=12)

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents `[N, d]`, `[N, n, d]` or `[N, h, w, d]` to `[N, H, W, channels]`."""
        return decode_patches(self, z, image_shape, causal=False)


class OfPatches(Protocol):
    """What encoders and decoders of patches have in common.

    Attributes:
        patch_size: of the square patches, in pixels.
        width, num_layers, num_heads: of the `Transformer`.
    """

    patch_size: int
    width: int
    num_layers: int
    num_heads: int


class EncoderOfPatches(OfPatches, Protocol):
    """`ViTEncoder` or `GPTEncoder`."""

    output: Output


class DecoderOfPatches(OfPatches, Protocol):
    """`ViTDecoder` or `GPTDecoder`."""

    channels: int


def encode_patches(network: EncoderOfPatches, x: Array, causal: bool) -> Array:
    """Features of an image, of the place that knows all of it or of each patch.

    Inside a compact method.

    Args:
        network: has the attributes of `ViTEncoder`.
        x: images `[N, H, W, C]`.
        causal: whether that place is the last patch's, and not one before all of them.

    Returns:
        `[N, width]`, `[N, h * w, width]` or `[N, h, w, width]`, as `network.output` says.
    """
    patches = to_patches(x, network.patch_size)
    before = 0 if causal else 1
    tokens = jnp.pad(to_tokens(patches), ((0, 0), (before, 0), (0, 0)))
    h = _transformed(network, tokens, causal)
    if network.output == "vector":
        return h[:, -1 if causal else 0]
    return as_output(h[:, before:].reshape(*patches.shape[:3], network.width), network.output)


def decode_patches(network: DecoderOfPatches, z: Array, image_shape: Shape, causal: bool) -> Array:
    """Features of each pixel, from tokens of z before a place for each patch of the image.

    Inside a compact method.

    Args:
        network: has the attributes of `ViTDecoder`.
        z: `[N, d]`, `[N, n, d]` or `[N, h, w, d]`.
        image_shape: (H, W, C).
        causal: of the `Transformer`.

    Returns:
        `[N, H, W, channels]`.
    """
    tokens = to_tokens(z)
    height, width = grid_of(image_shape, network.patch_size)
    places = jnp.pad(tokens, ((0, 0), (0, height * width), (0, 0)))
    h = _transformed(network, places, causal, network.patch_size**2 * network.channels)
    return from_patches(h[:, tokens.shape[1] :], image_shape, network.patch_size)


def _transformed(network: OfPatches, x: Array, causal: bool, features: int | None = None) -> Array:
    transformer = Transformer(
        length=x.shape[1],
        features=features,
        width=network.width,
        num_layers=network.num_layers,
        num_heads=network.num_heads,
        causal=causal,
    )
    h, _ = transformer(x)
    return h
