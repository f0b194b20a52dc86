"""The beta-TCVAE: the KL in three parts, estimated from a minibatch.

The estimates are over the whole batch: every device has the parameters of q(z|x) of all images.
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.distributions import Distribution, Elementwise, promised
from vae_jax.given import Count, Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.parallel import batch_offset, gather_batch
from vae_jax.vae import Terms

Sampling = Literal["stratified", "weighted"]


def log_weights(
    own: Int[Array, "b"], batch_size: int, dataset_size: int, sampling: Sampling
) -> Float[Array, "b B"]:
    """ln w_im with q(z_i) estimated by sum_m w_im q(z_i|x_m) (Chen et al. 2018, appendix C).

    `"stratified"`: 1/N for the image that z_i came from; the others share the rest, (N-1)/N,
    equally. The estimate of q(z_i) is unbiased over minibatches that contain the image, and exact
    if the batch is the data set. In the paper one of the others has a different weight; this is the
    mean over the choice of that image. `"weighted"`: 1/(NB) for all; the logarithm of the estimate
    is a lower bound in expectation.

    Args:
        own: the positions in the batch of the images of z.
        batch_size: the size B of the whole batch.
        dataset_size: the number N of training images.
        sampling: the scheme.
    """
    if sampling == "weighted":
        return jnp.full((len(own), batch_size), -math.log(dataset_size) - math.log(batch_size))
    others = (dataset_size - 1) / (dataset_size * max(batch_size - 1, 1))
    is_own = own[:, None] == jnp.arange(batch_size)
    return jnp.log(jnp.where(is_own, 1 / dataset_size, others))


def _over_batch(q: Distribution) -> Distribution:
    """q(z|x) of all images of the batch, gathered from all devices."""
    return cast(Distribution, jax.tree.map(gather_batch, q))


def log_aggregated(
    terms: Terms, dataset_size: int, sampling: Sampling
) -> tuple[Float[Array, "K b"], Float[Array, "K b"]]:
    """Estimates of ln q(z) and of sum_j ln q(z_j) in nats, for this device's z.

    Args:
        terms: the Terms of this device's b examples.
        dataset_size: the number N of training images.
        sampling: the scheme of `log_weights`.

    Returns:
        ln q(z) and sum_j ln q(z_j), `[K, b]` each.
    """
    q, z = promised(_over_batch(terms.q[0]), Elementwise, "factors"), terms.z[0]
    own = batch_offset(z.shape[1]) + jnp.arange(z.shape[1])
    log_q = q.component_log_prob(z[:, :, None])
    log_q = log_q.reshape(*log_q.shape[:3], -1)  # of z_j from image i under image m: [K, i, m, j]
    log_w = log_weights(own, log_q.shape[2], dataset_size, sampling)
    joint = jax.nn.logsumexp(log_w + log_q.sum(-1), axis=2)
    marginals = jax.nn.logsumexp(log_w[..., None] + log_q, axis=2)
    return joint, marginals.sum(-1)


@dataclass(frozen=True)
class BetaTC(Objective):
    """The ELBO with a weight for each part of its KL.

    The loss is the distortion + alpha MI + beta TC + gamma DKL, with the index-code mutual
    information MI = E[ln q(z|x) - ln q(z)], the total correlation
    TC = E[ln q(z) - sum_j ln q(z_j)], and the dimension-wise KL
    DKL = E[sum_j ln q(z_j) - ln p(z_j)]. The three add up to the sampled KL.

    Attributes:
        beta: the weight of the total correlation.
        dataset_size: the number N of training images.
        alpha: the weight of the mutual information.
        gamma: the weight of the dimension-wise KL.
        sampling: the estimate of q(z) from a minibatch; see `log_weights`.
        num_samples: the number of samples K.

    References:
        Chen et al. (2018), "Isolating sources of disentanglement in variational autoencoders",
            equations 2 and 4.

    Example:
        >>> objective = BetaTC(beta=6.0, dataset_size=len(data.train))
    """

    beta: Weight
    dataset_size: Count
    alpha: Weight = 1.0
    gamma: Weight = 1.0
    sampling: Sampling = "stratified"
    num_samples: Count = 1

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(
            posterior=frozenset({"density", "factors", "amortized"}),
            factorized_prior=True,
            one_layer=True,
            whole_batch=True,
            least_batch=2,
        )

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image; the three parts are metrics, unweighted."""
        del step, model
        log_qz, log_prod_qz = log_aggregated(terms, self.dataset_size, self.sampling)
        mutual_information = terms.log_qz[0] - log_qz
        total_correlation = log_qz - log_prod_qz
        dimension_wise_kl = log_prod_qz - terms.log_pz[0]
        loss = (
            -terms.log_px.mean()
            + self.alpha * mutual_information.mean()
            + self.beta * total_correlation.mean()
            + self.gamma * dimension_wise_kl.mean()
        )
        return loss, terms.bound_metrics() | {
            "mutual_information": mutual_information.mean(),
            "total_correlation": total_correlation.mean(),
            "dimension_wise_kl": dimension_wise_kl.mean(),
        }
