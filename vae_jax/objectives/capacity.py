"""A target for the rate."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Count, Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.parallel import batch_mean
from vae_jax.vae import Terms


@dataclass(frozen=True)
class Capacity(Objective):
    """Distortion + gamma |KL - C|.

    The paper's equation is for one image. Here, as in Locatello et al. (2019), the KL is the mean
    over the whole batch, so that the KL of single images may differ from C.

    Attributes:
        gamma: the weight of the distance from the target.
        capacity: the target C in nats, a number or a schedule of the step, such as
            `optax.linear_schedule(0.0, 25.0, 100_000)`.
        num_samples: the number of samples K.

    References:
        Burgess et al. (2018), "Understanding disentangling in beta-VAE".
        Locatello et al. (2019), "Challenging common assumptions in the unsupervised learning of
            disentangled representations".
    """

    gamma: Weight
    capacity: Weight | Callable[[Array], ArrayLike]
    num_samples: Count = 1

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(posterior=frozenset({"density"}), whole_batch=True)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image; the metric `neg_elbo` has no target."""
        del model
        capacity = self.capacity(step) if callable(self.capacity) else self.capacity
        capacity = jnp.asarray(capacity, terms.log_px.dtype)
        rate = batch_mean(terms.rate.sum(0).mean())
        loss = -terms.log_px.mean() + self.gamma * jnp.abs(rate - capacity)
        return loss, terms.bound_metrics() | {"capacity": capacity}
