"""Transformer priors over a sequence of tokens, the positions of a map row by row."""

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
    """A transformer prior over tokens.

    The class y is a one-hot input at every position, with an extra entry for "no class".

    Attributes:
        shape: the shape of z.
        width: the width of the transformer, a multiple of num_heads.
        num_layers: the number of transformer blocks.
        num_heads: the number of attention heads of each block.
        num_classes: the number of classes y of p(z|y) in a conditional model; None is p(z).
        drop_labels: the probability with which y is withheld in training, so that the network also
            learns p(z).
        guidance: the weight w of classifier-free guidance: each position is drawn from a density
            proportional to p(z_i|y) (p(z_i|y) / p(z_i))^w. ln p(z|y) is computed without it.
        temperature: the temperature of sampling; 1 draws from the model. ln p(z) does not depend on
            it.

    Raises:
        VaeJaxError: the width is not a multiple of num_heads, or there is guidance without classes
            or without dropped labels.
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
        """The network; call it in a compact method.

        Args:
            length: the number of tokens.
            inputs: the number of inputs of each token, not counting those of the class.
            outputs: the number of outputs of each token.
            causal: whether a token attends only to those before it.
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
    """A density of sequences of tokens, `[n, F]` for the network.

    Attributes:
        variables: the variables of the network.
        y: classes `[B]` of the densities of a batch; None for one density.
        network: the transformer, from tokens and classes to outputs.
        prior: the prior, with the settings of sampling.
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

    def flat(
        self, value: Float[Array, "..."]
    ) -> tuple[Float[Array, "N n F"], Int[Array, "N"] | None]:
        """The sequences of `value`, `[N, n, F]`, and their classes `[N]`."""
        flat = value.reshape(-1, self.network.length, self.token_size)
        return flat, None if self.y is None else jnp.tile(self.y, len(flat) // len(self.y))

    def told(self, keys: Key[Array, "*batch"], y: Int[Array, "N"] | None) -> Int[Array, "N"] | None:
        """The classes y for the network in training, some of them withheld at random by `keys`."""
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
        """The network's outputs at positions start, ..., start + S - 1.

        Args:
            inputs: the inputs at these positions.
            y: classes `[N]`, or None.
            cache: the cache of the positions before; None if these are all positions.
            start: the first position.

        Returns:
            The outputs, and the updated cache.
        """
        if y is not None and self.prior.num_classes is not None:
            classes = jax.nn.one_hot(y, self.prior.num_classes + 1)[:, None]
            beside = jnp.broadcast_to(classes, (*inputs.shape[:2], classes.shape[-1]))
            inputs = jnp.concatenate([inputs, beside], -1)
        found = self.network.apply(self.variables, inputs, cache, start)
        return cast(tuple[Array, Cache], found)

    def both(self, y: Int[Array, "N"] | None) -> tuple[Int[Array, "_"] | None, int]:
        """The classes of draws with, for guidance, a copy without class; the number of copies."""
        none = self.prior.num_classes
        if y is None or none is None or self.prior.guidance == 0:
            return y, 1
        return jnp.concatenate([y, jnp.full_like(y, none)]), 2


@struct.dataclass
class Autoregressive(Tokens):
    """p(z) = prod_i p(z_i | z_1, ..., z_i-1), by a causal transformer.

    The transformer's input at a position is the previous token, zero at the first position.
    """

    @abc.abstractmethod
    def log_density(
        self, outputs: Float[Array, "N n _"], tokens: Float[Array, "N n F"]
    ) -> Float[Array, "N n"]:
        """ln p(z_i | z_1, ..., z_i-1) in nats of `tokens`, from the `outputs` at each position."""

    @abc.abstractmethod
    def choose(
        self, outputs: Sequence[Float[Array, "N _"]], noise: Sequence[Float[Array, "N ..."]]
    ) -> Float[Array, "N F"]:
        """Tokens at one position.

        Args:
            outputs: the outputs at this position, and those without a class if draws are guided.
            noise: the noise at this position; zeros give the central token.
        """

    @override
    def log_prob(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """sum_i ln p(z_i | z_1, ..., z_i-1), in one pass over all positions."""
        flat, y = self.flat(value)
        return self._log_prob(flat, y).reshape(value.shape[: value.ndim - self.event_ndims])

    @override
    def elbo(
        self, value: Float[Array, "..."], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """`log_prob`, with p(z) in place of p(z|y) for values whose labels are dropped.

        Its expectation is a lower bound on the logarithm of the mixture of p(z|y) and p(z).
        """
        flat, y = self.flat(value)
        return self._log_prob(flat, self.told(keys, y)).reshape(keys.shape)

    def _log_prob(
        self, tokens: Float[Array, "N n F"], y: Int[Array, "N"] | None
    ) -> Float[Array, "N"]:
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0), (0, 0)))
        outputs, _ = self.outputs(before, y, self.network.empty_cache(len(before)))
        return self.log_density(outputs, tokens).sum(-1)

    @abc.abstractmethod
    def noise(self, key: Key[Array, "..."], sample_shape: Shape) -> list[Float[Array, "..."]]:
        """The noise of draws by `key`: an array `[*sample_shape, *batch, n, ...]` of each kind."""

    @property
    @override
    def mean(self) -> Float[Array, "..."]:
        """The sequence in which each token is central given those before it; not the mean."""
        kinds = jax.eval_shape(lambda: self.noise(random.key(0), ()))
        return self._drawn([jnp.zeros(kind.shape) for kind in kinds], self.batch_shape)

    @override
    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Position by position; not reparameterized.

        The attention keys and values of earlier positions are cached.
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
