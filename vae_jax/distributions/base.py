"""What a density is, and the registry of exact KL divergences."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from typing_extensions import override

from vae_jax.interfaces import Pytree, Shape


class Distribution(Pytree, abc.ABC):
    """What every density offers; see the package's docstring for shapes."""

    exact_mean: ClassVar[bool] = True
    """Whether `mean` is the mean; where it has no closed form, `mean` is a central point."""
    mean_is_picture: ClassVar[bool] = True
    """Whether `mean` is what to show of it; where components depend on each other, a draw is."""

    event_ndims: int = 1
    """The number of axes of one draw."""

    @property
    def shape(self) -> Shape:
        """The shape `[*batch, *event]` of the parameters."""
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
    def mean(self) -> Array:
        """Mean, `[*batch, *event]`."""

    @abc.abstractmethod
    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Draws `[*sample_shape, *batch, *event]`; `key` is one key or one per example (`draw`)."""

    @abc.abstractmethod
    def log_prob(self, value: Array) -> Array:
        """Log-density in nats, `[..., *batch]` for `value` of shape `[..., *batch, *event]`."""

    def log_prob_pairs(self, value: Array) -> Array:
        """Each value under each density of the batch, `[..., *event]` to `[..., *batch]`, nats."""
        place = value.ndim - len(self.event_shape)
        axes = tuple(range(place, place + len(self.batch_shape)))
        return self.log_prob(jnp.expand_dims(value, axes))

    def sample_and_log_prob(self, key: Array, sample_shape: Shape = ()) -> tuple[Array, Array]:
        """A draw and its log-density; cheaper than two calls where the density shares work."""
        value = self.sample(key, sample_shape)
        return value, self.log_prob(value)


def sample_each(p: Distribution, keys: Array, sample_shape: Shape = ()) -> Array:
    """Draws of one density for all, or of B for B examples each, with a key for each draw.

    Args:
        p: batch `[]`, or `[B]` where example n has the density n mod B.
        keys: `[N]`, N a multiple of B.
        sample_shape: of each.

    Returns:
        `[*sample_shape, N, *event]`.
    """

    def each(key: Array) -> Array:
        return p.sample(key, sample_shape)

    z = jax.vmap(each, out_axes=len(sample_shape))(keys.reshape(-1, *p.batch_shape))
    return z.reshape(*sample_shape, len(keys), *p.event_shape)


@struct.dataclass
class Shared:
    """What all of a batch of densities share, such as a network's variables: no batch axes."""

    value: Any


def sum_event(x: Array, event_ndims: int) -> Array:
    """Sums the last `event_ndims` axes."""
    return x.sum(tuple(range(x.ndim - event_ndims, x.ndim)))


def one_event_axis(x: Array, event_ndims: int) -> Array:
    """`[*batch, *event]` to `[*batch, size of the event]`.

    For the CPU, whose loops over one long axis are faster than nested ones over short axes.
    """
    return x.reshape(*x.shape[: x.ndim - event_ndims], -1)


@struct.dataclass
class Elementwise(Distribution):
    """Independent components: `loc`'s last `event_ndims` axes are the event.

    Other parameters broadcast against `loc`. With `event_ndims=0` each component is an event of its
    own: `components` does that.
    """

    loc: Array
    event_ndims: int = struct.field(pytree_node=False, default=1, kw_only=True)

    @property
    @override
    def shape(self) -> Shape:
        return self.loc.shape

    @property
    def mean(self) -> Array:
        """`[*batch, *event]`."""
        return self.loc

    @abc.abstractmethod
    def component_log_prob(self, value: Array) -> Array:
        """Each component's log-density in nats, `[..., *batch, *event]`; not summed."""

    def log_prob(self, value: Array) -> Array:
        """The sum over components."""

        def flat(parameter: Array) -> Array:
            return one_event_axis(jnp.broadcast_to(parameter, self.loc.shape), self.event_ndims)

        flattened = dataclasses.replace(jax.tree.map(flat, self), event_ndims=1)
        return flattened.component_log_prob(one_event_axis(value, self.event_ndims)).sum(-1)

    @property
    def components(self) -> "Elementwise":
        """The same density with `log_prob` and KL component by component, `[*batch, *event]`."""
        return self.replace(event_ndims=0)  # pyright: ignore[reportAttributeAccessIssue]


_EXACT_KL: dict[tuple[type, type], Callable] = {}


def register_kl(q_type: type, p_type: type) -> Callable[[Callable], Callable]:
    """Declares a closed form of KL(q || p) for a pair of distribution types."""

    def register(function: Callable) -> Callable:
        _EXACT_KL[q_type, p_type] = function
        return function

    return register


def exact_kl(q: Distribution, p: Distribution) -> Array | None:
    """KL(q || p) in nats, `[*batch]`, or None where no closed form is registered."""
    function = _EXACT_KL.get((type(q), type(p)))
    return None if function is None else function(q, p)
