"""A floor under the rate of each component or layer."""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from vae_jax.distributions import Elementwise, exact_kl
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.parallel import batch_mean
from vae_jax.vae import Terms


def component_rates(terms: Terms) -> list[Array]:
    """The batch's mean KL of each component, layer by layer, nats.

    The exact KL where `terms.kl` is, else the sampled estimate; one array `[*components]` a layer.
    """
    rates = []
    for q, p, z in zip(terms.q, terms.p, terms.z, strict=True):
        assert isinstance(q, Elementwise)
        assert isinstance(p, Elementwise)
        q_j, p_j = q.components, p.components
        kl: Any = q_j.log_prob(z) - p_j.log_prob(z) if terms.kl is None else exact_kl(q_j, p_j)
        examples = kl.ndim - (len(q_j.batch_shape) - len(q.batch_shape))
        rates.append(kl.mean(tuple(range(examples))))
    return rates


@dataclass(frozen=True)
class FreeBits(Objective):
    """Distortion + sum_j max(floor, KL_j) (Kingma et al. 2016, appendix C.8).

    KL_j is the mean over the whole batch, on all devices, of one group's KL: below the floor
    nothing is gained by making it smaller.

    Attributes:
        floor: lambda, nats for each group.
        per: what a group is: a "dimension" of z, or a "layer" of z.
        num_samples: K.
    """

    floor: float
    per: Literal["dimension", "layer"] = "dimension"
    num_samples: int = 1

    @property
    def requires(self) -> Requirements:
        """A density of q; for dimensions, q and p of independent components."""
        if self.per == "layer":
            return Requirements(posterior=frozenset({"density"}), whole_batch=True)
        return Requirements(
            posterior=frozenset({"density", "factors"}), factorized_prior=True, whole_batch=True
        )

    def __call__(
        self, terms: Terms, step: Array, model: Model | None = None
    ) -> tuple[Array, Metrics]:
        """Loss in nats per image; `neg_elbo` has no floor."""
        del step, model
        metrics = terms.bound_metrics()
        groups = component_rates(terms) if self.per == "dimension" else [terms.rate.mean(1)]
        rate = sum(jnp.maximum(self.floor, batch_mean(kl)).sum() for kl in groups)
        return metrics["distortion"] + rate, metrics
