"""A target for the rate."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.parallel import batch_mean
from vae_jax.vae import Terms


@dataclass(frozen=True)
class Capacity(Objective):
    """Distortion + gamma |KL - C| (Burgess et al. 2018).

    The equation stands for one image; as in Locatello et al. (2019), the KL is the mean over the
    whole batch, so that images may differ in what they need.

    Attributes:
        gamma: the weight.
        capacity: C in nats, a number or a schedule of the step:
            `optax.linear_schedule(0.0, 25.0, 100_000)`.
        num_samples: K.
    """

    gamma: float
    capacity: float | Callable[[Array], ArrayLike]
    num_samples: int = 1

    @property
    def requires(self) -> Requirements:
        """A density of q."""
        return Requirements(posterior=frozenset({"density"}), whole_batch=True)

    def __call__(
        self, terms: Terms, step: Array, model: Model | None = None
    ) -> tuple[Array, Metrics]:
        """Loss in nats per image; `neg_elbo` is that of gamma = 1, C = 0."""
        del model
        metrics = terms.bound_metrics()
        capacity = self.capacity(step) if callable(self.capacity) else self.capacity
        capacity = jnp.asarray(capacity, metrics["distortion"].dtype)
        rate = batch_mean(terms.rate.sum(0).mean())
        loss = metrics["distortion"] + self.gamma * jnp.abs(rate - capacity)
        return loss, metrics | {"capacity": capacity}
