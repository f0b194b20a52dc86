"""Priors over codes."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Coded, Distribution, OneHotCategorical, Shape, sum_event
from vae_jax.interfaces import Model, Prior
from vae_jax.networks.transformer import Transformer


class UniformCodes(Prior):
    """p(z) = C^-n: all codes are as likely.

    Attributes:
        shape: (h, w) of the map of codes.
    """

    shape: Shape

    spaces = frozenset({"codes"})
    needs = frozenset({"codebook"})
    factors = True

    def __call__(self, model: Model, y: Array | None = None) -> Coded:
        """Batch `[]`, event `[h, w, D]`."""
        codebook = model.posterior.codebook
        logits = jnp.zeros((math.prod(self.shape) * codebook.depth, codebook.num_codes))
        return Coded(OneHotCategorical(logits, temperature=1.0), codebook, self.shape)


@struct.dataclass
class AutoregressiveCategorical(Distribution):
    """One-hot `[n, C]`: ln p(z) = sum_i ln p(z_i | z_1, ..., z_i-1), by a transformer.

    Its input at a place is the code before; at the first place it is zero, so that the first
    position stands for the start.

    Attributes:
        variables: of the transformer.
        network: from one-hot codes to the logits of the next.
    """

    variables: Any
    network: Transformer = struct.field(pytree_node=False)

    exact_mean = False

    event_ndims = 2

    @property
    @override
    def shape(self) -> Shape:
        assert self.network.features is not None  # its last layer makes the logits
        return (self.network.length, self.network.features)

    @property
    def mean(self) -> Array:
        """The sequence in which each code is the likeliest after those before; not the mean."""
        return self._choose(jnp.zeros(self.event_shape))

    def log_prob(self, value: Array) -> Array:
        """In one pass over all places."""
        one_hot = value.reshape(-1, *self.event_shape)
        before = jnp.pad(one_hot[:, :-1], ((0, 0), (1, 0), (0, 0)))
        logits, _ = self._logits(before, self.network.empty_cache(len(before)), 0)
        log_p = sum_event(one_hot * jax.nn.log_softmax(logits), 2)
        return log_p.reshape(value.shape[:-2])

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Place by place, by Gumbel noise added to the logits; not reparameterized."""
        return self._choose(random.draw(jax.random.gumbel, key, sample_shape, self.event_shape))

    def _logits(self, before: Array, cache: Any, start: Array | int) -> tuple[Array, Any]:
        logits: Any = self.network.apply(self.variables, before, cache, start)
        return logits

    def _choose(self, noise: Array) -> Array:
        """The code with the largest sum of logit and noise `[..., n, C]`, place by place."""
        flat = noise.reshape(-1, *self.event_shape)

        def step(state: tuple[Array, Any], place: tuple[Array, Array]):
            (before, cache), (index, noise) = state, place
            logits, cache = self._logits(before[:, None], cache, index)
            code = jax.nn.one_hot((logits[:, 0] + noise).argmax(-1), noise.shape[-1])
            return (code, cache), code

        start = jnp.zeros_like(flat[:, 0]), self.network.empty_cache(len(flat))
        places = jnp.arange(self.network.length), flat.swapaxes(0, 1)
        return lax.scan(step, start, places)[1].swapaxes(0, 1).reshape(noise.shape)


class AutoregressiveCodes(Prior):
    """p(z) of one code after another, row by row, by a transformer.

    The prior of van den Oord et al. (2017, section 3.3), with a transformer for their PixelCNN and
    trained together with the model: codes pass no gradient to the encoder. One-hot latents do.

    Attributes:
        shape: (h, w) of the map of codes; (n,) of one-hot latents.
        width, num_layers, num_heads: of the `Transformer`.
    """

    shape: Shape
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4

    spaces = frozenset({"codes", "onehot"})

    @nn.compact
    def __call__(self, model: Model, y: Array | None = None) -> Coded | AutoregressiveCategorical:
        """Batch `[]`, event `[h, w, D]` or `[n, C]`."""
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
