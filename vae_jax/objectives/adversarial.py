"""The adversarial autoencoder: a critic of z instead of the KL."""

from dataclasses import dataclass

import jax
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import sample_each
from vae_jax.given import Weight
from vae_jax.interfaces import SPACES, Metrics, Model, Objective, Requirements
from vae_jax.networks.critics import LatentCritic, critic_of, frozen
from vae_jax.vae import Terms, has_bound


@dataclass(frozen=True)
class AdversarialAutoencoder(Objective):
    """The distortion, with q(z) matched to p(z) by a critic.

    The critic distinguishes z of the prior from z of the encoder; the encoder plays against it with
    the non-saturating loss -ln D(z). q(z|x) may be deterministic, and no density of z is needed.

    Attributes:
        weight: the weight of -ln D(z) relative to the distortion. The paper alternates between the
            two, with an optimizer for each.

    References:
        Makhzani et al. (2016), "Adversarial autoencoders", section 2.

    Example:
        >>> model = VAE(..., critic=LatentCritic(MLP((64, 64))))
        >>> optimizer = by_group(optax.adam(1e-3), critic=optax.adam(1e-3))
    """

    weight: Weight = 1.0

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(
            without=frozenset({"codebook"}),
            spaces=SPACES - {"codes"},
            fixed_prior=True,
            critic=(LatentCritic,),
            one_layer=True,
        )

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss -ln p(x|z) - weight ln D(z), plus the critic's cross-entropy for the critic."""
        del step
        z = model.posteriors[0].seen(terms.z[0][0])
        z_prior = sample_each(terms.p[0], random.purpose(terms.keys, "prior"))
        z_prior = model.posteriors[0].seen(z_prior)

        encoder_loss = -jax.nn.log_sigmoid(frozen(critic_of(model))(z)).mean()
        real, fake = (critic_of(model)(lax.stop_gradient(each)) for each in (z_prior, z))
        critic_loss = -(jax.nn.log_sigmoid(real) + jax.nn.log_sigmoid(-fake)).mean()

        metrics = terms.bound_metrics() if has_bound(model) else terms.rate_and_distortion()
        loss = -terms.log_px.mean() + self.weight * encoder_loss + critic_loss
        return loss, metrics | {"encoder_loss": encoder_loss, "critic_loss": critic_loss}
