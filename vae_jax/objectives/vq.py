"""The loss of quantized autoencoders."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import entr

from vae_jax.distributions import Quantized
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.parallel import batch_mean
from vae_jax.vae import Terms


def perplexity(q: Quantized) -> Array:
    """exp of the entropy of the codes' frequencies in the whole batch; a mean over levels."""
    one_hot = jax.nn.one_hot(q.indices, q.codebook.num_codes)  # [B, h, w, depth, C]
    return jnp.exp(entr(batch_mean(one_hot.mean((0, 1, 2)))).sum(-1)).mean()


@dataclass(frozen=True)
class VQVAE(Objective):
    """-ln p(x|z) - ln p(z), and the posterior's penalties (van den Oord et al. 2017, equation 3).

    The penalties are sums over the code vectors, as -ln p(x|z) is one over pixels; a codebook
    learned by gradient follows its penalty with weight one. The encoder is moved by distortion and
    penalties, the prior by the rate.

    Attributes:
        commitment: weight of |h - z|², beta in the paper.
        entropy: weight of the entropy penalty, which `LookupFree` has.
    """

    commitment: float = 0.25
    entropy: float = 0.1

    @property
    def requires(self) -> Requirements:
        """A codebook; one layer."""
        return Requirements(posterior=frozenset({"codebook"}), one_layer=True)

    def __call__(
        self, terms: Terms, step: Array, model: Model | None = None
    ) -> tuple[Array, Metrics]:
        """Loss in nats per image; `neg_elbo`, without penalties, bounds -ln p(x)."""
        del step, model
        q: Any = terms.q[0]
        weights = {"codebook": 1.0, "commitment": self.commitment, "entropy": self.entropy}
        penalties = {name: penalty.mean() for name, penalty in q.penalties.items()}
        neg_elbo = -terms.log_w.mean()
        loss = neg_elbo + sum(weights[name] * penalty for name, penalty in penalties.items())
        metrics = {"neg_elbo": neg_elbo, "perplexity": perplexity(q)} | penalties
        return loss, metrics | terms.rate_and_distortion()
