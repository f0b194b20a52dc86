"""The least rate at a given distortion, by a Lagrange multiplier."""

import math
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.networks.critics import critic_of
from vae_jax.vae import Terms


class Multiplier(nn.Module):
    """The Lagrange multiplier lambda > 0 of GECO, one parameter: ln lambda.

    Attributes:
        start: lambda before training.
    """

    start: float = 1.0

    @nn.compact
    def __call__(self) -> Array:
        """ln lambda, `[]`."""
        return self.param("log_multiplier", nn.initializers.constant(math.log(self.start)), ())


@dataclass(frozen=True)
class GECO(Objective):
    """The least rate at a distortion no higher than the tolerance (Rezende & Viola 2018).

    The model, `VAE(..., critic=Multiplier())`, minimizes KL + lambda C with C = distortion -
    tolerance, in nats per image; lambda plays against it. As in algorithm 1 the multiplier grows by
    exp(rate * C), so the gradient of ln lambda is -C. The algorithm's moving average of C is one of
    that gradient, and belongs to the multiplier's optimizer: nothing but lambda depends on it, and
    the optimizer's state is already the same on every device and in every checkpoint. The
    algorithm, but for the average's first steps, which optax corrects for their bias, is thus

        by_group(optax.adam(1e-3), critic=optax.chain(optax.ema(0.99), optax.sgd(1e-3)))

    Attributes:
        tolerance: of the distortion -E_q[ln p(x|z)], nats per image.
        num_samples: K.
    """

    tolerance: float
    num_samples: int = 1

    @property
    def requires(self) -> Requirements:
        """A density of q, and the multiplier."""
        return Requirements(posterior=frozenset({"density"}), critic=("Multiplier",))

    def __call__(self, terms: Terms, step: Array, model: Model) -> tuple[Array, Metrics]:
        """KL + lambda C for the model, -C ln lambda for the multiplier."""
        del step
        metrics = terms.bound_metrics()
        log_multiplier = critic_of(model)()
        multiplier = jnp.exp(lax.stop_gradient(log_multiplier))
        constraint = metrics["distortion"] - self.tolerance
        game = multiplier * constraint - log_multiplier * lax.stop_gradient(constraint)
        loss = terms.rate.sum(0).mean() + game
        return loss, metrics | {"multiplier": multiplier, "constraint": constraint}
