"""A causal transformer, for sequences seen whole or place by place."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer

Cache = tuple[tuple[Array, Array], ...]
"""For each layer, the keys and the values `[N, T, heads, width / heads]` of all T places."""

SMALL = nn.initializers.normal(0.02)


class _Block(nn.Module):
    """Causal attention, then a layer of 4 * width, both pre-norm and residual."""

    num_heads: int
    kernel_init: Initializer

    @nn.compact
    def __call__(
        self, x: Array, cache: tuple[Array, Array], start: Array | int
    ) -> tuple[Array, tuple[Array, Array]]:
        """Places start, start + 1, ...: x `[N, S, width]`, and what all blocks know of others."""
        width = x.shape[-1]

        def dense(features: int) -> nn.Dense:
            return nn.Dense(features, kernel_init=self.kernel_init)

        qkv = dense(3 * width)(nn.LayerNorm()(x))
        heads = qkv.reshape(*x.shape[:2], 3, self.num_heads, -1)
        query, *own = jnp.moveaxis(heads, 2, 0)
        keys, values = (
            lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
            for old, new in zip(cache, own, strict=True)
        )
        causal = jnp.arange(keys.shape[1]) <= start + jnp.arange(x.shape[1])[:, None]
        attended = jax.nn.dot_product_attention(query, keys, values, mask=causal[None, None])
        x += dense(width)(attended.reshape(x.shape))
        x += dense(width)(jax.nn.gelu(dense(4 * width)(nn.LayerNorm()(x))))
        return x, (keys, values)


class Transformer(nn.Module):
    """Features at each place of a sequence, from the inputs there and before (Vaswani et al. 2017).

    Pre-norm, with learned positions, as GPT-2 (Radford et al. 2019); the last layer is affine.

    Attributes:
        length: T, of the longest sequence.
        features: of the output.
        width: of the residual stream; a multiple of the number of heads.
        num_layers: blocks.
        num_heads: of each block's attention.
        kernel_init: of all layers but the last, which starts near zero.
    """

    length: int
    features: int
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    def empty_cache(self, batch: int) -> Cache:
        """Of sequences of which nothing has been seen."""
        shape = (batch, self.length, self.num_heads, self.width // self.num_heads)
        return ((jnp.zeros(shape), jnp.zeros(shape)),) * self.num_layers

    @nn.compact
    def __call__(self, x: Array, cache: Cache, start: Array | int = 0) -> tuple[Array, Cache]:
        """The places from `start` on.

        Args:
            x: inputs at these places, `[N, S, F]`.
            cache: of the places before.
            start: how many are before.

        Returns:
            Features `[N, S, features]` and the cache of the places up to here.
        """
        positions = self.param("positions", SMALL, (self.length, self.width))
        h = nn.Dense(self.width, kernel_init=self.kernel_init)(x)
        h += lax.dynamic_slice_in_dim(positions, start, x.shape[1])
        new_cache = []
        for layer in cache:
            h, seen = _Block(self.num_heads, self.kernel_init)(h, layer, start)
            new_cache.append(seen)
        return nn.Dense(self.features, kernel_init=SMALL)(nn.LayerNorm()(h)), tuple(new_cache)
