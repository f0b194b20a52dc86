"""Importance-weighted bounds and their doubly reparameterized gradients.

Plain gradients differentiate a bound directly. The gradient with respect to the inference
parameters then contains score terms v_k d ln q(z_k|x), with v_k the derivative of the bound with
respect to ln w_k. In expectation these equal (dv_k / d ln w_k) d ln w_k along z_k alone (Tucker et
al. 2019). Thus the parameters of q can be held fixed in ln q if the gradient through z_k has the
weight

    v_k - dv_k / d ln w_k

instead of v_k. If v_k is the normalized weight w~_k, as for the IWAE, this is w~_k². The estimator
has the same expectation, and for K = 1 it is that of Roeder et al. (2017). The generative
parameters keep v_k.

With several layers, z_k stands for all of them together, one draw from q(z_1, ..., z_L|x). ln q
keeps the gradient along the layers that a density is conditioned on, which Bauer & Mnih (2021,
section 4) call indirect score functions. Each draw's gradient is weighted once, where it leaves the
densities, and not at the layers that it then passes.
"""

import math
from collections.abc import Callable

import jax
from jax import Array, lax
from jaxtyping import Float

from vae_jax.interfaces import Metrics, Model, Requirements
from vae_jax.vae import Terms

OfWeights = Callable[[Float[Array, "K B"]], Float[Array, "..."]]
"""A function of ln w."""


def importance_bound(log_w: Float[Array, "K B"]) -> Float[Array, "B"]:
    """ln 1/K sum_k w_k in nats, from ln w (Burda et al. 2015, equation 8)."""
    return jax.nn.logsumexp(log_w, axis=0) - math.log(log_w.shape[0])


def normalized_weights(log_w: Float[Array, "K B"]) -> Float[Array, "K B"]:
    """w~_k = w_k / sum_j w_j, from ln w."""
    return jax.nn.softmax(log_w, axis=0)


def in_groups(function: OfWeights, m: int) -> OfWeights:
    """The function, applied to each of m groups of samples: `[m * K, B]` to `[m, ...]`."""
    return lambda log_w: jax.vmap(function)(log_w.reshape(m, -1, *log_w.shape[1:]))


def requirements(doubly_reparameterized: bool) -> Requirements:
    """Exact densities, and if `doubly_reparameterized`, a q that is differentiable along z."""
    if doubly_reparameterized:
        return Requirements(posterior=frozenset({"density", "path"}), exact_prior=True)
    return Requirements(posterior=frozenset({"density"}), exact_prior=True)


def importance_loss(
    terms: Terms, bound: OfWeights, path_factor: OfWeights | None, model: Model
) -> tuple[Float[Array, ""], Metrics]:
    """The loss -bound in nats per image; the metric `neg_elbo` is -L_1, the mean of -ln w.

    Args:
        terms: the Terms.
        bound: the bound of each example, `[B]` or `[M, B]`.
        path_factor: the weight of the gradient through z_k in units of v_k, one number for each
            ln w; None leaves the plain gradient.
        model: the model, bound to its parameters.

    Returns:
        The loss, and metrics.
    """
    metrics = {"neg_elbo": -terms.log_w.mean()} | terms.rate_and_distortion()
    if path_factor is None:
        return -bound(terms.log_w).mean(), metrics
    terms = model.held(terms)
    log_w = terms.log_w
    factor: Array = lax.stop_gradient(path_factor(log_w)).reshape(log_w.shape)
    return -bound(log_w).mean() + terms.weigh(factor - 1), metrics
