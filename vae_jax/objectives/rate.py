"""Ways to steer the rate: a floor, a target, a schedule of its weight, a price on distortion."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from vae_jax.compatibility import Requirements
from vae_jax.distributions import exact_kl
from vae_jax.objectives.base import Metrics, bound_metrics
from vae_jax.parallel import batch_mean
from vae_jax.vae import Terms


def cyclical_schedule(
    num_steps: int, num_cycles: int = 4, ratio: float = 0.5
) -> Callable[[Array], Array]:
    """A weight of the KL that rises from 0 to 1, stays, and starts anew (Fu et al. 2019).

    For `ELBO(beta=...)`, as `optax.linear_schedule(0.0, 1.0, steps)` is for one warm-up.

    Args:
        num_steps: T, of the whole training.
        num_cycles: M.
        ratio: R, the part of a cycle in which the weight rises, linearly.
    """
    period = num_steps / num_cycles

    def schedule(step: Array) -> Array:
        tau = jnp.mod(step, math.ceil(period)) / period
        return jnp.minimum(tau / ratio, 1.0)

    return schedule


def component_rates(terms: Terms) -> list[Array]:
    """The batch's mean KL of each component, layer by layer, nats.

    The exact KL where `terms.kl` is, else the sampled estimate; one array `[*components]` a layer.
    """
    layers: Any = (terms.q, terms.p, terms.z)
    if not isinstance(terms.q, tuple):
        layers = [(each,) for each in layers]

    rates = []
    for q, p, z in zip(*layers, strict=True):
        q_j, p_j = q.components, p.components
        kl: Any = q_j.log_prob(z) - p_j.log_prob(z) if terms.kl is None else exact_kl(q_j, p_j)
        examples = kl.ndim - (len(q_j.batch_shape) - len(q.batch_shape))
        rates.append(kl.mean(tuple(range(examples))))
    return rates


@dataclass(frozen=True)
class FreeBits:
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

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """Loss in nats per image; `neg_elbo` has no floor."""
        del step, model
        metrics = bound_metrics(terms)
        groups = component_rates(terms) if self.per == "dimension" else [terms.rate.mean(1)]
        rate = sum(jnp.maximum(self.floor, batch_mean(kl)).sum() for kl in groups)
        return metrics["distortion"] + rate, metrics


@dataclass(frozen=True)
class Capacity:
    """Distortion + gamma |KL - C| (Burgess et al. 2018).

    The equation stands for one image; as in Locatello et al. (2019), the KL is the mean over the
    whole batch, so that images may differ in what they need.

    Attributes:
        gamma: the weight.
        capacity: C in nats, a number or a schedule of the step:
            `optax.linear_schedule(0.0, 25.0, 100_000)`.
        num_samples: K.
    """

    gamma: float
    capacity: float | Callable[[Array], ArrayLike]
    num_samples: int = 1

    @property
    def requires(self) -> Requirements:
        """A density of q."""
        return Requirements(posterior=frozenset({"density"}), whole_batch=True)

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """Loss in nats per image; `neg_elbo` is that of gamma = 1, C = 0."""
        del model
        metrics = bound_metrics(terms)
        capacity = self.capacity(step) if callable(self.capacity) else self.capacity
        capacity = jnp.asarray(capacity, metrics["distortion"].dtype)
        rate = batch_mean(terms.rate.sum(0).mean())
        loss = metrics["distortion"] + self.gamma * jnp.abs(rate - capacity)
        return loss, metrics | {"capacity": capacity}


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
class GECO:
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

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """KL + lambda C for the model, -C ln lambda for the multiplier."""
        del step
        metrics = bound_metrics(terms)
        log_multiplier = model.critic()
        multiplier = jnp.exp(lax.stop_gradient(log_multiplier))
        constraint = metrics["distortion"] - self.tolerance
        game = multiplier * constraint - log_multiplier * lax.stop_gradient(constraint)
        loss = terms.rate.sum(0).mean() + game
        return loss, metrics | {"multiplier": multiplier, "constraint": constraint}
