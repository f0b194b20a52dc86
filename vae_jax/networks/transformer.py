"""A transformer, causal or not, for sequences seen whole or place by place."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

Cache = tuple[tuple[Array, Array], ...]
"""For each layer, the keys and the values `[N, T, heads, width / heads]` of all T places."""

SMALL = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Attention, then a layer of 4 * width, both pre-norm and residual (Vaswani et al. 2017).

    Attributes:
        num_heads: of the attention; they divide the width.
        causal: whether a place sees only itself and those before.
        kernel_init: of all layers; biases start at zero.
    """

    num_heads: int
    causal: bool
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(
        self, x: Array, cache: tuple[Array, Array] | None = None, start: Array | int = 0
    ) -> tuple[Array, tuple[Array, Array]]:
        """Places start, start + 1, ...: x `[N, S, width]`, and what all blocks know of others.

        Without a cache, x is all there is to see.

        Raises:
            ValueError: the width is no multiple of the number of heads.
        """
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"{self.num_heads} heads do not divide a width of {width}: take a multiple."
            )

        def dense(features: int) -> nn.Dense:
            return nn.Dense(features, kernel_init=self.kernel_init)

        qkv = dense(3 * width)(nn.LayerNorm()(x))
        heads = qkv.reshape(*x.shape[:2], 3, self.num_heads, -1)
        query, keys, values = jnp.moveaxis(heads, 2, 0)
        if cache is not None:
            keys, values = (
                lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
                for old, new in zip(cache, (keys, values), strict=True)
            )
        places = start + jnp.arange(x.shape[1])
        seen = jnp.arange(keys.shape[1]) <= places[:, None] if self.causal else None
        mask = None if seen is None else seen[None, None]
        attended = jax.nn.dot_product_attention(query, keys, values, mask=mask)
        x += dense(width)(attended.reshape(x.shape))
        x += dense(width)(jax.nn.gelu(dense(4 * width)(nn.LayerNorm()(x))))
        return x, (keys, values)


class Transformer(nn.Module):
    """Features at each place of a sequence, from the inputs there and before (Vaswani et al. 2017).

    Pre-norm, with learned positions, as GPT-2 (Radford et al. 2019); the last layer is affine.

    Attributes:
        length: T, of the longest sequence.
        features: of the output; None leaves out the last layer, after the normalization.
        width: of the residual stream; a multiple of the number of heads.
        num_layers: blocks.
        num_heads: of each block's attention.
        causal: False lets every place see all others.
        kernel_init: of all layers but the last, which starts near zero.
    """

    length: int
    features: int | None
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    causal: bool = True
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    def empty_cache(self, batch: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """Of sequences of which nothing has been seen."""
        shape = (batch, self.length, self.num_heads, self.width // self.num_heads)
        return ((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)),) * self.num_layers

    @nn.compact
    def __call__(
        self, x: Array, cache: Cache | None = None, start: Array | int = 0
    ) -> tuple[Array, Cache]:
        """The places from `start` on.

        Args:
            x: inputs at these places, `[N, S, F]`.
            cache: of the places before; None where there are none.
            start: how many are before.

        Returns:
            Features `[N, S, features or width]` and the cache of the places up to here.
        """
        positions = self.param("positions", SMALL, (self.length, self.width))
        h = nn.Dense(self.width, kernel_init=self.kernel_init)(x)
        h += lax.dynamic_slice_in_dim(positions, start, x.shape[1])
        new_cache = []
        for layer in [None] * self.num_layers if cache is None else cache:
            h, seen = Block(self.num_heads, self.causal, self.kernel_init)(h, layer, start)
            new_cache.append(seen)
        h = nn.LayerNorm()(h)
        if self.features is not None:
            h = nn.Dense(self.features, kernel_init=SMALL)(h)
        return h, tuple(new_cache)
