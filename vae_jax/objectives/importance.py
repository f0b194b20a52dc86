"""Importance-weighted bounds."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from vae_jax.compatibility import Requirements
from vae_jax.objectives.base import Metrics, rate_and_distortion
from vae_jax.vae import Terms


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

    @property
    def requires(self) -> Requirements:
        """A density of q."""
        return Requirements(posterior=frozenset({"density"}))

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """Loss -L_K; the metric `neg_elbo` is -L_1, the mean of the log-weights."""
        del step, model
        loss = -importance_bound(terms.log_w).mean()
        return loss, {"neg_elbo": -terms.log_w.mean()} | rate_and_distortion(terms)
