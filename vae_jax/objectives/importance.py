"""Importance-weighted bounds, and doubly reparameterized gradients of them.

Plain gradients differentiate a bound as it stands. The gradient of the inference parameters then
holds score terms v_k d ln q(z_k|x), v_k being the bound's derivative with respect to ln w_k. Their
expectation is that of (dv_k / d ln w_k) d ln w_k along z_k alone (Tucker et al. 2019), so that q's
parameters can be held in ln q if the gradient through z_k gets another weight,

    v_k - dv_k / d ln w_k

instead of v_k: w~_k² where v_k is the normalised weight w~_k. The estimator has the same
expectation and for K = 1 is that of Roeder et al. (2017). The generative parameters keep v_k.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from vae_jax.compatibility import Requirements
from vae_jax.errors import VaeJaxError
from vae_jax.likelihoods.base import observed
from vae_jax.objectives.base import Metrics, held_log_qz, rate_and_distortion
from vae_jax.vae import Terms

OfWeights = Callable[[Array], Array]


def importance_bound(log_w: Array) -> Array:
    """ln 1/K sum_k w_k, `[K, B]` to `[B]` (Burda et al. 2015, equation 8)."""
    return jax.nn.logsumexp(log_w, axis=0) - math.log(log_w.shape[0])


def renyi_bound(log_w: Array, alpha: float) -> Array:
    """1/(1 - alpha) ln 1/K sum_k w_k^(1 - alpha), `[K, B]` to `[B]` (Li & Turner 2016).

    At alpha = 1 its limit, the mean of ln w.
    """
    if alpha == 1:
        return log_w.mean(0)
    return importance_bound((1 - alpha) * log_w) / (1 - alpha)


def normalized_weights(log_w: Array) -> Array:
    """w~_k = w_k / sum_j w_j, `[K, B]`."""
    return jax.nn.softmax(log_w, axis=0)


def in_groups(function: OfWeights, m: int) -> OfWeights:
    """The function of each of M groups of samples: of `[M * K, B]`, stacked `[M, ...]`."""
    return lambda log_w: jax.vmap(function)(log_w.reshape(m, -1, *log_w.shape[1:]))


def requirements(doubly_reparameterized: bool) -> Requirements:
    """A density of q; where the gradient through z is weighed, one that is differentiable in z."""
    if doubly_reparameterized:
        return Requirements(posterior=frozenset({"density", "path"}), one_layer=True)
    return Requirements(posterior=frozenset({"density"}))


def loss_and_metrics(
    terms: Terms, bound: OfWeights, path_factor: OfWeights | None
) -> tuple[Array, Metrics]:
    """The loss -bound, averaged over the batch; the metric `neg_elbo` is -L_1, the mean of -ln w.

    Args:
        terms: of one layer where there is a path factor.
        bound: of ln w `[K, B]`, to `[B]` or `[M, B]`.
        path_factor: of ln w `[K, B]`, the weight of the gradient through z_k in units of v_k; None
            leaves the plain gradient.
    """
    metrics = {"neg_elbo": -terms.log_w.mean()} | rate_and_distortion(terms)
    if path_factor is None:
        return -bound(terms.log_w).mean(), metrics
    log_w = terms.log_px + terms.log_pz[0] - held_log_qz(terms)
    factor: Array = lax.stop_gradient(path_factor(log_w)).reshape(log_w.shape)
    path: Any = terms.path
    weigh = ((factor - 1) * path).sum()  # zero; see `weigh_path`
    return -bound(log_w).mean() + weigh, metrics


@dataclass(frozen=True)
class IWAE:
    """The importance-weighted bound (Burda et al. 2015, equation 8).

    Its gradient weighs sample k by w_k / sum w, normalised and held fixed (equation 14), which
    differentiating the log-sum-exp does. No analytic KL enters.

    Attributes:
        num_samples: K.
        doubly_reparameterized: DReG, w~_k² for the gradient through z_k (Tucker et al. 2019).
    """

    num_samples: int
    doubly_reparameterized: bool = False

    @property
    def requires(self) -> Requirements:
        """A density of q."""
        return requirements(self.doubly_reparameterized)

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """Loss -L_K, nats per image."""
        del step, model
        factor = normalized_weights if self.doubly_reparameterized else None
        return loss_and_metrics(terms, importance_bound, factor)


@dataclass(frozen=True)
class MIWAE:
    """The mean of M importance-weighted bounds of K samples each (Rainforth et al. 2018).

    Attributes:
        m: M bounds; with K = 1 this is the ELBO.
        k: K samples in each; with M = 1 this is the IWAE.
        doubly_reparameterized: DReG in each bound.
    """

    m: int
    k: int
    doubly_reparameterized: bool = False

    @property
    def num_samples(self) -> int:
        """M * K."""
        return self.m * self.k

    @property
    def requires(self) -> Requirements:
        """A density of q."""
        return requirements(self.doubly_reparameterized)

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """Loss -1/M sum_m L_K, nats per image."""
        del step, model
        factor = in_groups(normalized_weights, self.m) if self.doubly_reparameterized else None
        return loss_and_metrics(terms, in_groups(importance_bound, self.m), factor)


@dataclass(frozen=True)
class PIWAE:
    """IWAE's bound of M * K samples for p, MIWAE's for q (Rainforth et al. 2018).

    p(x|z) is computed twice, the second time with z held, so that either bound can be
    differentiated with respect to p alone. A prior that is made of the encoder counts as p.

    Attributes:
        m: M bounds for q.
        k: K samples in each.
        doubly_reparameterized: DReG in each of them.
    """

    m: int
    k: int
    doubly_reparameterized: bool = False

    @property
    def num_samples(self) -> int:
        """M * K."""
        return self.m * self.k

    @property
    def requires(self) -> Requirements:
        """A density of q, of one layer."""
        return Requirements(requirements(self.doubly_reparameterized).posterior, one_layer=True)

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """Loss -L_MK in value, nats per image: MIWAE's, with its gradient for p exchanged."""
        loss, metrics = MIWAE(self.m, self.k, self.doubly_reparameterized)(terms, step)
        z, log_qz = lax.stop_gradient((terms.z, terms.log_qz[0]))
        p: Any = terms.p
        px = observed(model.likelihood, model.decode(z), terms.x, remember=False)
        log_w = px.log_prob(terms.x) + p.log_prob(z) - log_qz
        miwae = in_groups(importance_bound, self.m)(log_w).mean()
        return loss + miwae - importance_bound(log_w).mean(), metrics


@dataclass(frozen=True)
class CIWAE:
    """beta ELBO + (1 - beta) L_K (Rainforth et al. 2018).

    Attributes:
        num_samples: K.
        beta: in [0, 1].
        doubly_reparameterized: DReG, beta / K + (1 - beta) w~_k² for the gradient through z_k.

    Raises:
        VaeJaxError: beta is not in [0, 1], which would be no bound.
    """

    num_samples: int
    beta: float
    doubly_reparameterized: bool = False

    def __post_init__(self):
        if not 0 <= self.beta <= 1:
            raise VaeJaxError(f"CIWAE weighs two bounds: beta is {self.beta}, let it be in [0, 1].")

    @property
    def requires(self) -> Requirements:
        """A density of q."""
        return requirements(self.doubly_reparameterized)

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """Loss -(beta L_1 + (1 - beta) L_K), nats per image."""
        del step, model

        def bound(log_w: Array) -> Array:
            return self.beta * log_w.mean(0) + (1 - self.beta) * importance_bound(log_w)

        def factor(log_w: Array) -> Array:
            w = normalized_weights(log_w)
            elbo = self.beta / len(w)
            weight = elbo + (1 - self.beta) * w
            path = elbo + (1 - self.beta) * w**2
            return path / jnp.where(weight > 0, weight, 1.0)  # nothing passes where it is 0

        return loss_and_metrics(terms, bound, factor if self.doubly_reparameterized else None)


@dataclass(frozen=True)
class RenyiBound:
    """The variational Rényi bound (Li & Turner 2016).

    In expectation it falls in alpha, from alpha = 0, the IWAE's bound, to alpha = 1, the ELBO, and
    on. With alpha < 0 it is below ln p(x) only while K is small.

    Attributes:
        num_samples: K.
        alpha: any number.
        doubly_reparameterized: DReG, alpha w~_k + (1 - alpha) w~_k² for the gradient through z_k,
            w~_k being w_k^(1 - alpha), normalised.
    """

    num_samples: int
    alpha: float
    doubly_reparameterized: bool = False

    @property
    def requires(self) -> Requirements:
        """A density of q."""
        return requirements(self.doubly_reparameterized)

    def __call__(self, terms: Terms, step: Array, model: Any = None) -> tuple[Array, Metrics]:
        """Loss -L_alpha, nats per image."""
        del step, model

        def bound(log_w: Array) -> Array:
            return renyi_bound(log_w, self.alpha)

        def factor(log_w: Array) -> Array:
            return self.alpha + (1 - self.alpha) * normalized_weights((1 - self.alpha) * log_w)

        return loss_and_metrics(terms, bound, factor if self.doubly_reparameterized else None)
