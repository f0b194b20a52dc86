"""Transformers over the patches of an image: ViT, with attention between all patches, and GPT.

GPT is causal: a patch attends only to those before it in raster order. With patches of one pixel it
is a transformer over the sequence of pixels.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from typing_extensions import override

from vae_jax.distributions import Shape
from vae_jax.given import Count
from vae_jax.interfaces import Part
from vae_jax.networks.layers import Output, as_output
from vae_jax.networks.patches import from_patches, grid_of, to_patches, to_tokens
from vae_jax.networks.transformer import Transformer, check_heads


class _Encoder(Part):
    """Image to the features of one global position, or of all patches."""

    patch_size: Count = 4
    width: Count = 64
    num_layers: Count = 2
    num_heads: Count = 4
    output: Output = "vector"

    causal: ClassVar[bool]

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_heads(self, self.width, self.num_heads)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to `[N, width]`, `[N, h * w, width]` or `[N, h, w, width]`."""
        patches = to_patches(x, self.patch_size)
        before = 0 if self.causal else 1  # the class token
        tokens = jnp.pad(to_tokens(patches), ((0, 0), (before, 0), (0, 0)))
        h, _ = Transformer(
            tokens.shape[1], None, self.width, self.num_layers, self.num_heads, self.causal
        )(tokens)
        if self.output == "vector":
            return h[:, -1 if self.causal else 0]
        return as_output(h[:, before:].reshape(*patches.shape[:3], self.width), self.output)


class _Decoder(Part):
    """Latents as tokens, followed by a position for each patch, to the patches' pixels."""

    features: Count = 16
    patch_size: Count = 4
    width: Count = 64
    num_layers: Count = 2
    num_heads: Count = 4

    causal: ClassVar[bool]

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_heads(self, self.width, self.num_heads)

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """z `[N, d]`, `[N, n, d]` or `[N, h, w, d]` and (H, W, C) to `[N, H, W, features]`."""
        latents = to_tokens(z)
        height, width = grid_of(image_shape, self.patch_size)
        tokens = jnp.pad(latents, ((0, 0), (0, height * width), (0, 0)))
        h, _ = Transformer(
            tokens.shape[1],
            self.patch_size**2 * self.features,
            self.width,
            self.num_layers,
            self.num_heads,
            self.causal,
        )(tokens)
        return from_patches(h[:, latents.shape[1] :], image_shape, self.patch_size)


class ViTEncoder(_Encoder):
    """The vision transformer.

    The paper's class token, whose features are the vector, is here a position before the patches
    with zero input. Images may have any size; patches that cross their edges are padded with zeros.

    Attributes:
        patch_size: the side of the square patches, in pixels.
        width: the width of the `Transformer`, a multiple of num_heads.
        num_layers: its number of blocks.
        num_heads: the number of heads of each block.
        output: "vector", the features of the class token; "tokens" or "map", those of the patches.

    References:
        Dosovitskiy et al. (2020), "An image is worth 16x16 words: transformers for image
            recognition at scale".
    """

    causal: ClassVar[bool] = False

    @classmethod
    def base(cls, patch_size: int = 16, output: Output = "vector") -> "ViTEncoder":
        """ViT-Base, 86M parameters with patches of 16 pixels (table 1)."""
        return cls(patch_size, width=768, num_layers=12, num_heads=12, output=output)

    @classmethod
    def large(cls, patch_size: int = 16, output: Output = "vector") -> "ViTEncoder":
        """ViT-Large, 307M parameters (table 1)."""
        return cls(patch_size, width=1024, num_layers=24, num_heads=16, output=output)

    @classmethod
    def huge(cls, patch_size: int = 14, output: Output = "vector") -> "ViTEncoder":
        """ViT-Huge, 632M parameters (table 1)."""
        return cls(patch_size, width=1280, num_layers=32, num_heads=16, output=output)


class GPTEncoder(_Encoder):
    """GPT-2's causal transformer over patches in raster order.

    The features of a patch depend on the patches up to it, so that those of the last patch depend
    on the whole image. Images may have any size; patches that cross their edges are padded with
    zeros.

    Attributes:
        patch_size: the side of the square patches, in pixels.
        width: the width of the `Transformer`, a multiple of num_heads.
        num_layers: its number of blocks.
        num_heads: the number of heads of each block.
        output: "vector", the features of the last patch; "tokens" or "map", those of all patches.

    References:
        Radford et al. (2019), "Language models are unsupervised multitask learners".
        Chen et al. (2020), "Generative pretraining from pixels".
    """

    causal: ClassVar[bool] = True

    @classmethod
    def small(cls, patch_size: int = 4, output: Output = "vector") -> "GPTEncoder":
        """The smallest GPT-2 (table 2), 124M parameters with its vocabulary and 1,024 positions."""
        return cls(patch_size, width=768, num_layers=12, num_heads=12, output=output)

    @classmethod
    def medium(cls, patch_size: int = 4, output: Output = "vector") -> "GPTEncoder":
        """The second GPT-2 (table 2), 355M parameters with its vocabulary and 1,024 positions."""
        return cls(patch_size, width=1024, num_layers=24, num_heads=16, output=output)


class ViTDecoder(_Decoder):
    """The vision transformer over the latents' tokens and a position for each patch of the image.

    A latent vector is one token, a set of vectors is one token each, and a map is one token for
    each of its positions. The patches have no input but their positions; all attend to all.

    Attributes:
        features: the number of features of each pixel.
        patch_size: the side of the square patches, in pixels.
        width: the width of the `Transformer`, a multiple of num_heads.
        num_layers: its number of blocks.
        num_heads: the number of heads of each block.

    References:
        Dosovitskiy et al. (2020), "An image is worth 16x16 words: transformers for image
            recognition at scale".
    """

    causal: ClassVar[bool] = False

    @classmethod
    def base(cls, features: int = 16, patch_size: int = 16) -> "ViTDecoder":
        """ViT-Base's layers (Dosovitskiy et al. 2020, table 1)."""
        return cls(features, patch_size, width=768, num_layers=12, num_heads=12)


class GPTDecoder(_Decoder):
    """GPT-2's causal transformer over the latents' tokens, then a position for each patch.

    The tokens are those of `ViTDecoder`. A patch attends to the latents and the positions of the
    patches before it, but to no pixels; for a likelihood given pixels, take `AutoregressivePixels`.

    Attributes:
        features: the number of features of each pixel.
        patch_size: the side of the square patches, in pixels.
        width: the width of the `Transformer`, a multiple of num_heads.
        num_layers: its number of blocks.
        num_heads: the number of heads of each block.

    References:
        Radford et al. (2019), "Language models are unsupervised multitask learners".
    """

    causal: ClassVar[bool] = True

    @classmethod
    def small(cls, features: int = 16, patch_size: int = 4) -> "GPTDecoder":
        """The layers of the smallest GPT-2 (Radford et al. 2019, table 2)."""
        return cls(features, patch_size, width=768, num_layers=12, num_heads=12)
