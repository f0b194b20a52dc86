"""FactorVAE: the total correlation of q(z), estimated by a critic."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax import random
from vae_jax.given import Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.networks.critics import LatentCritic, critic_of, frozen
from vae_jax.parallel import batch_offset, gather_batch
from vae_jax.vae import Terms


def permute_dims(
    z: Float[Array, "N *event"], noise: Float[Array, "N *event"]
) -> Float[Array, "N *event"]:
    """Shuffle each latent over the batch: q(z) to prod_j q(z_j) (Kim & Mnih 2018, algorithm 1).

    Args:
        z: latents of N examples.
        noise: uniform noise; the order of its values is the permutation of each latent.
    """
    return jnp.take_along_axis(z, noise.argsort(0), 0)


@dataclass(frozen=True)
class FactorVAE(Objective):
    """The ELBO - gamma TC(z), TC(z) = KL(q(z) || prod_j q(z_j)).

    TC is estimated by the mean of the critic's logit, whose optimum is ln[q(z) / prod_j q(z_j)].
    The paper draws two minibatches at each step, one to score and one to permute. Here these are
    the halves of one batch, whichever devices hold them, while the bound and TC use both halves:
    the paper's minibatches of 64 become a batch of 128.

    Attributes:
        gamma: the weight of TC.

    References:
        Kim & Mnih (2018), "Disentangling by factorising", algorithm 2.

    Example:
        >>> model = VAE(..., critic=LatentCritic(MLP((64, 64))))
        >>> optimizer = by_group(optax.adam(1e-3), critic=optax.adam(1e-4))
    """

    gamma: Weight

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(
            posterior=frozenset({"density", "path"}),
            spaces=frozenset({"real"}),
            factorized_prior=True,
            critic=(LatentCritic,),
            one_layer=True,
            whole_batch=True,
            least_batch=4,  # two halves, of which one is permuted
        )

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss -ELBO + gamma TC of the model, plus the cross-entropy of the critic."""
        del step
        total_correlation = frozen(critic_of(model))(terms.z[0][0]).mean()

        z = lax.stop_gradient(terms.z[0][0])
        keys = random.purpose(terms.keys, "shuffle")
        noise = random.draw(jax.random.uniform, keys, (), z.shape)
        first, second = jnp.array_split(gather_batch(z), 2)
        permuted = permute_dims(second, gather_batch(noise)[len(first) :])
        position = batch_offset(len(z)) + jnp.arange(len(z))
        logits = critic_of(model)(jnp.concatenate([first, permuted])[position])
        right = jnp.where(position < len(first), logits, -logits)
        critic_loss = -jax.nn.log_sigmoid(right).mean()

        loss = terms.neg_elbo.mean() + self.gamma * total_correlation + critic_loss
        added = {"total_correlation": total_correlation, "critic_loss": critic_loss}
        return loss, terms.bound_metrics() | added
