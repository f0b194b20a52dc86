"""The importance-weighted autoencoder."""

from dataclasses import dataclass, field

from jax import Array

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
    """The importance-weighted bound (Burda et al. 2015, equation 8).

    Its gradient weighs sample k by w_k / sum w, normalised and held fixed (equation 14), which
    differentiating the log-sum-exp does. No analytic KL enters.

    Attributes:
        num_samples: K.
        doubly_reparameterized: DReG, w~_k² for the gradient through z_k (Tucker et al. 2019).
    """

    num_samples: int = field()
    doubly_reparameterized: bool = False

    @property
    def requires(self) -> Requirements:
        """A density of q."""
        return requirements(self.doubly_reparameterized)

    def __call__(
        self, terms: Terms, step: Array, model: Model | None = None
    ) -> tuple[Array, Metrics]:
        """Loss -L_K, nats per image."""
        del step, model
        factor = normalized_weights if self.doubly_reparameterized else None
        return importance_loss(terms, importance_bound, factor)
