"""GECO: the smallest rate at a given distortion, by a Lagrange multiplier."""

import math
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Count, Positive
from vae_jax.interfaces import Metrics, Model, Objective, Part, Requirements
from vae_jax.networks.critics import critic_of
from vae_jax.vae import Terms


class Multiplier(Part):
    """The Lagrange multiplier lambda > 0 of GECO; its one parameter is ln lambda.

    Attributes:
        initial: the value of lambda before training.

    References:
        Rezende & Viola (2018), "Taming VAEs", algorithm 1.
    """

    initial: Positive = 1.0

    @nn.compact
    def __call__(self) -> Float[Array, ""]:
        """ln lambda."""
        return self.param("log_multiplier", nn.initializers.constant(math.log(self.initial)), ())


@dataclass(frozen=True)
class GECO(Objective):
    """The smallest rate at a distortion no higher than the tolerance.

    The model minimizes KL + lambda C with C = distortion - tolerance, in nats per image, and the
    multiplier lambda plays against it. As in algorithm 1, each step multiplies lambda by
    exp(learning rate * C), so the gradient of ln lambda is -C.

    The multiplier should have a separate optimizer, which also keeps the algorithm's moving average
    of C, a moving average of this gradient. One plain Adam for all parameters moves ln lambda by
    its learning rate in each step, whatever C is, and training warns of that. The learning rate of
    the example is per nat: at C = 100 it multiplies lambda by e^0.1 in each step.

    Attributes:
        tolerance: the tolerated distortion -E_q[ln p(x|z)] in nats per image.
        num_samples: the number of samples K.

    References:
        Rezende & Viola (2018), "Taming VAEs", algorithm 1.

    Example:
        Algorithm 1, except that optax corrects the bias of the average in its first steps:

        >>> model = VAE(..., critic=Multiplier())
        >>> multiplier = optax.chain(optax.ema(0.99), optax.sgd(1e-3))
        >>> optimizer = by_group(optax.adam(1e-3), critic=multiplier)
    """

    tolerance: float
    num_samples: Count = 1

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(posterior=frozenset({"density"}), critic=(Multiplier,))

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The model's loss KL + lambda C plus the multiplier's loss -C ln lambda."""
        del step
        log_multiplier = critic_of(model)()
        multiplier = jnp.exp(lax.stop_gradient(log_multiplier))
        constraint = -terms.log_px.mean() - self.tolerance
        game = multiplier * constraint - log_multiplier * lax.stop_gradient(constraint)
        loss = terms.rate.sum(0).mean() + game
        added = {"multiplier": multiplier, "constraint": constraint}
        return loss, terms.bound_metrics() | added
