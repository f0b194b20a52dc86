"""DIP-VAE: a factorized q(z) by its covariance, over the whole batch."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.distributions import one_event_axis
from vae_jax.errors import VaeJaxError
from vae_jax.given import Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.parallel import gather_batch
from vae_jax.vae import Terms


@dataclass(frozen=True)
class DIPVAE(Objective):
    """The ELBO with a penalty that draws a covariance C of the latents to the identity.

    The loss is -ELBO + lambda_off sum_{i != j} C_ij² + lambda_diagonal sum_i (C_ii - 1)².

    Attributes:
        lambda_off: the weight of the entries off the diagonal.
        lambda_diagonal: the weight of the diagonal; in Locatello et al. (2019), 10 lambda_off for
            DIP-VAE-I and lambda_off for DIP-VAE-II.
        covariance_of: the choice of C: "mean", C = Cov_x[mu(x)], is DIP-VAE-I; "z",
            C = Cov_x[mu(x)] + E_x[diag sigma(x)²], is DIP-VAE-II.

    References:
        Kumar et al. (2018), "Variational inference of disentangled latent concepts from unlabeled
            observations".
        Locatello et al. (2019), "Challenging common assumptions in the unsupervised learning of
            disentangled representations", for the weights.
    """

    lambda_off: Weight
    lambda_diagonal: Weight
    covariance_of: Literal["mean", "z"] = "z"

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(
            posterior=frozenset({"density", "factors"}),
            spaces=frozenset({"real"}),
            one_layer=True,
            whole_batch=True,
            least_batch=2,
        )

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image; the metric `covariance_penalty` is its second term.

        Raises:
            VaeJaxError: the covariance is of z, and a user's own q(z|x) has no `std`.
        """
        del step, model
        q = terms.q[0]
        ndims = len(q.event_shape)
        mean = gather_batch(one_event_axis(q.mean, ndims))
        centred = mean - mean.mean(0)
        covariance = jnp.matmul(centred.T, centred, precision=lax.Precision.HIGHEST) / len(mean)
        if self.covariance_of == "z":
            if (std := q.std) is None:
                raise VaeJaxError(
                    "DIPVAE needs the standard deviations of q(z|x), and the distribution "
                    f'{type(q).__name__} has no `std`: give it one, or take covariance_of="mean".'
                )
            covariance += jnp.diag(gather_batch(one_event_axis(std**2, ndims)).mean(0))
        diagonal = jnp.diag(covariance)
        off_diagonal = covariance - jnp.diag(diagonal)
        penalty = (
            self.lambda_off * (off_diagonal**2).sum()
            + self.lambda_diagonal * ((diagonal - 1) ** 2).sum()
        )
        metrics = terms.bound_metrics() | {"covariance_penalty": penalty}
        return terms.neg_elbo.mean() + penalty, metrics
