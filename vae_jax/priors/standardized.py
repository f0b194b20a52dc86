"""A prior over latents that are shifted and scaled first."""

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax.distributions import Bounded, Distribution, Shape
from vae_jax.interfaces import Model, Prior


@struct.dataclass
class Rescaled(Distribution):
    """The density of loc + scale u with u from `base`.

    Attributes:
        base: the density of u, batch `[]`.
        loc: the shift of each component.
        scale: the factor of each component, above zero.
    """

    base: Distribution
    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    event_ndims: int = struct.field(pytree_node=False, default=1, kw_only=True)

    exact_mean = False

    @property
    @override
    def batch_shape(self) -> Shape:
        return self.base.batch_shape

    @property
    @override
    def event_shape(self) -> Shape:
        return self.base.event_shape

    @property
    def mean(self) -> Float[Array, "*event"]:
        """loc + scale * (the base's mean), the exact mean if the base's is."""
        return self.loc + self.scale * self.base.mean

    def sample(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> Float[Array, "*draws_and_event"]:
        """Reparameterized if the base is."""
        return self.loc + self.scale * self.base.sample(key, sample_shape)

    def log_prob(self, value: Float[Array, "*draws_and_event"]) -> Float[Array, "*draws"]:
        """The base's log-density of (value - loc) / scale, minus the sum of ln scale."""
        log_density = self.base.log_prob((value - self.loc) / self.scale)
        return log_density - jnp.log(self.scale).sum()


@struct.dataclass
class BoundedRescaled(Rescaled, Bounded):
    """`Rescaled` for a base that is `Bounded`."""

    def elbo(
        self, value: Float[Array, "*batch_and_event"], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """The base's bound at (value - loc) / scale, minus the sum of ln scale."""
        assert isinstance(self.base, Bounded)
        return self.base.elbo((value - self.loc) / self.scale, keys) - jnp.log(self.scale).sum()

    @override
    def fit_objective(
        self, value: Float[Array, "*batch_and_event"], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        assert isinstance(self.base, Bounded)
        return self.base.fit_objective((value - self.loc) / self.scale, keys)


class Standardized(Prior):
    """A prior over (z - m) / s, with the mean m and the standard deviation s of given latents.

    m and s are parameters through which no gradient passes; `fitted_priors.fit` sets them.

    Attributes:
        prior: the prior over standardized latents.
    """

    prior: Prior

    @property
    @override
    def exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the wrapped prior is exact."""
        return self.prior.exact

    @property
    @override
    def bound_alone(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the wrapped prior has only a bound."""
        return self.prior.bound_alone

    @property
    @override
    def label_classes(self) -> int | None:
        return self.prior.label_classes

    @nn.compact
    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Rescaled:
        base = self.prior(model, y)
        loc = self.param("loc", nn.initializers.zeros, base.event_shape)
        scale = self.param("scale", nn.initializers.ones, base.event_shape)
        made = BoundedRescaled if isinstance(base, Bounded) else Rescaled
        return made(base, *lax.stop_gradient((loc, scale)), event_ndims=loc.ndim)
