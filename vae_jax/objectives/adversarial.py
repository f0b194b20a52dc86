"""The adversarial autoencoder: a critic of z in place of the KL."""

from dataclasses import dataclass
from typing import Any

import jax
from jax import Array, lax

from vae_jax.compatibility import SPACES, Requirements, has_bound
from vae_jax.networks.critics import frozen
from vae_jax.objectives.base import Metrics, bound_metrics, rate_and_distortion
from vae_jax.vae import Terms, fold_in_each


@dataclass(frozen=True)
class AdversarialAutoencoder:
    """Reconstruction, with q(z) drawn to p(z) by a critic (Makhzani et al. 2016, section 2).

    The critic tells z of the prior from z of the encoder; the encoder plays against it with the
    non-saturating loss -ln D(z). q(z|x) may be deterministic, and neither density is asked for.

    Attributes:
        weight: of -ln D(z) beside the distortion. The paper alternates between the two, each with
            an optimizer of its own.
    """

    weight: float = 1.0

    @property
    def num_samples(self) -> int:
        """One."""
        return 1

    @property
    def requires(self) -> Requirements:
        """Latents that move with the encoder, and a critic of them."""
        return Requirements(
            without=frozenset({"codebook"}),
            spaces=SPACES - {"codes"},
            fixed_prior=True,
            critic=("LatentCritic",),
            one_layer=True,
        )

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """Loss -ln p(x|z) - weight ln D(z), plus the critic's cross-entropy for the critic."""
        del step
        z = terms.z[0]
        p: Any = terms.p
        z_prior = jax.vmap(p.sample)(fold_in_each(terms.keys, 1))

        encoder_loss = -jax.nn.log_sigmoid(frozen(model.critic)(z)).mean()
        real, fake = (model.critic(lax.stop_gradient(each)) for each in (z_prior, z))
        critic_loss = -(jax.nn.log_sigmoid(real) + jax.nn.log_sigmoid(-fake)).mean()

        metrics = bound_metrics(terms) if has_bound(model) else rate_and_distortion(terms)
        loss = metrics["distortion"] + self.weight * encoder_loss + critic_loss
        return loss, metrics | {"encoder_loss": encoder_loss, "critic_loss": critic_loss}
