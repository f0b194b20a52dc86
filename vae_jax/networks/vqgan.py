"""The networks of VQGAN and of latent diffusion's autoencoders: from images to maps, and back."""

import flax.linen as nn
import jax
from jax import Array

from vae_jax.distributions import Shape
from vae_jax.given import Count, SomeWidths
from vae_jax.interfaces import Part
from vae_jax.networks.layers import (
    Conv,
    SelfAttention,
    coarsest_map,
    group_norm,
    halvings,
)
from vae_jax.networks.resnet import PreActivationBlock


def _block(features: int) -> PreActivationBlock:
    return PreActivationBlock(features, activation=jax.nn.silu)


def _middle(x: Array) -> Array:
    """A block, attention and a block on the coarsest map; call it in a compact method."""
    features = x.shape[-1]
    return _block(features)(SelfAttention()(_block(features)(x)))


def _normalized(x: Array) -> Array:
    return jax.nn.silu(group_norm(x))


class VQGANEncoder(Part):
    """Residual blocks at each resolution, and attention between all positions of the coarsest map.

    The posterior's affine map of each position replaces the paper's last convolution.

    Attributes:
        widths: the number of features at each resolution, the image's first; each but the first
            halves the map, so that n widths downsample by 2^(n - 1).
        blocks: the number of residual blocks at each resolution.

    References:
        Esser et al. (2021), "Taming transformers for high-resolution image synthesis", table 7.
        Rombach et al. (2022), "High-resolution image synthesis with latent diffusion models",
            section 3.1.
    """

    widths: SomeWidths
    blocks: Count = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to the map `[N, h, w, widths[-1]]`, h = H / 2^(n-1) rounded up."""
        x = Conv(self.widths[0], use_bias=True)(x)
        for level, features in enumerate(self.widths):
            if level:
                x = Conv(x.shape[-1], stride=2, use_bias=True)(x)
            for _ in range(self.blocks):
                x = _block(features)(x)
        return _normalized(_middle(x))


class VQGANDecoder(Part):
    """`VQGANEncoder` in reverse, with one more block at each resolution, as in the paper.

    Attributes:
        widths, blocks: the attributes of the encoder.

    References:
        Esser et al. (2021), "Taming transformers for high-resolution image synthesis", table 7.
        Rombach et al. (2022), "High-resolution image synthesis with latent diffusion models",
            section 3.1.
    """

    widths: SomeWidths
    blocks: Count = 2

    @nn.compact
    def __call__(self, z: Array, image_shape: Shape) -> Array:
        """Latents `[N, ...]`, mapped by `coarsest_map`, and (H, W, C) to `[N, H, W, widths[0]]`."""
        coarsest, *sizes = halvings(image_shape, len(self.widths) - 1)
        x = _middle(coarsest_map(z, coarsest, self.widths[-1]))
        for features, size in zip(reversed(self.widths), [*sizes, None], strict=True):
            for _ in range(self.blocks + 1):
                x = _block(features)(x)
            if size is not None:
                x = Conv(features, use_bias=True)(x, size)
        return _normalized(x)
