"""A convex combination of the ELBO and the importance-weighted bound."""

from dataclasses import dataclass, field

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Count, Proportion
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.objectives.importance import (
    importance_bound,
    importance_loss,
    normalized_weights,
    requirements,
)
from vae_jax.vae import Terms


@dataclass(frozen=True)
class CIWAE(Objective):
    """beta ELBO + (1 - beta) L_K, a convex combination of two bounds.

    Attributes:
        num_samples: the number of samples K.
        beta: the weight of the ELBO, in [0, 1].
        doubly_reparameterized: whether the gradient through z_k has the weight
            beta / K + (1 - beta) w~_k².

    Raises:
        VaeJaxError: beta is not in [0, 1], so this is not a bound.

    References:
        Rainforth et al. (2018), "Tighter variational bounds are not necessarily better".
        Tucker et al. (2019), "Doubly reparameterized gradient estimators for Monte Carlo
            objectives".
    """

    num_samples: Count = field()
    beta: Proportion
    doubly_reparameterized: bool = False

    @property
    @override
    def requires(self) -> Requirements:
        return requirements(self.doubly_reparameterized)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss -(beta L_1 + (1 - beta) L_K) in nats per image."""
        del step

        def bound(log_w: Array) -> Array:
            return self.beta * log_w.mean(0) + (1 - self.beta) * importance_bound(log_w)

        def factor(log_w: Array) -> Array:
            w = normalized_weights(log_w)
            elbo = self.beta / len(w)
            weight = elbo + (1 - self.beta) * w
            path = elbo + (1 - self.beta) * w**2
            return path / jnp.where(weight > 0, weight, 1.0)  # at weight 0 no gradient passes

        return importance_loss(terms, bound, factor if self.doubly_reparameterized else None, model)
