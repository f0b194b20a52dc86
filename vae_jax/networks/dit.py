"""Diffusion transformers: a condition modulates every block."""

import flax.linen as nn
import jax
from jax import Array
from typing_extensions import override

from vae_jax.given import Count
from vae_jax.interfaces import Part
from vae_jax.networks.conditioned import ZEROS, modulations
from vae_jax.networks.layers import Dense
from vae_jax.networks.patches import from_patches, to_patches, to_tokens
from vae_jax.networks.transformer import SMALL, check_heads


class DiT(Part):
    """A transformer over the patches of a map, or over a set of vectors, with adaLN-Zero.

    Attributes:
        width: the width of the residual stream, a multiple of num_heads.
        num_layers: the number of blocks.
        num_heads: the number of attention heads of each block.
        patch_size: the side of the square patches of a map; in a set, each vector is a token.

    Raises:
        VaeJaxError: the width is not a multiple of num_heads.

    References:
        Peebles & Xie (2023), "Scalable diffusion models with transformers", section 3.2.
    """

    width: Count = 128
    num_layers: Count = 4
    num_heads: Count = 4
    patch_size: Count = 1

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_heads(self, self.width, self.num_heads)

    @nn.compact
    def __call__(self, z: Array, condition: Array) -> Array:
        """Latents `[N, h, w, c]` or `[N, n, d]` and a condition `[N, E]` to the latents' shape."""
        is_map = z.ndim == 4
        tokens = to_tokens(to_patches(z, self.patch_size)) if is_map else to_tokens(z)
        positions = self.param("positions", SMALL, (tokens.shape[1], self.width))
        h = Dense(self.width)(tokens) + positions
        for layer in range(self.num_layers):
            h = _Block(self.num_heads, name=f"block{layer}")(h, condition)
        shift, scale = modulations(condition, 2, h)
        h = _normalized(h) * (1 + scale) + shift
        h = Dense(tokens.shape[-1], kernel_init=ZEROS)(h)
        return from_patches(h, z.shape[1:], self.patch_size) if is_map else h.reshape(z.shape)


class _Block(nn.Module):
    """Attention, then an MLP of width 4 * width, both residual, modulated and gated."""

    num_heads: int

    @nn.compact
    def __call__(self, h: Array, condition: Array) -> Array:
        width = h.shape[-1]
        shift, scale, gate, *of_mlp = modulations(condition, 6, h)
        qkv = Dense(3 * width)(_normalized(h) * (1 + scale) + shift)
        query, key, value = (
            each.reshape(*h.shape[:2], self.num_heads, -1)
            for each in (qkv[..., :width], qkv[..., width : 2 * width], qkv[..., 2 * width :])
        )
        attended = jax.nn.dot_product_attention(query, key, value)
        h += gate * Dense(width)(attended.reshape(h.shape))
        shift, scale, gate = of_mlp
        inner = Dense(4 * width)(_normalized(h) * (1 + scale) + shift)
        return h + gate * Dense(width)(jax.nn.gelu(inner))


def _normalized(h: Array) -> Array:
    return nn.LayerNorm(use_bias=False, use_scale=False)(h)
