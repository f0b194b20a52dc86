"""The base classes of densities, and the registry of exact KL divergences."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Key, Num
from typing_extensions import override

from vae_jax import random
from vae_jax.cpu.sums import sum_of_last_axes
from vae_jax.errors import VaeJaxError
from vae_jax.given import Pytree
from vae_jax.interfaces import Shape, Variables


class Distribution(Pytree, abc.ABC):
    """A density or mass; its parameters have the shape `[*batch, *event]`.

    A subclass is a `flax.struct.dataclass` that defines `mean`, `sample` and `log_prob`, and also
    `shape` if it differs from the shape of the mean.

    Attributes:
        exact_mean: whether `mean` is the exact mean; if the mean has no closed form, `mean` is a
            central point instead.
        mean_is_picture: whether the mean of a density over images is the picture to show. If pixels
            depend on each other it is not, and a draw is shown instead.
        event_ndims: the number of axes of one draw.

    Example:
        A logistic distribution with scale one::

            @struct.dataclass
            class Logistic(Elementwise):
                def sample(self, key, sample_shape=()):
                    noise = random.draw(jax.random.logistic, key, sample_shape, self.loc.shape)
                    return self.loc + noise

                def component_log_prob(self, value):
                    return jax.scipy.stats.logistic.logpdf(value - self.loc)
    """

    exact_mean: ClassVar[bool] = True
    mean_is_picture: ClassVar[bool] = True

    event_ndims: int = 1

    @property
    def shape(self) -> Shape:
        """The shape `[*batch, *event]`."""
        return self.mean.shape

    @property
    def batch_shape(self) -> Shape:
        """The shape of `log_prob` of one draw."""
        return self.shape[: len(self.shape) - self.event_ndims]

    @property
    def event_shape(self) -> Shape:
        """The shape of one draw: `[d]` for a latent vector, `[H, W, C]` for an image."""
        return self.shape[len(self.shape) - self.event_ndims :]

    @property
    @abc.abstractmethod
    def mean(self) -> Float[Array, "..."]:
        """The mean, `[*batch, *event]`; see `exact_mean`."""

    @property
    def std(self) -> Float[Array, "..."] | None:
        """The standard deviations, `[*batch, *event]`; None if they have no closed form."""
        return None

    @abc.abstractmethod
    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Draws `[*sample_shape, *batch, *event]`.

        Args:
            key: one typed key, or one for each example of the batch (`random.draw`).
            sample_shape: the leading axes; draws along them are independent.
        """

    @abc.abstractmethod
    def log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """The log-density in nats, `[..., *batch]`.

        Args:
            value: `[..., *batch, *event]`, or an array that broadcasts to it.
        """

    def log_prob_pairs(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """The log-density of each value under each density of the batch, nats, `[..., *batch]`.

        Args:
            value: `[..., *event]`.
        """
        first = value.ndim - len(self.event_shape)
        axes = tuple(range(first, first + len(self.batch_shape)))
        return self.log_prob(jnp.expand_dims(value, axes))

    def sample_and_log_prob(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Draws and their log-densities in nats; cheaper than two calls if these share work.

        Args:
            key: one typed key, or one for each example of the batch (`random.draw`).
            sample_shape: the leading axes; draws along them are independent.

        Returns:
            Draws `[*sample_shape, *batch, *event]`, and log-densities `[*sample_shape, *batch]`.
        """
        value = self.sample(key, sample_shape)
        return value, self.log_prob(value)


class Bounded(Distribution):
    """A density that is trained through a noisy estimate of a lower bound.

    Its `log_prob`, if there is one, is too slow for training.
    """

    @abc.abstractmethod
    def elbo(
        self, value: Float[Array, "..."], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """An unbiased estimate of a lower bound on the log-density, in nats.

        Args:
            value: `[*batch, *event]`.
            keys: typed keys, one for each value.
        """

    def fit_objective(
        self, value: Float[Array, "..."], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """The quantity to maximize when the density is fitted to given values: here, the bound.

        Args:
            value: `[*batch, *event]`.
            keys: typed keys, one for each value.
        """
        return self.elbo(value, keys)


def log_prob_or_bound(
    p: Distribution, value: Float[Array, "K B *event"], keys: Key[Array, "B"]
) -> Float[Array, "K B"]:
    """ln p in nats or, if p is `Bounded`, an estimate of its bound with independent noise.

    Args:
        p: the density.
        value: `[K, B, *event]`.
        keys: typed keys `[B]`.
    """
    if not isinstance(p, Bounded):
        return p.log_prob(value)
    own = random.purpose(keys, "bound of the prior")
    return p.elbo(value, random.indexed(own, jnp.arange(len(value))[:, None]))


def sample_each(
    p: Distribution, keys: Key[Array, "N"], sample_shape: Shape = ()
) -> Float[Array, "..."]:
    """Draw for each key, from a single density or from the densities of B examples.

    Args:
        p: a density with batch `[]` or `[B]`; in the second case key n draws from density n mod B.
        keys: typed keys; N is a multiple of B.
        sample_shape: the leading axes; draws along them are independent.

    Returns:
        `[*sample_shape, N, *event]`.
    """

    def each(key: Array) -> Array:
        return p.sample(key, sample_shape)

    z = jax.vmap(each, out_axes=len(sample_shape))(keys.reshape(-1, *p.batch_shape))
    return z.reshape(*sample_shape, len(keys), *p.event_shape)


@struct.dataclass
class Shared:
    """Variables shared by all densities of a batch, such as a network's; they have no batch axes.

    Attributes:
        value: the variables.
    """

    value: Variables


def sum_event(x: Float[Array, "..."], event_ndims: int) -> Float[Array, "..."]:
    """The sum of x over its last `event_ndims` axes."""
    return sum_of_last_axes(x, event_ndims)


def limited(x: Float[Array, "*shape"], low: float, high: float) -> Float[Array, "*shape"]:
    """x limited softly to an interval: x inside, saturating at most one beyond it, never flat.

    Args:
        x: any real numbers.
        low: the lower end of the interval.
        high: the upper end.
    """
    inside = jnp.clip(x, low, high)
    outside = x - inside
    return inside + outside / (1 + jnp.abs(outside))


def on_unit(value: Num[Array, "..."], log_prob: Float[Array, "..."]) -> Float[Array, "..."]:
    """The log-density `log_prob` for a `value` in [0, 1]; -inf for all others, including nan."""
    return jnp.where((value >= 0) & (value <= 1), log_prob, -jnp.inf)


def one_event_axis(x: Num[Array, "..."], event_ndims: int) -> Num[Array, "..."]:
    """Flatten the last `event_ndims` axes of x: `[*batch, *event]` to `[*batch, size]`.

    A loop over one long axis vectorizes, unlike nested loops over short ones.
    """
    return x.reshape(*x.shape[: x.ndim - event_ndims], -1)


@struct.dataclass
class Elementwise(Distribution):
    """A density with independent components.

    Attributes:
        loc: the location of each component, `[*batch, *event]`; further parameters broadcast
            against it.
        event_ndims: the number of axes of one draw, the last axes of `loc`; with 0 each component
            is a separate event (see `components`).
    """

    loc: Float[Array, "..."]
    event_ndims: int = struct.field(pytree_node=False, default=1, kw_only=True)

    @property
    @override
    def shape(self) -> Shape:
        return self.loc.shape

    @property
    @override
    def mean(self) -> Float[Array, "..."]:
        return self.loc

    @abc.abstractmethod
    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """The log-density of each component of `value` in nats, `[..., *batch, *event]`."""

    @override
    def log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        def flat(parameter: Array) -> Array:
            return one_event_axis(jnp.broadcast_to(parameter, self.loc.shape), self.event_ndims)

        flattened = dataclasses.replace(jax.tree.map(flat, self), event_ndims=1)
        return sum_event(flattened.component_log_prob(one_event_axis(value, self.event_ndims)), 1)

    @property
    def components(self) -> "Elementwise":
        """The same density with a `log_prob` and a KL for each component, `[*batch, *event]`."""
        return dataclasses.replace(self, event_ndims=0)


D = TypeVar("D", bound=Distribution)


def promised(distribution: Distribution, kind: type[D], trait: str) -> D:
    """The distribution, checked to be of the class that its part declares.

    Args:
        distribution: the distribution.
        kind: the declared class.
        trait: the declaration, for messages.

    Raises:
        VaeJaxError: the distribution is of another class.
    """
    if isinstance(distribution, kind):
        return distribution
    name = type(distribution).__name__
    raise VaeJaxError(
        f"The model made a {name}, which is no {kind.__name__}, and the part that makes it "
        f'declares "{trait}": derive {name} from {kind.__name__}, or leave the declaration out.'
    )


KL = TypeVar("KL", bound=Callable[..., Array])
_EXACT_KL: dict[tuple[type, type], Callable[..., Array]] = {}


def register_kl(q_type: type[Distribution], p_type: type[Distribution]) -> Callable[[KL], KL]:
    """Register a closed form of KL(q || p), `[*batch]` in nats, for the types of q and p.

    Args:
        q_type: the class of q.
        p_type: the class of p.

    Returns:
        A decorator of the function of q and p.

    Example:
        >>> @register_kl(Exponential, Exponential)
        ... def _kl_exponential_exponential(q: Exponential, p: Exponential) -> Array:
        ...     return sum_event(p.rate / q.rate - 1 + jnp.log(q.rate / p.rate), q.event_ndims)
    """

    def register(function: KL) -> KL:
        _EXACT_KL[q_type, p_type] = function
        return function

    return register


def exact_kl(q: Distribution, p: Distribution) -> Float[Array, "..."] | None:
    """KL(q || p) in nats, `[*batch]`; None if no closed form is registered.

    Args:
        q: a density.
        p: a density with the same events, whose batch broadcasts against that of q.
    """
    function = _EXACT_KL.get((type(q), type(p)))
    return None if function is None else function(q, p)
