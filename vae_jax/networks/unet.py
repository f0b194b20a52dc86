"""The U-Net of diffusion models: modulated residual blocks with skip connections."""

from typing import Annotated

import flax.linen as nn
import jax
from jax import Array
from jax import numpy as jnp
from typing_extensions import override

from vae_jax.given import Count, SomeWidths
from vae_jax.interfaces import Part
from vae_jax.networks.conditioned import ZEROS, modulations
from vae_jax.networks.layers import (
    Conv,
    SelfAttention,
    average_pool,
    group_norm,
    halvings,
    upsample,
)
from vae_jax.networks.transformer import check_heads


class UNet(Part):
    """Stages of residual blocks down to a coarse map, with attention there, and up again.

    Each stage but the first halves the map. An upsampling block also takes the features of its
    downsampling counterpart.

    Attributes:
        widths: the number of features of each stage, the finest first.
        blocks: the number of blocks of each stage, both downsampling and upsampling.
        num_heads: the number of attention heads on the coarsest map, a divisor of its features.

    Raises:
        VaeJaxError: the last of the widths is not a multiple of num_heads.

    References:
        Ho et al. (2020), "Denoising diffusion probabilistic models", appendix B.
        Dhariwal & Nichol (2021), "Diffusion models beat GANs on image synthesis", section 3, for
            the modulation of group norms.
    """

    widths: Annotated[SomeWidths, "a tuple of whole numbers, the finest first, as (64, 128)"] = (
        64,
        128,
    )
    blocks: Count = 2
    num_heads: Count = 4

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_heads(self, self.widths[-1], self.num_heads)

    @nn.compact
    def __call__(self, z: Array, condition: Array) -> Array:
        """Latents z `[N, h, w, c]` and a condition `[N, E]` to `[N, h, w, c]`."""
        _, *finer = halvings(z.shape[1:], len(self.widths) - 1)
        h = Conv(self.widths[0], use_bias=True)(z)
        skips = [h]
        for stage, width in enumerate(self.widths):
            h = average_pool(h) if stage else h
            for _ in range(self.blocks):
                h = _Block(width)(h, condition)
                skips.append(h)
        h = _Block(self.widths[-1])(SelfAttention(self.num_heads)(h), condition)
        for stage, width in reversed(list(enumerate(self.widths))):
            for _ in range(self.blocks):
                h = _Block(width)(jnp.concatenate([h, skips.pop()], -1), condition)
            h = upsample(h, finer.pop(0)) if stage else h
        h = jax.nn.silu(group_norm(jnp.concatenate([h, skips.pop()], -1)))
        return Conv(z.shape[-1], use_bias=True, kernel_init=ZEROS)(h)


class _Block(nn.Module):
    """h + R(h): R is two 3x3 convolutions, the second's input modulated and its output zero."""

    features: int

    @nn.compact
    def __call__(self, h: Array, condition: Array) -> Array:
        inner = Conv(self.features, use_bias=True)(jax.nn.silu(group_norm(h)))
        shift, scale = modulations(condition, 2, inner)
        inner = jax.nn.silu(group_norm(inner) * (1 + scale) + shift)
        inner = Conv(self.features, use_bias=True, kernel_init=ZEROS)(inner)
        if h.shape[-1] != self.features:
            h = Conv(self.features, 1, name="shortcut")(h)
        return h + inner
