"""The evidence lower bound, and ways to weigh its rate."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.vae import Terms


@dataclass(frozen=True)
class ELBO(Objective):
    """The evidence lower bound, E_q[ln p(x|z)] - beta KL(q(z|x) || p(z)).

    Kingma & Welling (2013), equation 3; beta as in Higgins et al. (2017). The KL is the exact one
    where it exists, else the sampled estimate.

    Attributes:
        num_samples: K samples, over which the bound is averaged.
        beta: the KL's weight, a number or a schedule of the step; a warm-up is
            `optax.linear_schedule(0.0, 1.0, steps)`.
        sticking_the_landing: the rate is the sampled estimate with q's parameters held in ln q, so
            that at the exact posterior each sample's gradient of q vanishes (Roeder et al. 2017).
    """

    num_samples: int = 1
    beta: float | Callable[[Array], ArrayLike] = 1.0
    sticking_the_landing: bool = False

    @property
    def requires(self) -> Requirements:
        """A density of q; to stick the landing, one that is differentiable in z."""
        if self.sticking_the_landing:
            return Requirements(posterior=frozenset({"density", "path"}), one_layer=True)
        return Requirements(posterior=frozenset({"density"}))

    def __call__(
        self, terms: Terms, step: Array, model: Model | None = None
    ) -> tuple[Array, Metrics]:
        """Loss -ELBO_beta; the metric `neg_elbo` has beta = 1 whatever beta is."""
        del model
        distortion = -terms.log_px.mean(0)
        if self.sticking_the_landing:
            rate = (terms.held_log_qz() - terms.log_pz[0]).mean(0)
        else:
            rate = terms.rate.sum(0)
        beta = self.beta(step) if callable(self.beta) else self.beta
        beta = jnp.asarray(beta, distortion.dtype)
        metrics = {"neg_elbo": (distortion + rate).mean(), "beta": beta}
        return (distortion + beta * rate).mean(), metrics | terms.rate_and_distortion()
