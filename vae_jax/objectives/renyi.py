"""The variational Rényi bound."""

from dataclasses import dataclass, field

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Count
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.objectives.importance import (
    importance_loss,
    normalized_weights,
    requirements,
)
from vae_jax.vae import Terms


def renyi_bound(log_w: Float[Array, "K B"], alpha: float) -> Float[Array, "B"]:
    """1/(1 - alpha) ln 1/K sum_k w_k^(1 - alpha) in nats, from ln w (Li & Turner 2016).

    At alpha = 1 it is the limit, the mean of ln w. Near alpha = 1, where the argument of the
    logarithm is close to one, it is computed as that mean plus ln(1 + mean of (e^y - 1)) /
    (1 - alpha), with the deviations y = (1 - alpha) (ln w - mean).
    """
    mean = log_w.mean(0)
    if alpha == 1:
        return mean
    centre = _finite(mean)
    deviations = (1 - alpha) * (log_w - centre)
    near = jnp.abs(deviations).max(0) < 0.5
    excess = jnp.log1p(jnp.expm1(jnp.where(near, deviations, 0)).mean(0))
    top, exponents = _from_the_greatest(log_w, alpha)
    powers = jnp.log(jnp.exp(exponents).mean(0))
    return jnp.where(near, centre + excess / (1 - alpha), top + powers / (1 - alpha))


def _from_the_greatest(
    log_w: Float[Array, "K B"], alpha: float
) -> tuple[Float[Array, "B"], Float[Array, "K B"]]:
    """The ln w with the largest w^(1 - alpha), and (1 - alpha) times the differences from it.

    Differences are taken before the product: near 1e9, float32 rounds a product by up to 32.
    """
    top = _finite(lax.stop_gradient(log_w.max(0) if alpha < 1 else log_w.min(0)))
    return top, (1 - alpha) * (log_w - top)


def _finite(log_w: Float[Array, "B"]) -> Float[Array, "B"]:
    """ln w, with zeros in place of values that are not finite, as when all weights are zero."""
    return jnp.where(jnp.isfinite(log_w), log_w, 0.0)


@dataclass(frozen=True)
class RenyiBound(Objective):
    """The variational Rényi bound.

    L_alpha = 1/(1 - alpha) ln 1/K sum_k w_k^(1 - alpha). Its expectation decreases in alpha: at
    alpha = 0 it is the IWAE bound, at alpha = 1 the ELBO. With alpha < 0 it is a lower bound on
    ln p(x) only for small K.

    Attributes:
        num_samples: the number of samples K.
        alpha: the order, any number.
        doubly_reparameterized: whether the gradient through z_k has the weight
            alpha w~_k + (1 - alpha) w~_k², with w~_k the normalized w_k^(1 - alpha).

    References:
        Li & Turner (2016), "Rényi divergence variational inference".
        Tucker et al. (2019), "Doubly reparameterized gradient estimators for Monte Carlo
            objectives", for w~_k².
    """

    num_samples: Count = field()
    alpha: float
    doubly_reparameterized: bool = False

    @property
    @override
    def requires(self) -> Requirements:
        return requirements(self.doubly_reparameterized)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss -L_alpha in nats per image."""
        del step

        def bound(log_w: Array) -> Array:
            return renyi_bound(log_w, self.alpha)

        def factor(log_w: Array) -> Array:
            _, exponents = _from_the_greatest(log_w, self.alpha)
            return self.alpha + (1 - self.alpha) * normalized_weights(exponents)

        return importance_loss(terms, bound, factor if self.doubly_reparameterized else None, model)
