"""The loss of quantized autoencoders."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import entr
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.distributions import Quantized, promised
from vae_jax.given import Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.parallel import batch_mean
from vae_jax.vae import Terms


def perplexity(q: Quantized) -> Float[Array, ""]:
    """exp H, H the entropy of q's code frequencies in the whole batch; averaged over levels."""
    one_hot = jax.nn.one_hot(q.indices, q.codebook.num_codes)  # [B, h, w, depth, C]
    return jnp.exp(entr(batch_mean(one_hot.mean((0, 1, 2)))).sum(-1)).mean()


@dataclass(frozen=True)
class VQVAE(Objective):
    """-ln p(x|z) - ln p(z) plus the posterior's penalties.

    The penalties are sums over the code vectors, as -ln p(x|z) is a sum over pixels. The penalty of
    a codebook that is learned by gradient has the weight one, and so do penalties of other names.
    Distortion and penalties train the encoder, the rate -ln p(z) trains the prior.

    Attributes:
        commitment: the weight of |h - sg[z]|², beta in the paper.
        entropy: the weight of the entropy penalty of `LookupFree`.

    References:
        van den Oord et al. (2017), "Neural discrete representation learning", equation 3.

    Example:
        >>> posterior = VectorQuantized(num_codes=512, dim=64)
        >>> model = VAE(..., posterior=posterior, prior=UniformCodes((7, 7)))
    """

    commitment: Weight = 0.25
    entropy: Weight = 0.1

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(posterior=frozenset({"codebook"}), one_layer=True)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image; `neg_elbo`, without penalties, bounds -ln p(x)."""
        del step, model
        q = promised(terms.q[0], Quantized, "codebook")
        weights = {"codebook": 1.0, "commitment": self.commitment, "entropy": self.entropy}
        penalties = {name: penalty.mean() for name, penalty in q.penalties.items()}
        neg_elbo = -terms.log_w.mean()
        loss = neg_elbo + sum(weights.get(name, 1.0) * each for name, each in penalties.items())
        metrics = {"neg_elbo": neg_elbo, "perplexity": perplexity(q)} | penalties
        return loss, metrics | terms.rate_and_distortion()
