"""Layers that are modulated by a condition, and a network over vectors made of them.

A condition is a vector `[N, E]` for each example, such as the embedding of a time and a class.
The networks of diffusion and flow matching map latents `[N, *event]` and a condition to
`[N, *event]`. At initialization their output is zero and each block is the identity: "adaLN-Zero"
(Peebles & Xie 2023, section 3.2).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.cpu.sums import repeated_rows
from vae_jax.given import Count
from vae_jax.interfaces import Part

ZEROS = nn.initializers.zeros
FASTEST = 100.0  # radians per unit of time, the fastest that networks can still resolve


def embedded(time: Array, width: int) -> Array:
    """Times `[N]` in [0, 1] as `width` cosines and sines of geometric frequencies, `[N, width]`."""
    half = -(-width // 2)
    angles = time[:, None] * jnp.exp(jnp.linspace(0.0, math.log(FASTEST), half))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)[:, :width]


def modulations(condition: Array, count: int, x: Array) -> list[Array]:
    """Arrays of the shape of x, equal at all positions, affine in the condition, zero at first.

    Call it in a compact method.

    Args:
        condition: `[N, E]`.
        count: the number of arrays.
        x: the features to modulate, `[N, ..., F]`.
    """
    dense = nn.Dense(count * x.shape[-1], kernel_init=ZEROS, name="modulations")
    found = jnp.split(dense(jax.nn.silu(condition)), count, -1)
    num_positions = math.prod(x.shape[1:-1])
    return [repeated_rows(each, num_positions).reshape(x.shape) for each in found]


class AdaptiveMLP(Part):
    """Residual layers over vectors, modulated by the condition.

    Attributes:
        width: the width of the residual stream.
        num_layers: the number of residual blocks.

    References:
        Li et al. (2024), "Autoregressive image generation without vector quantization", appendix A.
        Peebles & Xie (2023), "Scalable diffusion models with transformers", section 3.2, for the
            modulation.
    """

    width: Count = 256
    num_layers: Count = 3

    @nn.compact
    def __call__(self, z: Array, condition: Array) -> Array:
        """Latents `[N, *event]`, flattened, and conditions `[N, E]`, to `[N, *event]`."""
        flat = z.reshape(len(z), -1)
        h = nn.Dense(self.width)(flat)
        for layer in range(self.num_layers):
            h = _Block(name=f"block{layer}")(h, condition)
        h = jax.nn.silu(nn.LayerNorm()(h))
        return nn.Dense(flat.shape[-1], kernel_init=ZEROS)(h).reshape(z.shape)


class _Block(nn.Module):
    """h + gate * R(h), R two layers over the normalized and modulated stream."""

    @nn.compact
    def __call__(self, h: Array, condition: Array) -> Array:
        width = h.shape[-1]
        shift, scale, gate = modulations(condition, 3, h)
        inner = nn.LayerNorm(use_bias=False, use_scale=False)(h) * (1 + scale) + shift
        return h + gate * nn.Dense(width)(jax.nn.silu(nn.Dense(width)(inner)))
