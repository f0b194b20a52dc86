"""What the objectives share."""

from typing import Any, Protocol

import jax
from jax import Array, lax

from vae_jax.compatibility import Requirements
from vae_jax.vae import Terms

Metrics = dict[str, Array]


class Objective(Protocol):
    """What the train step calls."""

    @property
    def num_samples(self) -> int:
        """K, the samples of q(z|x) that each example is given."""
        ...

    @property
    def requires(self) -> Requirements:
        """What the model must have; `Requirements()` asks for nothing."""
        ...

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """Loss (scalar, nats per image) and metrics (scalars).

        The metrics have `neg_elbo`, at beta = 1, where the model has a bound, and those of
        `rate_and_distortion`: a run's figures are drawn from them.

        Args:
            terms: of this device's examples.
            step: of training, `[]`.
            model: bound to its parameters, for objectives that decode or encode anew or have a
                critic.
        """
        ...


def held_log_qz(terms: Terms) -> Array:
    """ln q(z|x) of one layer with q's parameters held: gradients pass through z alone, `[K, B]`."""
    q: Any = jax.tree.map(lax.stop_gradient, terms.q)
    return q.log_prob(terms.z)


def rate_and_distortion(terms: Terms) -> Metrics:
    """Distortion, and the rate summed over layers: `kl` exact, `kl_sampled` estimated."""
    metrics = {
        "distortion": -terms.log_px.mean(),
        "kl_sampled": terms.kl_sampled.sum(0).mean(),
    }
    if terms.kl is not None:
        metrics["kl"] = terms.kl.sum(0).mean()
    for layer, kl in enumerate(terms.kl_sampled[1:], start=2):
        metrics[f"kl_sampled_z{layer}"] = kl.mean()
    return metrics


def bound_metrics(terms: Terms) -> Metrics:
    """`neg_elbo`, at beta = 1, and those of `rate_and_distortion`."""
    neg_elbo = (terms.rate.sum(0) - terms.log_px.mean(0)).mean()
    return {"neg_elbo": neg_elbo} | rate_and_distortion(terms)
