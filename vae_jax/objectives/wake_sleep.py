"""The wake-sleep algorithm."""

from dataclasses import dataclass
from typing import Any

from jax import Array, lax

from vae_jax import random
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.vae import Terms


@dataclass(frozen=True)
class WakeSleep(Objective):
    """Generation learns from data, inference from dreams (Hinton et al. 1995).

    Wake: -E_q(z|x)[ln p(x, z)] moves decoder, likelihood and prior, z held fixed. Sleep:
    -E_p(x, z)[ln q(z|x)] moves encoder and posterior, on one dream for each image. No one quantity
    falls in both. A prior that is made of the encoder has it learn from the wake phase too.

    Attributes:
        num_samples: K, of the wake phase.
    """

    num_samples: int = 1

    @property
    def requires(self) -> Requirements:
        """A density of q."""
        return Requirements(posterior=frozenset({"density"}), one_layer=True)

    def __call__(self, terms: Terms, step: Array, model: Model) -> tuple[Array, Metrics]:
        """Loss: the sum of the two, which are metrics too, nats per image."""
        del step
        metrics = terms.bound_metrics()
        wake = -(terms.log_px + terms.log_pz[0]).mean()
        path: Any = terms.path
        hold_z = -path.sum()  # zero; but no gradient passes through z

        keys = random.purpose(terms.keys, "dream")
        (z,), px = model.sample(keys, terms.y)
        x = px.sample(random.purpose(keys, "pixels"))
        x, z = lax.stop_gradient((x, z))
        sleep = -model.encode(x, terms.y).log_prob(z).mean()
        return wake + hold_z + sleep, metrics | {"wake": wake, "sleep": sleep}
