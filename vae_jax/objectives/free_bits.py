"""A floor under the rate of each component or layer."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.distributions import Elementwise, exact_kl, promised
from vae_jax.given import Count, Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.parallel import batch_mean
from vae_jax.vae import Terms


def component_rates(terms: Terms) -> list[Float[Array, "..."]]:
    """The mean KL of each component over the batch in nats, one array `[*event]` for each layer.

    It is exact if `terms.kl` is known; otherwise it is the sampled estimate.
    """
    rates = []
    for q, p, z in zip(terms.q, terms.p, terms.z, strict=True):
        q_j, p_j = (promised(each, Elementwise, "factors").components for each in (q, p))
        exact = None if terms.kl is None else exact_kl(q_j, p_j)
        kl = q_j.log_prob(z) - p_j.log_prob(z) if exact is None else exact
        examples = kl.ndim - (len(q_j.batch_shape) - len(q.batch_shape))
        rates.append(kl.mean(tuple(range(examples))))
    return rates


@dataclass(frozen=True)
class FreeBits(Objective):
    """Distortion + sum_j max(floor, KL_j).

    KL_j is the mean KL of one group over the whole batch, on all devices. A KL below the floor
    gains nothing.

    Attributes:
        floor: the floor lambda in nats for each group.
        per: the grouping: by "dimension" of z; by "map", that is all positions of one channel of
            latents `(h, w, c)` or `(n, d)`; or by "layer".
        num_samples: the number of samples K.

    References:
        Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow",
            appendix C.8.
    """

    floor: Weight
    per: Literal["dimension", "map", "layer"] = "dimension"
    num_samples: Count = 1

    @property
    @override
    def requires(self) -> Requirements:
        if self.per == "layer":
            return Requirements(posterior=frozenset({"density"}), whole_batch=True)
        return Requirements(
            posterior=frozenset({"density", "factors"}), factorized_prior=True, whole_batch=True
        )

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image; the metric `neg_elbo` has no floor."""
        del step, model
        if self.per == "layer":
            groups = [terms.rate.mean(1)]
        else:
            groups = component_rates(terms)
            if self.per == "map":
                groups = [kl.sum(tuple(range(kl.ndim - 1))) for kl in groups]
        rate = sum(jnp.maximum(self.floor, batch_mean(kl)).sum() for kl in groups)
        return -terms.log_px.mean() + rate, terms.bound_metrics()
