"""The aggregated posterior q(z) = 1/N sum_n q(z|x_n), made to factorize.

All estimates are of the whole batch: every device sees the parameters of q(z|x) of all images.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.distributions import one_event_axis
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.parallel import batch_offset, gather_batch
from vae_jax.vae import Terms

Sampling = Literal["stratified", "weighted"]


def log_weights(own: Array, batch_size: int, dataset_size: int, sampling: Sampling) -> Array:
    """ln w_im with q(z_i) estimated by sum_m w_im q(z_i|x_m) (Chen et al. 2018, appendix C).

    `"stratified"`: 1/N for the image that z_i came from, and the rest, (N-1)/N, in equal parts for
    the others: unbiased over minibatches that hold the image, and exact when the batch is the data
    set. The paper gives one of the others another weight than the rest; this is the mean over which
    one. `"weighted"`: 1/(NB) for all, whose ln is a lower bound in expectation.

    Args:
        own: `[b]`, the places in the batch of the images that z came from.
        batch_size: B, of the whole batch.
        dataset_size: N.
        sampling: the scheme.

    Returns:
        `[b, B]`.
    """
    if sampling == "weighted":
        return jnp.full((len(own), batch_size), -jnp.log(dataset_size * batch_size))
    others = (dataset_size - 1) / (dataset_size * max(batch_size - 1, 1))
    is_own = own[:, None] == jnp.arange(batch_size)
    return jnp.log(jnp.where(is_own, 1 / dataset_size, others))


def log_aggregated(terms: Terms, dataset_size: int, sampling: Sampling) -> tuple[Array, Array]:
    """Estimates of ln q(z) and of sum_j ln q(z_j), `[K, b]` each, for this device's z."""
    q: Any = jax.tree.map(gather_batch, terms.q[0])
    z = terms.z[0]
    own = batch_offset(z.shape[1]) + jnp.arange(z.shape[1])
    log_q = q.component_log_prob(z[:, :, None])
    log_q = log_q.reshape(*log_q.shape[:3], -1)  # of z_j from image i under image m: [K, i, m, j]
    log_w = log_weights(own, log_q.shape[2], dataset_size, sampling)
    joint = jax.nn.logsumexp(log_w + log_q.sum(-1), axis=2)
    marginals = jax.nn.logsumexp(log_w[..., None] + log_q, axis=2)
    return joint, marginals.sum(-1)


@dataclass(frozen=True)
class BetaTC(Objective):
    """The ELBO with the parts of its KL weighed apart (Chen et al. 2018, equations 2 and 4).

    Distortion + alpha MI + beta TC + gamma DKL: the index-code mutual information
    E[ln q(z|x) - ln q(z)], the total correlation E[ln q(z) - sum_j ln q(z_j)], and the
    dimension-wise KL E[sum_j ln q(z_j) - ln p(z_j)]. At weights of one their sum is the sampled KL.

    Attributes:
        beta: the weight of the total correlation.
        dataset_size: N, the training images.
        alpha, gamma: the other weights.
        sampling: of q(z) from a minibatch; see `log_weights`.
        num_samples: K.
    """

    beta: float
    dataset_size: int
    alpha: float = 1.0
    gamma: float = 1.0
    sampling: Sampling = "stratified"
    num_samples: int = 1

    @property
    def requires(self) -> Requirements:
        """A q of independent components that all depend on x, and a prior of such components."""
        return Requirements(
            posterior=frozenset({"density", "factors", "amortized"}),
            factorized_prior=True,
            one_layer=True,
            whole_batch=True,
        )

    def __call__(
        self, terms: Terms, step: Array, model: Model | None = None
    ) -> tuple[Array, Metrics]:
        """Loss in nats per image; the three parts are metrics, unweighted."""
        del step, model
        metrics = terms.bound_metrics()
        log_qz, log_prod_qz = log_aggregated(terms, self.dataset_size, self.sampling)
        mutual_information = (terms.log_qz[0] - log_qz).mean()
        total_correlation = (log_qz - log_prod_qz).mean()
        dimension_wise_kl = (log_prod_qz - terms.log_pz[0]).mean()
        loss = (
            metrics["distortion"]
            + self.alpha * mutual_information
            + self.beta * total_correlation
            + self.gamma * dimension_wise_kl
        )
        return loss, metrics | {
            "mutual_information": mutual_information,
            "total_correlation": total_correlation,
            "dimension_wise_kl": dimension_wise_kl,
        }


@dataclass(frozen=True)
class DIPVAE(Objective):
    """The negative ELBO, and a penalty on a covariance C that is not the identity.

    lambda_off sum_{i != j} C_ij² + lambda_diagonal sum_i (C_ii - 1)² (Kumar et al. 2018).

    Attributes:
        lambda_off: off the diagonal.
        lambda_diagonal: on it; 10 lambda_off in the DIP-VAE-I, lambda_off in the DIP-VAE-II of
            Locatello et al. (2019).
        covariance_of: "mean", C = Cov_x[mu(x)], is DIP-VAE-I; "z", C = Cov_x[mu(x)] +
            E_x[diag sigma(x)²], is DIP-VAE-II.
    """

    lambda_off: float
    lambda_diagonal: float
    covariance_of: Literal["mean", "z"] = "z"

    @property
    def requires(self) -> Requirements:
        """A normal q of independent components."""
        return Requirements(
            posterior=frozenset({"density", "factors"}),
            spaces=frozenset({"real"}),
            one_layer=True,
            whole_batch=True,
        )

    def __call__(
        self, terms: Terms, step: Array, model: Model | None = None
    ) -> tuple[Array, Metrics]:
        """Loss in nats per image; the metric `covariance_penalty` is what it adds to `neg_elbo`."""
        del step, model
        metrics = terms.bound_metrics()
        q: Any = terms.q[0]
        ndims = len(q.event_shape)
        mean = gather_batch(one_event_axis(q.mean, ndims))
        centred = mean - mean.mean(0)
        covariance = centred.T @ centred / len(mean)
        if self.covariance_of == "z":
            variance = jnp.broadcast_to(q.scale**2, q.loc.shape)
            covariance += jnp.diag(gather_batch(one_event_axis(variance, ndims)).mean(0))
        diagonal = jnp.diag(covariance)
        off_diagonal = covariance - jnp.diag(diagonal)
        penalty = (
            self.lambda_off * (off_diagonal**2).sum()
            + self.lambda_diagonal * ((diagonal - 1) ** 2).sum()
        )
        return metrics["neg_elbo"] + penalty, metrics | {"covariance_penalty": penalty}
