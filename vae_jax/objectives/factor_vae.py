"""FactorVAE: the total correlation of q(z), estimated by a critic."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array, lax

from vae_jax import random
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.networks.critics import critic_of, frozen
from vae_jax.parallel import batch_offset, gather_batch
from vae_jax.vae import Terms


def permute_dims(z: Array, noise: Array) -> Array:
    """Each latent shuffled over the batch: from q(z) to prod_j q(z_j) (Kim & Mnih 2018, alg. 1).

    Args:
        z: `[N, *event]`.
        noise: uniform, `[N, *event]`; the order of a column is that latent's permutation.
    """
    return jnp.take_along_axis(z, noise.argsort(0), 0)


@dataclass(frozen=True)
class FactorVAE(Objective):
    """The ELBO - gamma TC(z), TC(z) = KL(q(z) || prod_j q(z_j)) (Kim & Mnih 2018, algorithm 2).

    TC is the mean of the critic's logit, whose optimum is ln q(z) / prod_j q(z_j). The paper draws
    two minibatches at each step, one to be scored and one to be permuted. Here the two are the
    halves of one batch, whichever devices they are on; the bound and TC are of both halves. So its
    recipe with minibatches of 64 has a batch of 128.

    Attributes:
        gamma: the weight of TC.
    """

    gamma: float

    @property
    def requires(self) -> Requirements:
        """A density that z is differentiable in, a prior that factorizes, a critic of z."""
        return Requirements(
            posterior=frozenset({"density", "path"}),
            spaces=frozenset({"real"}),
            factorized_prior=True,
            critic=("LatentCritic",),
            one_layer=True,
            whole_batch=True,
        )

    def __call__(self, terms: Terms, step: Array, model: Model) -> tuple[Array, Metrics]:
        """Loss -ELBO + gamma TC for the model, plus the critic's cross-entropy for the critic."""
        del step
        metrics = terms.bound_metrics()
        total_correlation = frozen(critic_of(model))(terms.z[0][0]).mean()

        z = lax.stop_gradient(terms.z[0][0])
        keys = random.purpose(terms.keys, "shuffle")
        noise = random.draw(jax.random.uniform, keys, (), z.shape)
        first, second = jnp.array_split(gather_batch(z), 2)
        permuted = permute_dims(second, gather_batch(noise)[len(first) :])
        place = batch_offset(len(z)) + jnp.arange(len(z))
        logits = critic_of(model)(jnp.concatenate([first, permuted])[place])
        right = jnp.where(place < len(first), logits, -logits)
        critic_loss = -jax.nn.log_sigmoid(right).mean()

        loss = metrics["neg_elbo"] + self.gamma * total_correlation + critic_loss
        added = {"total_correlation": total_correlation, "critic_loss": critic_loss}
        return loss, metrics | added
