"""The mean of several importance-weighted bounds."""

from dataclasses import dataclass

from jax import Array
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Count
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.objectives.importance import (
    importance_bound,
    importance_loss,
    in_groups,
    normalized_weights,
    requirements,
)
from vae_jax.vae import Terms


@dataclass(frozen=True)
class MIWAE(Objective):
    """The mean of M importance-weighted bounds of K samples each.

    With K = 1 it is the ELBO, with M = 1 the IWAE bound.

    Attributes:
        m: the number of bounds M.
        k: the number of samples K in each.
        doubly_reparameterized: whether the gradient of each bound is doubly reparameterized.

    References:
        Rainforth et al. (2018), "Tighter variational bounds are not necessarily better".
        Tucker et al. (2019), "Doubly reparameterized gradient estimators for Monte Carlo
            objectives".
    """

    m: Count
    k: Count
    doubly_reparameterized: bool = False

    @property
    def num_samples(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of samples M K."""
        return self.m * self.k

    @property
    @override
    def requires(self) -> Requirements:
        return requirements(self.doubly_reparameterized)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss -1/M sum_m L_K in nats per image."""
        del step
        factor = in_groups(normalized_weights, self.m) if self.doubly_reparameterized else None
        return importance_loss(terms, in_groups(importance_bound, self.m), factor, model)
