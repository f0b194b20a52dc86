"""Priors over codes: the uniform one, and the base of those with a transformer."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int
from typing_extensions import override

from vae_jax.distributions import Codebook, Coded, OneHotCategorical
from vae_jax.errors import VaeJaxError
from vae_jax.given import Count, Share
from vae_jax.interfaces import Model, Posterior, Prior, latent_shape
from vae_jax.priors.tokens import TokenPrior, Tokens


@runtime_checkable
class OfCodes(Protocol):
    """A posterior over maps of codes."""

    @property
    def codebook(self) -> Codebook:
        """The codebook of its `Quantized`."""
        ...


@runtime_checkable
class OfOneHot(Protocol):
    """A posterior over one-hot vectors."""

    @property
    def classes(self) -> int:
        """The number of classes of each."""
        ...


def codebook_of(posterior: Posterior) -> Codebook:
    """The codebook of a posterior over codes.

    Raises:
        VaeJaxError: a user's own posterior has no codebook.
    """
    if not isinstance(posterior, OfCodes):
        raise _lacks(posterior, "codebook", "the Codebook that its Quantized has")
    return posterior.codebook


def _lacks(posterior: Posterior, name: str, what: str) -> VaeJaxError:
    return VaeJaxError(
        f"A prior over codes needs `{name}` of {type(posterior).__name__}, which has none: give it "
        f"a property or a field `{name}`, {what}."
    )


class UniformCodes(Prior):
    """p(z) = C^-n: all maps of codes are equally probable.

    Attributes:
        shape: the height and width (h, w) of the map of codes.

    References:
        van den Oord et al. (2017), "Neural discrete representation learning", section 3.1.
    """

    shape: tuple[Count, Count]

    spaces = frozenset({"codes"})
    needs = frozenset({"codebook"})
    factors = True

    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Coded:
        codebook = codebook_of(model.posteriors[-1])
        logits = jnp.zeros((math.prod(self.shape) * codebook.depth, codebook.num_codes))
        return Coded(OneHotCategorical(logits, temperature=1.0), codebook, self.shape)


class CodePrior(TokenPrior):
    """A transformer prior over codes.

    Attributes:
        shape, width, num_layers, num_heads: as in `TokenPrior`.
        num_classes, drop_labels, guidance: as in `TokenPrior`.
        temperature: the temperature of p^(1/temperature), from which a code is drawn; 0 takes the
            likeliest.
        top_k: the number of likeliest codes from which one is drawn; None keeps all.
        top_p: the probability of the smallest set of likeliest codes from which one is drawn;
            None keeps all. It applies after temperature and top_k.

    References:
        Holtzman et al. (2020), "The curious case of neural text degeneration", section 3.1, for
            `top_p`.
    """

    top_k: Count | None = None
    top_p: Share | None = None

    draws_by = frozenset({"guidance", "temperature", "top_k", "top_p"})

    def codes_of(self, model: Model) -> tuple[int, int]:
        """The number n of codes in a map of `model`, and the number C of values of each.

        Raises:
            VaeJaxError: a user's own posterior has neither a codebook nor classes.
        """
        posterior, positions = model.posteriors[-1], math.prod(latent_shape(self.shape))
        if posterior.space == "onehot":
            if not isinstance(posterior, OfOneHot):
                raise _lacks(posterior, "classes", "the number of classes of each of its codes")
            return positions, posterior.classes
        codebook = codebook_of(posterior)
        return positions * codebook.depth, codebook.num_codes


@struct.dataclass
class CodeTokens(Tokens):
    """One-hot codes `[n, C]` as tokens."""

    prior: CodePrior = struct.field(pytree_node=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    @override
    def token_size(self) -> int:
        assert self.network.features is not None  # the last layer makes the logits
        return self.network.features

    def guided(self, logits: Sequence[Float[Array, "*batch C"]]) -> Float[Array, "*batch C"]:
        """ln p(z_i|y) up to a constant, pushed away from ln p(z_i) by guidance, if there is any."""
        of_class, *of_none = logits
        return of_class + sum(self.prior.guidance * (of_class - each) for each in of_none)

    def chosen(
        self, logits: Float[Array, "*batch C"], gumbel: Float[Array, "*batch C"]
    ) -> Float[Array, "*batch C"]:
        """One-hot draws by Gumbel noise, as temperature, top_k and top_p allow."""
        prior = self.prior
        kept = likeliest(logits, prior.temperature, prior.top_k, prior.top_p)
        score = jnp.where(kept, logits + prior.temperature * gumbel, -jnp.inf)
        return jax.nn.one_hot(score.argmax(-1), logits.shape[-1])


def likeliest(
    logits: Float[Array, "*batch C"], temperature: float, top_k: int | None, top_p: float | None
) -> Bool[Array, "*batch C"]:
    """A mask of the likeliest categories; ties go to the first.

    Args:
        logits: the logits of the categories.
        temperature: the divisor of the logits.
        top_k: the largest number of categories; None keeps all.
        top_p: the probability that the smallest such set has at least; None keeps all.
    """
    classes = logits.shape[-1]
    if top_k is None and top_p in (None, 1):
        return jnp.ones(logits.shape, bool)
    order = jnp.argsort(-logits)
    kept = jnp.arange(classes) < (classes if top_k is None else top_k)
    if top_p is not None and temperature > 0:
        ordered = jnp.take_along_axis(logits, order, -1) / temperature
        p = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf))
        kept &= jnp.cumsum(p, -1) - p < top_p
    return jnp.take_along_axis(jnp.broadcast_to(kept, logits.shape), jnp.argsort(order), -1)
