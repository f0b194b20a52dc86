"""A game against a critic of patches, weighted by the norms of the decoder's gradients."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.errors import VaeJaxError
from vae_jax.given import Index, Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements, Variables
from vae_jax.networks.critics import PatchCritic, critic_of, frozen
from vae_jax.objectives.perceptual import Perceptual
from vae_jax.parallel import batch_mean
from vae_jax.vae import Terms

# The delta of the paper, and the limit in its authors' code.
DELTA, MAX_ADAPTIVE_WEIGHT = 1e-6, 1e4


def adaptive_weight(
    terms: Terms, model: Model, objective: Objective | None = None
) -> Float[Array, ""]:
    """lambda = |grad_L rec| / (|grad_L gan| + delta) (Esser et al. 2021, equation 7).

    rec is -ln p(x|z), plus the distance of a `Perceptual` objective, and gan is -D(x~), with x~ the
    mean of p(x|z), for the first sample of z. L holds those parameters of the last layer, the
    affine map of the likelihood, on which x~ depends. The gradients are those of the whole batch,
    on every device.

    Args:
        terms: the Terms of this device's examples.
        model: the model, bound to its parameters.
        objective: the objective without a critic.
    """
    z = terms.z[0][0]
    unbound, variables = model.unbind()
    params = variables["params"]

    def losses(layer: Variables) -> tuple[Array, Array]:
        bound = unbound.bind(
            {**variables, "params": {**params, "likelihood": layer}},
            mutable=list(variables.keys() - {"params"}),
        )
        px = bound.likelihood.observe(bound.decode((z,), terms.y), terms.x, remember=False)
        rec = -px.log_prob(terms.x).mean()
        if isinstance(objective, Perceptual):
            rec += objective.distance(terms.x, px.mean)
        return rec, -critic_of(bound)(px.mean).mean()

    def gradient(of: int) -> Variables:
        return batch_mean(jax.grad(lambda layer: losses(layer)[of])(params["likelihood"]))

    squares = [
        ((r**2).sum(), (g**2).sum())
        for r, g in zip(*(jax.tree.leaves(gradient(of)) for of in (0, 1)), strict=True)
    ]
    rec = jnp.sqrt(sum(jnp.where(g > 0, r, 0.0) for r, g in squares))
    gan = jnp.sqrt(sum(g for _, g in squares))
    return jnp.minimum(rec / (gan + DELTA), MAX_ADAPTIVE_WEIGHT)


@dataclass(frozen=True)
class PatchGAN(Objective):
    """An objective whose reconstructions must also fool a critic of patches.

    The autoencoders of latent diffusion (Rombach et al. 2022) are `PatchGAN(ELBO(beta=1e-6))`, and
    VQGAN (Esser et al. 2021) is `PatchGAN(VQVAE())`, both without the papers' perceptual loss,
    whose weights come from another data set; `PatchGAN(Perceptual(VQVAE()))` has one in features
    learned on the same data. The hinge losses are

        encoder, decoder   the loss of the objective + weight lambda E[-D(x~)]
        critic             E[max(0, 1 - D(x))] + E[max(0, 1 + D(x~))]

    where x~ is the mean of p(x|z) for the first sample of z, D(x) are the critic's logits, and
    lambda is `adaptive_weight`: at a weight of 1, reconstruction and game have equal gradient norms
    in the decoder's last layer. No gradient passes through either weight.

    Attributes:
        objective: the objective without a critic.
        weight: the weight of the game.
        first_step: the first step of the game; before it neither player moves.

    Raises:
        VaeJaxError: the objective already has a critic.

    References:
        Esser et al. (2021), "Taming transformers for high-resolution image synthesis", equations 6
            and 7.
        Rombach et al. (2022), "High-resolution image synthesis with latent diffusion models".
        Lim & Ye (2017), "Geometric GAN", for the hinge losses.

    Example:
        >>> objective = PatchGAN(ELBO(beta=1e-6), first_step=5000)
        >>> model = VAE(..., critic=PatchCritic((32, 64, 128)))
        >>> optimizer = by_group(optax.adam(5e-4), critic=optax.adam(5e-4))
    """

    objective: Annotated[Objective, "an objective, such as ELBO()"]
    weight: Weight = 0.5
    first_step: Index = 0

    @override
    def __post_init__(self):
        super().__post_init__()
        if self.objective.requires.critic:
            raise VaeJaxError(
                f"{type(self.objective).__name__} plays against a critic of its own, and a model "
                "has only one: give PatchGAN an objective without a critic, such as ELBO()."
            )

    @property
    def num_samples(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of samples of the objective."""
        return self.objective.num_samples

    @property
    @override
    def requires(self) -> Requirements:
        return dataclasses.replace(
            self.objective.requires,
            critic=(PatchCritic,),
            mean_is_picture=True,
            one_layer=True,
            whole_batch=True,  # lambda depends on the whole batch
        )

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The sum of both players' losses, of which the objective's is in nats per image."""
        loss, metrics = self.objective(terms, step, model)
        fake = terms.reconstruction[0]
        logit_real, logit_fake = (critic_of(model)(x) for x in (terms.x, lax.stop_gradient(fake)))
        critic_loss = (jax.nn.relu(1 - logit_real) + jax.nn.relu(1 + logit_fake)).mean()
        generator_loss = -frozen(critic_of(model))(fake).mean()
        adapted = adaptive_weight(terms, model, self.objective)
        weight = lax.stop_gradient(self.weight * adapted)
        game = weight * generator_loss + critic_loss
        return loss + jnp.where(step < self.first_step, 0.0, game), metrics | {
            "generator_loss": generator_loss,
            "critic_loss": critic_loss,
            "adaptive_weight": weight,
            "logit_real": logit_real.mean(),
            "logit_fake": logit_fake.mean(),
        }
