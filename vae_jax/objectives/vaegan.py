"""Images compared in the features of a critic: the VAE/GAN."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import sample_each
from vae_jax.given import Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.networks.critics import ImageCritic, critic_of, frozen
from vae_jax.vae import Terms


@dataclass(frozen=True)
class VAEGAN(Objective):
    """The VAE/GAN: images are compared in the features of the critic that they must fool.

    With L_prior the KL, L_llike = -ln N(Dis_l(x); Dis_l(x~), I) up to its constant, and
    L_GAN = -ln D(x) - ln(1 - D(x~)) - ln(1 - D(x_p)), where x~ and x_p are the means of p(x|z) at z
    from q(z|x) and from the prior, each group has a separate loss:

        encoder, posterior, prior   L_prior + L_llike
        decoder, likelihood         gamma L_llike - L_GAN
        critic                      L_GAN

    The loss here is the sum of the three, each with the other groups held fixed. p(x|z) is judged
    by the critic alone: `neg_elbo` and `distortion` are only metrics, and a learned scale of p(x|z)
    is not trained.

    Attributes:
        gamma: the weight of the reconstruction, relative to the game, in the decoder's loss.

    References:
        Larsen et al. (2016), "Autoencoding beyond pixels using a learned similarity metric",
            algorithm 1.

    Example:
        >>> critic = ImageCritic(ConvEncoder((16, 32), dense=None), MLP((128,)))
        >>> model = VAE(..., critic=critic)
        >>> optimizer = by_group(optax.adam(5e-4), critic=optax.adam(5e-4))
    """

    gamma: Weight

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(
            posterior=frozenset({"density"}),
            critic=(ImageCritic,),
            mean_is_picture=True,
            one_layer=True,
        )

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The sum of the three losses, which are also metrics."""
        del step
        metrics = terms.bound_metrics()
        fixed, z = frozen(model), terms.z[0][0]
        z_prior = sample_each(terms.p[0], random.purpose(terms.keys, "prior"))
        reconstructed, generated = (
            model.decode((lax.stop_gradient(each),), terms.y).mean for each in (z, z_prior)
        )
        _, target = critic_of(fixed)(terms.x)

        def llike(reconstruction: Array) -> Array:
            _, features = critic_of(fixed)(reconstruction)
            return 0.5 * ((target - features) ** 2).sum(-1).mean()

        def gan(
            critic: Callable[[Array], tuple[Array, Array]], reconstructed: Array, generated: Array
        ) -> Array:
            (real, _), (fake, _), (dream, _) = map(critic, (terms.x, reconstructed, generated))
            log_sigmoid = jax.nn.log_sigmoid
            return -(log_sigmoid(real) + log_sigmoid(-fake) + log_sigmoid(-dream)).mean()

        encoder_loss = terms.rate.sum(0).mean() + llike(fixed.decode((z,), terms.y).mean)
        decoder_loss = self.gamma * llike(reconstructed) - gan(
            critic_of(fixed), reconstructed, generated
        )
        critic_loss = gan(critic_of(model), *lax.stop_gradient((reconstructed, generated)))
        losses = {
            "encoder_loss": encoder_loss,
            "decoder_loss": decoder_loss,
            "critic_loss": critic_loss,
        }
        return encoder_loss + decoder_loss + critic_loss, metrics | losses
