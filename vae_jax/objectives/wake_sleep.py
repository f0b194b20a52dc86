"""The wake-sleep algorithm."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax import random
from vae_jax.given import Count
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.vae import Terms


@dataclass(frozen=True)
class WakeSleep(Objective):
    """The generative model learns from data, the inference model from dreams.

    The wake phase, -E_q(z|x)[ln p(x, z)] with z held fixed, trains decoder, likelihood and prior.
    The sleep phase, -E_p(x, z)[ln q(z|x)] with one dream for each image, trains encoder and
    posterior. No single quantity decreases in both. If the prior depends on the encoder, as the
    VampPrior does, the encoder also learns in the wake phase.

    Attributes:
        num_samples: the number of samples K in the wake phase.

    References:
        Hinton et al. (1995), "The wake-sleep algorithm for unsupervised neural networks".
    """

    num_samples: Count = 1

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(posterior=frozenset({"density"}), one_layer=True)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The sum of the two losses in nats per image, which are also metrics."""
        del step
        wake = -(terms.log_px + terms.log_pz[0])
        hold_z = terms.weigh(-jnp.ones_like(wake))  # cancels the gradient through z

        keys = random.purpose(terms.keys, "dream")
        (z,), px = model.sample(keys, terms.y)
        x = px.sample(random.purpose(keys, "pixels"))
        x, z = lax.stop_gradient((x, z))
        sleep = -model.encode(x, terms.y).log_prob(z)
        loss = wake.mean() + hold_z + sleep.mean()
        return loss, terms.bound_metrics() | {"wake": wake.mean(), "sleep": sleep.mean()}
