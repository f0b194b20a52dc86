"""Priors over codes."""

import math
from typing import Annotated, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Coded, Distribution, OneHotCategorical, Shape, sum_event
from vae_jax.given import Count
from vae_jax.interfaces import Model, Prior, Variables
from vae_jax.networks.transformer import Cache, Transformer, check_heads


class UniformCodes(Prior):
    """p(z) = C^-n: all codes have the same probability.

    Attributes:
        shape: the height and width (h, w) of the map of codes.
    """

    shape: tuple[Count, Count]

    spaces = frozenset({"codes"})
    needs = frozenset({"codebook"})
    factors = True

    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Coded:
        codebook = model.posterior.codebook
        logits = jnp.zeros((math.prod(self.shape) * codebook.depth, codebook.num_codes))
        return Coded(OneHotCategorical(logits, temperature=1.0), codebook, self.shape)


@struct.dataclass
class AutoregressiveCategorical(Distribution):
    """One-hot `[n, C]`: ln p(z) = sum_i ln p(z_i | z_1, ..., z_i-1), by a transformer.

    Its input at a position is the code before; at the first position it is zero.

    Attributes:
        variables: the variables of the network.
        network: a transformer, from one-hot codes to the logits of the next.
    """

    variables: Variables
    network: Transformer = struct.field(pytree_node=False)

    exact_mean = False

    event_ndims = 2

    @property
    @override
    def shape(self) -> Shape:
        assert self.network.features is not None  # the last layer makes the logits
        return (self.network.length, self.network.features)

    @property
    def mean(self) -> Float[Array, "n C"]:
        """The sequence in which each code is the likeliest after those before; not the mean."""
        return self._choose(jnp.zeros(self.event_shape))

    def log_prob(self, value: Float[Array, "*draws n C"]) -> Float[Array, "*draws"]:
        """sum_i ln p(z_i | z_1, ..., z_i-1), in one pass over all positions."""
        one_hot = value.reshape(-1, *self.event_shape)
        before = jnp.pad(one_hot[:, :-1], ((0, 0), (1, 0), (0, 0)))
        logits, _ = self._logits(before, self.network.empty_cache(len(before)), 0)
        log_p = sum_event(one_hot * jax.nn.log_softmax(logits), 2)
        return log_p.reshape(value.shape[:-2])

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Float[Array, "*draws n C"]:
        """Position by position, by Gumbel noise added to the logits; not reparameterized."""
        return self._choose(random.draw(jax.random.gumbel, key, sample_shape, self.event_shape))

    def _logits(
        self, before: Float[Array, "N S C"], cache: Cache, start: Int[Array, ""] | int
    ) -> tuple[Float[Array, "N S C"], Cache]:
        logits_and_cache = self.network.apply(self.variables, before, cache, start)
        return cast(tuple[Array, Cache], logits_and_cache)

    def _choose(self, noise: Float[Array, "*draws n C"]) -> Float[Array, "*draws n C"]:
        """The codes with the largest sum of logit and noise, position by position."""
        flat = noise.reshape(-1, *self.event_shape)

        def step(
            state: tuple[Array, Cache], position: tuple[Array, Array]
        ) -> tuple[tuple[Array, Cache], Array]:
            (before, cache), (index, noise) = state, position
            logits, cache = self._logits(before[:, None], cache, index)
            code = jax.nn.one_hot((logits[:, 0] + noise).argmax(-1), noise.shape[-1])
            return (code, cache), code

        start = jnp.zeros_like(flat[:, 0]), self.network.empty_cache(len(flat))
        positions = jnp.arange(self.network.length), flat.swapaxes(0, 1)
        return lax.scan(step, start, positions)[1].swapaxes(0, 1).reshape(noise.shape)


class AutoregressiveCodes(Prior):
    """p(z) of one code after another, row by row, by a transformer.

    The prior of van den Oord et al. (2017, section 3.3), with a transformer in place of their
    PixelCNN, and trained together with the model: codes pass no gradient to the encoder. One-hot
    latents do.

    Attributes:
        shape: the height and width (h, w) of the map of codes; (n,) for one-hot latents.
        width: the width of the transformer.
        num_layers: the number of its blocks.
        num_heads: the number of attention heads of each block.
    """

    shape: Annotated[
        tuple[Count] | tuple[Count, Count], "(h, w) for a map of codes or (n,), all at least 1"
    ]
    width: Count = 64
    num_layers: Count = 2
    num_heads: Count = 4

    spaces = frozenset({"codes", "onehot"})

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_heads(self, self.width, self.num_heads)

    @nn.compact
    @override
    def __call__(
        self, model: Model, y: Int[Array, "B"] | None = None
    ) -> Coded | AutoregressiveCategorical:
        codebook = model.posterior.codebook if model.posterior.space == "codes" else None
        depth, classes = (
            (1, model.posterior.classes)
            if codebook is None
            else (codebook.depth, codebook.num_codes)
        )
        network = Transformer(
            length=math.prod(self.shape) * depth,
            features=classes,
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            name="network",
        )
        if self.is_initializing():
            network(jnp.zeros((1, 1, classes)), network.empty_cache(1))
        base = AutoregressiveCategorical(network.variables, network.clone(parent=None))
        return base if codebook is None else Coded(base, codebook, self.shape)
