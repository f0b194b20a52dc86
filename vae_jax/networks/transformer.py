"""A transformer, causal or not, over a whole sequence or position by position."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from vae_jax.errors import VaeJaxError
from vae_jax.networks.layers import Dense

Cache = tuple[tuple[Array, Array], ...]
"""The keys and values of each block at all T positions, `[N, T, heads, width / heads]` each."""

SMALL = nn.initializers.normal(0.02)


def check_heads(part: nn.Module, width: int, num_heads: int) -> None:
    """Check that the width of a transformer is a multiple of its number of heads.

    Args:
        part: the transformer, for messages.
        width: its width.
        num_heads: its number of heads.

    Raises:
        VaeJaxError: the width is not a multiple of `num_heads`.
    """
    if width % num_heads:
        raise VaeJaxError(
            f"The {num_heads} heads of {type(part).__name__} do not divide its width of {width}: "
            "give a multiple."
        )


class Block(nn.Module):
    """Attention, then an MLP of width 4 * width, both pre-norm and residual (Vaswani et al. 2017).

    Attributes:
        num_heads: the number of attention heads, a divisor of the width.
        causal: whether a position attends only to itself and those before it.
        kernel_init: the initializer of all layers; biases start at zero.
    """

    num_heads: int
    causal: bool
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(
        self, x: Array, cache: tuple[Array, Array] | None = None, start: Array | int = 0
    ) -> tuple[Array, tuple[Array, Array]]:
        """Positions start, ..., start + S - 1 of a sequence.

        Args:
            x: the residual stream at these positions, `[N, S, width]`.
            cache: keys and values of the whole sequence, into which those of x are written; None if
                x is the whole sequence.
            start: the first position.

        Returns:
            The residual stream `[N, S, width]`, and the keys and values `[N, T or S, heads, ...]`.

        Raises:
            VaeJaxError: the width is not a multiple of the number of heads.
        """
        width = x.shape[-1]
        check_heads(self, width, self.num_heads)

        def dense(features: int) -> Dense:
            return Dense(features, kernel_init=self.kernel_init)

        qkv = dense(3 * width)(nn.LayerNorm()(x))
        heads = qkv.reshape(*x.shape[:2], 3, self.num_heads, -1)
        query, keys, values = jnp.moveaxis(heads, 2, 0)
        if cache is not None:
            keys, values = (
                lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
                for old, new in zip(cache, (keys, values), strict=True)
            )
        mask = None
        if self.causal:
            queries = start + jnp.arange(x.shape[1])
            mask = (jnp.arange(keys.shape[1]) <= queries[:, None])[None, None]
        attended = jax.nn.dot_product_attention(query, keys, values, mask=mask)
        x += dense(width)(attended.reshape(x.shape))
        x += dense(width)(jax.nn.gelu(dense(4 * width)(nn.LayerNorm()(x))))
        return x, (keys, values)


class Transformer(nn.Module):
    """A pre-norm transformer with learned positions (Vaswani et al. 2017; Radford et al. 2019).

    Attributes:
        length: the length T of the longest sequence.
        features: the number of output features of a last, affine layer; None leaves that layer out,
            and the output is the normalized residual stream.
        width: the width of the residual stream, a multiple of num_heads.
        num_layers: the number of blocks.
        num_heads: the number of attention heads of each block.
        causal: whether a position attends only to itself and those before it, else to all.
        kernel_init: the initializer of all layers but the last, which starts near zero.
    """

    length: int
    features: int | None
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    causal: bool = True
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    def empty_cache(self, batch: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """The cache of `batch` sequences before their first position, in the type `dtype`."""
        shape = (batch, self.length, self.num_heads, self.width // self.num_heads)
        return ((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)),) * self.num_layers

    @nn.compact
    def __call__(
        self, x: Array, cache: Cache | None = None, start: Array | int = 0
    ) -> tuple[Array, Cache]:
        """Positions start, ..., start + S - 1 of a sequence.

        Args:
            x: the inputs at these positions, `[N, S, F]`.
            cache: the cache of the positions before; None if x is the whole sequence.
            start: the number of positions before.

        Returns:
            `[N, S, features or width]`, and the cache with these positions in it.
        """
        positions = self.param("positions", SMALL, (self.length, self.width))
        h = Dense(self.width, kernel_init=self.kernel_init)(x)
        h += lax.dynamic_slice_in_dim(positions, start, x.shape[1])
        new_cache = []
        for layer in [None] * self.num_layers if cache is None else cache:
            h, seen = Block(self.num_heads, self.causal, self.kernel_init)(h, layer, start)
            new_cache.append(seen)
        h = nn.LayerNorm()(h)
        if self.features is not None:
            h = Dense(self.features, kernel_init=SMALL)(h)
        return h, tuple(new_cache)
