"""Densities as pytrees.

A distribution is a frozen dataclass of arrays registered with JAX, so that
`jax.tree.map(stop_gradient, q)`, `jax.vmap` and `jax.jit` see through it. Its parameters have shape
`[*batch, *event]`; densities are in nats and summed over the event, so that `log_prob` of
`[K, *batch, *event]` is `[K, *batch]`.
"""

import abc
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

Shape = tuple[int, ...]


def draw(
    sampler: Callable[[Array, Shape], Array], key: Array, sample_shape: Shape, shape: Shape
) -> Array:
    """Noise of shape `[*sample_shape, *shape]`, from one key or from one key per example.

    Args:
        sampler: `(key, shape) -> noise`, e.g. `jax.random.normal`.
        key: one typed key for everything; or keys `[B]` (or `[K, B]`), the leading axes of `shape`:
            then example b's noise depends on `key[b]` alone, whatever the batch or the number of
            devices around it.
        sample_shape: leading axes of independent draws.
        shape: `[*batch, *event]`.
    """
    if key.ndim == 0:
        return sampler(key, sample_shape + shape)
    rest = shape[key.ndim :]
    per_example = jax.vmap(lambda k: sampler(k, sample_shape + rest), out_axes=len(sample_shape))
    return per_example(key.reshape(-1)).reshape(sample_shape + shape)


class Distribution(abc.ABC):
    """What every density offers; see the module's docstring for shapes."""

    @property
    @abc.abstractmethod
    def batch_shape(self) -> Shape:
        """Shape of `log_prob` of one sample."""

    @property
    @abc.abstractmethod
    def event_shape(self) -> Shape:
        """Shape of one draw: `[d]` for a latent vector, `[H, W, C]` for an image."""

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

    def sample_and_log_prob(self, key: Array, sample_shape: Shape = ()) -> tuple[Array, Array]:
        """A draw and its log-density; cheaper than two calls where the density shares work."""
        value = self.sample(key, sample_shape)
        return value, self.log_prob(value)


def _sum_event(x: Array, event_ndims: int) -> Array:
    return x.sum(tuple(range(x.ndim - event_ndims, x.ndim)))


@struct.dataclass
class Elementwise(Distribution):
    """Independent components: `loc`'s last `event_ndims` axes are the event."""

    loc: Array
    event_ndims: int = struct.field(pytree_node=False, default=1, kw_only=True)

    @property
    def batch_shape(self) -> Shape:
        """As the base class says."""
        return self.loc.shape[: self.loc.ndim - self.event_ndims]

    @property
    def event_shape(self) -> Shape:
        """As the base class says."""
        return self.loc.shape[self.loc.ndim - self.event_ndims :]

    @property
    def mean(self) -> Array:
        """`[*batch, *event]`."""
        return self.loc


@struct.dataclass
class Normal(Elementwise):
    """N(loc, scale²), independent components; `scale` broadcasts against `loc`."""

    scale: Array

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Reparameterized: loc + scale * eps (Kingma & Welling 2013, equation 10)."""
        eps = draw(jax.random.normal, key, sample_shape, self.loc.shape)
        return self.loc + self.scale * eps

    def log_prob(self, value: Array) -> Array:
        """-1/2 sum [((x - loc) / scale)² + ln 2 pi] - sum ln scale."""
        eps = (value - self.loc) / self.scale
        log_density = -0.5 * (eps**2 + math.log(2 * math.pi)) - jnp.log(self.scale)
        return _sum_event(log_density, self.event_ndims)


@struct.dataclass
class Bernoulli(Elementwise):
    """P(x = 1) = sigmoid(loc): `loc` holds logits, values are 0 or 1."""

    @property
    def mean(self) -> Array:
        """Probabilities, never logits."""
        return jax.nn.sigmoid(self.loc)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Zeros and ones, float."""
        uniform = draw(jax.random.uniform, key, sample_shape, self.loc.shape)
        return (uniform < self.mean).astype(self.loc.dtype)

    def log_prob(self, value: Array) -> Array:
        """Sum of x l - ln(1 + e^l): finite, with finite gradients, at any logit."""
        return _sum_event(value * self.loc - jax.nn.softplus(self.loc), self.event_ndims)


@struct.dataclass
class DiscretizedLogistic(Elementwise):
    """A logistic density integrated over 256 bins (Kingma et al. 2016, the IAF paper).

    Values lie on the grid k/255, k = 0..255; a bin reaches half a step to either side, the first
    and the last to infinity, so that the masses sum to one. `loc` and `scale` are in grid units
    of [0, 1]; `scale` broadcasts against `loc`.
    """

    scale: Array

    @property
    def mean(self) -> Array:
        """The underlying logistic's location, clipped to [0, 1]."""
        return jnp.clip(self.loc, 0.0, 1.0)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """A logistic draw rounded to the nearest level."""
        value = self.loc + self.scale * draw(jax.random.logistic, key, sample_shape, self.loc.shape)
        return jnp.round(jnp.clip(value, 0.0, 1.0) * 255) / 255

    def log_prob(self, value: Array) -> Array:
        """ln [sigmoid(upper) - sigmoid(lower)], exact in the tails.

        With w = upper - lower > 0 the bin's mass is
        sigmoid(upper) sigmoid(-lower) (1 - e^-w), whose three logarithms never cancel.
        """
        centred = value - self.loc
        upper = (centred + 0.5 / 255) / self.scale
        lower = (centred - 0.5 / 255) / self.scale
        width = jnp.broadcast_to(1 / (255 * self.scale), upper.shape)
        log_below = jax.nn.log_sigmoid(upper)
        log_above = jax.nn.log_sigmoid(-lower)
        interior = log_below + log_above + jnp.log(-jnp.expm1(-width))
        log_mass = jnp.where(
            value < 0.5 / 255, log_below, jnp.where(value > 254.5 / 255, log_above, interior)
        )
        return _sum_event(log_mass, self.event_ndims)


@struct.dataclass
class Mixture(Distribution):
    """sum_c w_c p_c(x): `components` has batch `[C]`, `log_weights` is `[C]`."""

    log_weights: Array
    components: Distribution

    @property
    def batch_shape(self) -> Shape:
        """As the base class says."""
        return ()

    @property
    def event_shape(self) -> Shape:
        """As the base class says."""
        return self.components.event_shape

    @property
    def mean(self) -> Array:
        """`[*batch, *event]`."""
        return jnp.tensordot(jnp.exp(self.log_weights), self.components.mean, axes=1)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Draws a component, then from it; not reparameterized in the weights."""
        key_component, key_value = jax.random.split(key)
        chosen = jax.random.categorical(key_component, self.log_weights, shape=sample_shape)
        component = jax.tree.map(lambda leaf: leaf[chosen], self.components)
        return component.sample(key_value)

    def log_prob(self, value: Array) -> Array:
        """Log-sum-exp over the components."""
        axis = value.ndim - len(self.event_shape)
        log_p = self.components.log_prob(jnp.expand_dims(value, axis))
        return jax.nn.logsumexp(self.log_weights + log_p, axis=-1)


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


@register_kl(Normal, Normal)
def _kl_normal_normal(q: Normal, p: Normal) -> Array:
    # Kingma & Welling 2013, appendix B, for a general diagonal p.
    ratio = q.scale / p.scale
    kl = 0.5 * (ratio**2 + ((q.loc - p.loc) / p.scale) ** 2 - 1) - jnp.log(ratio)
    return _sum_event(kl, q.event_ndims)


@register_kl(Bernoulli, Bernoulli)
def _kl_bernoulli_bernoulli(q: Bernoulli, p: Bernoulli) -> Array:
    kl = q.mean * (q.loc - p.loc) - jax.nn.softplus(q.loc) + jax.nn.softplus(p.loc)
    return _sum_event(kl, q.event_ndims)
