"""From Terms to one scalar and named metrics.

An objective is a frozen dataclass called with Terms and the step. It returns the loss in nats per
image, to be minimised, and metrics, all means over its batch: equal batches on several devices
average to the whole batch's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vae_jax.vae import Terms

Metrics = dict[str, Array]


class Objective(Protocol):
    """What the train step calls."""

    @property
    def num_samples(self) -> int:
        """K, the samples of q(z|x) that each example is given."""
        ...

    def __call__(self, terms: Terms, step: Array) -> tuple[Array, Metrics]:
        """Loss (scalar, nats per image) and metrics (scalars).

        The metrics have `neg_elbo`, at beta = 1, and those of `rate_and_distortion`: a run's
        figures are drawn from them.
        """
        ...


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


@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound, E_q[ln p(x|z)] - beta KL(q(z|x) || p(z)).

    Kingma & Welling (2013), equation 3; beta as in Higgins et al. (2017). The KL is the exact one
    where it exists, else the sampled estimate.

    Attributes:
        num_samples: K samples, over which the bound is averaged.
        beta: the KL's weight, a number or a schedule of the step; a warm-up is
            `optax.linear_schedule(0.0, 1.0, steps)`.
    """

    num_samples: int = 1
    beta: float | Callable[[Array], ArrayLike] = 1.0

    def __call__(self, terms: Terms, step: Array) -> tuple[Array, Metrics]:
        """Loss -ELBO_beta; the metric `neg_elbo` has beta = 1 whatever beta is."""
        distortion = -terms.log_px.mean(0)
        rate = (terms.kl_sampled if terms.kl is None else terms.kl).sum(0)
        beta = self.beta(step) if callable(self.beta) else self.beta
        beta = jnp.asarray(beta, distortion.dtype)
        metrics = {"neg_elbo": (distortion + rate).mean(), "beta": beta}
        return (distortion + beta * rate).mean(), metrics | rate_and_distortion(terms)


def importance_bound(log_w: Array) -> Array:
    """ln 1/K sum_k w_k, `[K, B]` to `[B]` (Burda et al. 2015, equation 8)."""
    return jax.nn.logsumexp(log_w, axis=0) - math.log(log_w.shape[0])


@dataclass(frozen=True)
class IWAE:
    """The importance-weighted bound (Burda et al. 2015, equation 8).

    Its gradient weighs sample k by w_k / sum w, normalised and held fixed (equation 14), which
    differentiating the log-sum-exp does. No analytic KL enters.

    Attributes:
        num_samples: K.
    """

    num_samples: int

    def __call__(self, terms: Terms, step: Array) -> tuple[Array, Metrics]:
        """Loss -L_K; the metric `neg_elbo` is -L_1, the mean of the log-weights."""
        del step
        loss = -importance_bound(terms.log_w).mean()
        return loss, {"neg_elbo": -terms.log_w.mean()} | rate_and_distortion(terms)
