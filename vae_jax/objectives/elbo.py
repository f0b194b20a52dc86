"""The evidence lower bound."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Count, Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.vae import Terms


@dataclass(frozen=True)
class ELBO(Objective):
    """The evidence lower bound, E_q[ln p(x|z)] - beta KL(q(z|x) || p(z)).

    The KL is exact if a closed form is registered; otherwise it is the sampled estimate.

    Attributes:
        num_samples: the number of samples K over which the bound is averaged.
        beta: the weight of the KL, a number or a schedule of the step; a warm-up is
            `optax.linear_schedule(0.0, 1.0, steps)`.
        sticking_the_landing: whether the KL is the sampled estimate with the parameters of q held
            fixed in ln q. Each sample's gradient with respect to q then vanishes at the exact
            posterior.

    References:
        Kingma & Welling (2013), "Auto-encoding variational Bayes", equation 3.
        Higgins et al. (2017), "beta-VAE: learning basic visual concepts with a constrained
            variational framework", equation 4, for beta.
        Roeder et al. (2017), "Sticking the landing: simple, lower-variance gradient estimators for
            variational inference".
        Bauer & Mnih (2021), "Generalized doubly reparameterized gradient estimators", section 4,
            for several layers.
    """

    num_samples: Count = 1
    beta: Weight | Callable[[Array], ArrayLike] = 1.0
    sticking_the_landing: bool = False

    @property
    @override
    def requires(self) -> Requirements:
        if self.sticking_the_landing:
            return Requirements(posterior=frozenset({"density", "path"}))
        return Requirements(posterior=frozenset({"density"}))

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss -ELBO in nats per image; the metric `neg_elbo` is at beta = 1."""
        if self.sticking_the_landing:
            terms = model.held(terms)
            rate = terms.kl_sampled.sum(0)
        else:
            rate = terms.rate.sum(0)
        distortion = -terms.log_px.mean(0)
        beta = self.beta(step) if callable(self.beta) else self.beta
        beta = jnp.asarray(beta, distortion.dtype)
        metrics = {"neg_elbo": (distortion + rate).mean(), "beta": beta}
        return (distortion + beta * rate).mean(), metrics | terms.rate_and_distortion()
