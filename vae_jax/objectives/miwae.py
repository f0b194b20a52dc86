"""Importance-weighted bounds in groups, and their combinations (Rainforth et al. 2018)."""

from dataclasses import dataclass, field, replace

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Count, Proportion
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.objectives.importance import (
    importance_bound,
    importance_loss,
    in_groups,
    normalized_weights,
    requirements,
)
from vae_jax.vae import Terms


@dataclass(frozen=True)
class MIWAE(Objective):
    """The mean of M importance-weighted bounds of K samples each (Rainforth et al. 2018).

    With K = 1 it is the ELBO, with M = 1 the IWAE bound.

    Attributes:
        m: the number of bounds M.
        k: the number of samples K in each.
        doubly_reparameterized: whether the gradient of each bound is doubly reparameterized.
    """

    m: Count
    k: Count
    doubly_reparameterized: bool = False

    @property
    def num_samples(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of samples M K."""
        return self.m * self.k

    @property
    @override
    def requires(self) -> Requirements:
        return requirements(self.doubly_reparameterized)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss -1/M sum_m L_K in nats per image."""
        del step
        factor = in_groups(normalized_weights, self.m) if self.doubly_reparameterized else None
        return importance_loss(terms, in_groups(importance_bound, self.m), factor, model)


@dataclass(frozen=True)
class PIWAE(Objective):
    """The IWAE bound with M K samples for p, the MIWAE bound for q (Rainforth et al. 2018).

    p(x|z) is computed twice, the second time with z held fixed, so that either bound can be
    differentiated with respect to p alone. A prior made from the encoder counts as p.

    Attributes:
        m: the number of bounds M for q.
        k: the number of samples K in each.
        doubly_reparameterized: whether the gradient of q is doubly reparameterized.
    """

    m: Count
    k: Count
    doubly_reparameterized: bool = False

    @property
    def num_samples(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of samples M K."""
        return self.m * self.k

    @property
    @override
    def requires(self) -> Requirements:
        return replace(requirements(self.doubly_reparameterized), one_layer=True)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """A loss with the value -L_MK in nats per image, and with MIWAE's gradient for q."""
        loss, metrics = MIWAE(self.m, self.k, self.doubly_reparameterized)(terms, step, model)
        z, log_qz = lax.stop_gradient((terms.z[0], terms.log_qz[0]))
        px = model.likelihood.observe(model.decode((z,), terms.y), terms.x, remember=False)
        log_w = px.log_prob(terms.x) + terms.p[0].log_prob(z) - log_qz
        miwae = in_groups(importance_bound, self.m)(log_w).mean()
        return loss + miwae - importance_bound(log_w).mean(), metrics


@dataclass(frozen=True)
class CIWAE(Objective):
    """beta ELBO + (1 - beta) L_K (Rainforth et al. 2018).

    Attributes:
        num_samples: the number of samples K.
        beta: the weight of the ELBO, in [0, 1].
        doubly_reparameterized: whether the gradient through z_k has the weight
            beta / K + (1 - beta) w~_k² (Tucker et al. 2019).

    Raises:
        VaeJaxError: beta is not in [0, 1], so this is not a bound.
    """

    num_samples: Count = field()
    beta: Proportion
    doubly_reparameterized: bool = False

    @property
    @override
    def requires(self) -> Requirements:
        return requirements(self.doubly_reparameterized)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss -(beta L_1 + (1 - beta) L_K) in nats per image."""
        del step

        def bound(log_w: Array) -> Array:
            return self.beta * log_w.mean(0) + (1 - self.beta) * importance_bound(log_w)

        def factor(log_w: Array) -> Array:
            w = normalized_weights(log_w)
            elbo = self.beta / len(w)
            weight = elbo + (1 - self.beta) * w
            path = elbo + (1 - self.beta) * w**2
            return path / jnp.where(weight > 0, weight, 1.0)  # at weight 0 nothing passes anyway

        return importance_loss(terms, bound, factor if self.doubly_reparameterized else None, model)
