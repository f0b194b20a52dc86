"""The objective of a second stage."""

from dataclasses import dataclass

from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Bounded
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.vae import Terms


@dataclass(frozen=True)
class FitPrior(Objective):
    """-E_q(z|x)[ln p(z)] of the prior, with q held fixed: the cross-entropy of q(z) and p(z).

    For a prior that is `Bounded`, its `fit_objective` stands for ln p(z): a bound, or the negative
    error of a velocity.

    Attributes:
        fitted_to: the SHA-256 of the variables of the first stage, which identifies q.
    """

    fitted_to: str = ""

    holds_state = True

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements()

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean over the batch, per image; the metric `prior_loss` is the same."""
        del step, model
        p, z = terms.p[-1], lax.stop_gradient(terms.z[-1][0])
        if isinstance(p, Bounded):
            fit = p.fit_objective(z, random.purpose(terms.keys, "fit of the prior"))
        else:
            fit = p.log_prob(z)
        loss = -fit.mean()
        return loss, {"prior_loss": loss}
