"""Priors by a transformer over a sequence of tokens, the positions of a map row by row."""

import abc
from collections.abc import Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.conditional import check_guidance, dropped
from vae_jax.distributions import Bounded, Shape
from vae_jax.given import Count, LatentShape, Proportion, Weight
from vae_jax.interfaces import Prior, Variables
from vae_jax.networks.transformer import Cache, Transformer, check_heads


class TokenPrior(Prior):
    """A prior that a transformer makes of tokens.

    The class y is an input at every position, one-hot, with one more for no class.

    Attributes:
        shape: the shape of z.
        width: the width of the transformer, a multiple of num_heads.
        num_layers: the number of its blocks.
        num_heads: the number of attention heads of each block.
        num_classes: the number of classes y of p(z|y) in a conditional model; None is p(z).
        drop_labels: the probability with which y is not told in training, so that the network knows
            p(z) too.
        guidance: the weight w of classifier-free guidance in draws, those of a density that is in
            proportion to p(z_i|y) (p(z_i|y) / p(z_i))^w at each position; ln p(z|y) is without it.
        temperature: how far draws stray; 1 is the model, and ln p(z) is always the model's.
    """

    shape: LatentShape
    width: Count = 64
    num_layers: Count = 2
    num_heads: Count = 4
    num_classes: Count | None = None
    drop_labels: Proportion = 0.1
    guidance: Weight = 0.0
    temperature: Weight = 1.0

    draws_by = frozenset({"guidance", "temperature"})

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_heads(self, self.width, self.num_heads)
        check_guidance(self, self.num_classes, self.drop_labels, self.guidance)

    @property
    @override
    def exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether no label is dropped in training."""
        return self.num_classes is None or self.drop_labels == 0

    @property
    @override
    def label_classes(self) -> int | None:
        return self.num_classes

    def transformer(
        self, length: int, inputs: int, outputs: int, causal: bool = True
    ) -> Transformer:
        """The network, to be made in a compact method.

        Args:
            length: the number of tokens.
            inputs: the number of inputs of each token, without those of the class.
            outputs: the number of outputs.
            causal: whether a token sees those before it alone.
        """
        network = Transformer(
            length,
            outputs,
            self.width,
            self.num_layers,
            self.num_heads,
            causal,
            name="network",
        )
        if self.is_initializing():
            told = 0 if self.num_classes is None else self.num_classes + 1
            network(jnp.zeros((1, 1, inputs + told)), network.empty_cache(1))
        return network


@struct.dataclass
class Tokens(Bounded):
    """A density of sequences of tokens, `[n, F]` as networks see them.

    Attributes:
        variables: the variables of the network.
        y: classes `[B]` of the densities of a batch; None for one density.
        network: the transformer, from tokens and classes to outputs.
        prior: the prior, which says how draws are made.
    """

    variables: Variables
    y: Int[Array, "B"] | None
    network: Transformer = struct.field(pytree_node=False)
    prior: TokenPrior = struct.field(pytree_node=False)
    event_ndims: int = struct.field(pytree_node=False, default=2, kw_only=True)

    exact_mean = False

    @property
    @abc.abstractmethod
    def token_size(self) -> int:
        """The number of components F of a token."""

    @property
    @override
    def shape(self) -> Shape:
        batch = () if self.y is None else self.y.shape
        return (*batch, self.network.length, self.token_size)

    def flat(self, value: Float[Array, "..."]) -> tuple[Array, Int[Array, "N"] | None]:
        """Sequences `[N, n, F]` and their classes `[N]`."""
        flat = value.reshape(-1, self.network.length, self.token_size)
        return flat, None if self.y is None else jnp.tile(self.y, len(flat) // len(self.y))

    def told(self, keys: Key[Array, "*batch"], y: Int[Array, "N"] | None) -> Int[Array, "N"] | None:
        """The classes that the network is told in training."""
        none, probability = self.prior.num_classes, self.prior.drop_labels
        if y is None or none is None or probability == 0:
            return y
        return dropped(y, keys.reshape(-1), none, probability)

    def outputs(
        self,
        inputs: Float[Array, "N S _"],
        y: Int[Array, "N"] | None,
        cache: Cache | None = None,
        start: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "N S _"], Cache]:
        """The network's at positions start, ..., start + S - 1, and the cache with them in it."""
        if y is not None and self.prior.num_classes is not None:
            classes = jax.nn.one_hot(y, self.prior.num_classes + 1)[:, None]
            beside = jnp.broadcast_to(classes, (*inputs.shape[:2], classes.shape[-1]))
            inputs = jnp.concatenate([inputs, beside], -1)
        found = self.network.apply(self.variables, inputs, cache, start)
        return cast(tuple[Array, Cache], found)

    def both(self, y: Int[Array, "N"] | None) -> tuple[Int[Array, "_"] | None, int]:
        """The classes that draws are told, and how often: where guided, then that of none too."""
        none = self.prior.num_classes
        if y is None or none is None or self.prior.guidance == 0:
            return y, 1
        return jnp.concatenate([y, jnp.full_like(y, none)]), 2


@struct.dataclass
class Autoregressive(Tokens):
    """p(z) = prod_i p(z_i | z_1, ..., z_i-1), by a causal transformer.

    Its input at a position is the token before; at the first position it is zero.
    """

    @abc.abstractmethod
    def log_density(
        self, outputs: Float[Array, "N n _"], tokens: Float[Array, "N n F"]
    ) -> Float[Array, "N n"]:
        """ln p(z_i | z_1, ..., z_i-1) in nats, from the outputs at each position."""

    @abc.abstractmethod
    def choose(
        self, outputs: Sequence[Float[Array, "N _"]], noise: Sequence[Float[Array, "N ..."]]
    ) -> Float[Array, "N F"]:
        """Tokens at one position.

        Args:
            outputs: the outputs there, and those of no class where draws are guided.
            noise: the noise there; zero for the middle.
        """

    @override
    def log_prob(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """sum_i ln p(z_i | z_1, ..., z_i-1), in one pass over all positions."""
        flat, y = self.flat(value)
        return self._log_prob(flat, y).reshape(value.shape[: value.ndim - self.event_ndims])

    @override
    def elbo(self, value: Float[Array, "..."], keys: Key[Array, "*batch"]) -> Float[Array, "..."]:
        """`log_prob`; of p(z) for those values whose labels are dropped.

        In the mean it is below the logarithm of the density that is told y with the other
        probability.
        """
        flat, y = self.flat(value)
        return self._log_prob(flat, self.told(keys, y)).reshape(keys.shape)

    def _log_prob(self, tokens: Float[Array, "N n F"], y: Array | None) -> Float[Array, "N"]:
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0), (0, 0)))
        outputs, _ = self.outputs(before, y, self.network.empty_cache(len(before)))
        return self.log_density(outputs, tokens).sum(-1)

    @abc.abstractmethod
    def noise(self, key: Key[Array, "..."], sample_shape: Shape) -> list[Float[Array, "..."]]:
        """The noise of draws, of each kind `[*sample_shape, *batch, n, ...]`."""

    @property
    @override
    def mean(self) -> Float[Array, "..."]:
        """The sequence in which each token is the middle of those after the ones before."""
        kinds = jax.eval_shape(lambda: self.noise(random.key(0), ()))
        return self._drawn([jnp.zeros(kind.shape) for kind in kinds], self.batch_shape)

    @override
    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Position by position; not reparameterized.

        The keys and values of the network's attention at earlier positions are kept.
        """
        return self._drawn(self.noise(key, sample_shape), sample_shape + self.batch_shape)

    def _drawn(self, noise: list[Float[Array, "..."]], leading: Shape) -> Float[Array, "..."]:
        flat, y = self.flat(jnp.zeros((*leading, *self.event_shape)))
        classes, copies = self.both(y)

        def step(
            state: tuple[Array, Cache], position: tuple[Array, list[Array]]
        ) -> tuple[tuple[Array, Cache], Array]:
            (before, cache), (index, noise) = state, position
            inputs = jnp.tile(before, (copies, 1))[:, None]
            outputs, cache = self.outputs(inputs, classes, cache, index)
            token = self.choose(jnp.split(outputs[:, 0], copies), noise)
            return (token, cache), token

        start = flat[:, 0], self.network.empty_cache(copies * len(flat))
        each = [kind.reshape(len(flat), *kind.shape[len(leading) :]) for kind in noise]
        along = jnp.arange(self.network.length), [jnp.moveaxis(kind, 1, 0) for kind in each]
        tokens = lax.scan(step, start, along)[1]
        return tokens.swapaxes(0, 1).reshape(*leading, *self.event_shape)
