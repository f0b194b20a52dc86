"""The importance-weighted autoencoder."""

from dataclasses import dataclass, field

from jax import Array
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Count
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.objectives.importance import (
    importance_bound,
    importance_loss,
    normalized_weights,
    requirements,
)
from vae_jax.vae import Terms


@dataclass(frozen=True)
class IWAE(Objective):
    """The importance-weighted bound.

    L_K = E[ln 1/K sum_k w_k] with w_k = p(x|z_k) p(z_k) / q(z_k|x). Its gradient gives sample k the
    weight w~_k = w_k / sum_j w_j. No exact KL is used.

    Attributes:
        num_samples: the number of samples K.
        doubly_reparameterized: whether the gradient through z_k has the weight w~_k².

    References:
        Burda et al. (2015), "Importance weighted autoencoders", equations 8 and 14.
        Tucker et al. (2019), "Doubly reparameterized gradient estimators for Monte Carlo
            objectives".
    """

    num_samples: Count = field()
    doubly_reparameterized: bool = False

    @property
    @override
    def requires(self) -> Requirements:
        return requirements(self.doubly_reparameterized)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss -L_K in nats per image."""
        del step
        factor = normalized_weights if self.doubly_reparameterized else None
        return importance_loss(terms, importance_bound, factor, model)
