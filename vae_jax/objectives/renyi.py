"""The variational Rényi bound."""

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


def renyi_bound(log_w: Array, alpha: float) -> Array:
    """1/(1 - alpha) ln 1/K sum_k w_k^(1 - alpha), `[K, B]` to `[B]` (Li & Turner 2016).

    At alpha = 1 its limit, the mean of ln w.
    """
    if alpha == 1:
        return log_w.mean(0)
    return importance_bound((1 - alpha) * log_w) / (1 - alpha)


@dataclass(frozen=True)
class RenyiBound(Objective):
    """The variational Rényi bound (Li & Turner 2016).

    In expectation it falls in alpha, from alpha = 0, the IWAE's bound, to alpha = 1, the ELBO, and
    on. With alpha < 0 it is below ln p(x) only while K is small.

    Attributes:
        num_samples: K.
        alpha: any number.
        doubly_reparameterized: DReG, alpha w~_k + (1 - alpha) w~_k² for the gradient through z_k,
            w~_k being w_k^(1 - alpha), normalised.
    """

    num_samples: int = field()
    alpha: float
    doubly_reparameterized: bool = False

    @property
    def requires(self) -> Requirements:
        """A density of q."""
        return requirements(self.doubly_reparameterized)

    def __call__(
        self, terms: Terms, step: Array, model: Model | None = None
    ) -> tuple[Array, Metrics]:
        """Loss -L_alpha, nats per image."""
        del step, model

        def bound(log_w: Array) -> Array:
            return renyi_bound(log_w, self.alpha)

        def factor(log_w: Array) -> Array:
            return self.alpha + (1 - self.alpha) * normalized_weights((1 - self.alpha) * log_w)

        return importance_loss(terms, bound, factor if self.doubly_reparameterized else None)
