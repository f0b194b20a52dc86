"""Likelihood bounds, rate and distortion of each image, in memory that does not grow with K."""

import math
from typing import cast

import jax
import jax.numpy as jnp
from flax.typing import VariableDict
from jax import Array, lax

from vae_jax import random
from vae_jax.distributions import Distribution
from vae_jax.interfaces import Model
from vae_jax.vae import Terms, has_bound

# The number of samples from one key: a constant, so that an image's noise does not vary with K.
SAMPLES_AT_ONCE = 64


def per_image(
    model: Model,
    variables: VariableDict,
    x: Array,
    keys: Array,
    num_samples: int,
    y: Array | None = None,
    exact_prior: bool = True,
) -> dict[str, Array]:
    """Bounds on ln p(x) and their parts for each image, from K samples.

    Args:
        model: a model.
        variables: its variables.
        x: images `[B, H, W, C]`, scaled by the protocol.
        keys: typed keys `[B]`.
        num_samples: the number of samples K.
        y: labels `[B]` of a conditional model.
        exact_prior: whether ln p(z) is exact where training has only a bound on it. The bound is
            faster to compute, but with it `nll` is not a bound for K > 1.

    Returns:
        Values in nats, `[B]` each:

        - `nll`: -L_K, the importance-weighted bound (Burda et al. 2015, eq. 8); -L_1 where only a
          bound on ln p(z) is known;
        - `neg_elbo`: -L_1, averaged over the K samples;
        - `distortion`: -E_q ln p(x|z);
        - `kl_sampled`: E_q[ln q(z|x) - ln p(z)];
        - `kl`: the exact KL, if there is one;
        - `rate_z1`, `rate_z2`, ...: the rate of each of several layers, exact where `kl` is;

        and `posterior_mean_z1`, `posterior_mean_z2`, ...: E_q[z_l] of each layer, `[B, *event_l]`,
        the mean of the samples if no closed form exists or if q(z_l) depends on the sampled latents
        of other layers; with `mean_variance_z1`, ...: an unbiased estimate of the variance of that
        mean over the samples, 0 if the mean is exact and nan from a single sample.
    """
    chunk = min(num_samples, SAMPLES_AT_ONCE)
    num_chunks = -(-num_samples // chunk)

    def one_chunk(index: Array) -> dict[str, Array]:
        own = random.indexed(keys, index)
        terms = cast(Terms, model.apply(variables, x, own, chunk, y))
        if exact_prior and not model.prior.exact and not model.prior.bound_alone:
            terms = terms.with_exact_prior()
        used = (index * chunk + jnp.arange(chunk) < num_samples)[:, None]

        def total(values: Array) -> Array:
            return jnp.where(used, values, 0.0).sum(0)

        def mean_and_variance(q: Distribution, z: Array) -> tuple[Array, Array]:
            draws = (q.mean if q.exact_mean else z).reshape(-1, len(x), *q.event_shape)
            if q.exact_mean and q.batch_shape == (len(x),):
                return draws[0], jnp.zeros_like(draws[0])
            return draws.mean(0), draws.var(0, ddof=1) / (chunk * num_chunks)

        statistics = {
            "log_sum_w": jax.nn.logsumexp(jnp.where(used, terms.log_w, -jnp.inf), axis=0),
            "neg_elbo": total(-terms.log_w),
            "distortion": total(-terms.log_px),
            "kl_sampled": total((terms.log_qz - terms.log_pz).sum(0)),
        }
        for layer, (q, z) in enumerate(zip(terms.q, terms.z, strict=True), start=1):
            mean, variance = mean_and_variance(q, z)
            statistics[f"posterior_mean_z{layer}"] = mean
            statistics[f"mean_variance_z{layer}"] = variance
        if len(terms.z) > 1:
            for layer, rate in enumerate(terms.rate, start=1):
                statistics[f"rate_z{layer}"] = rate
        if terms.kl is not None:
            statistics["kl"] = terms.kl.sum(0)
        return statistics

    chunks = lax.map(one_chunk, jnp.arange(num_chunks))
    sums = {name: chunks.pop(name).sum(0) for name in ("neg_elbo", "distortion", "kl_sampled")}
    log_sum_w = jax.nn.logsumexp(chunks.pop("log_sum_w"), axis=0)
    values = {
        "nll": math.log(num_samples) - log_sum_w,
        **{name: value / num_samples for name, value in sums.items()},
        **{name: values.mean(0) for name, values in chunks.items()},
    }
    if model.prior.bound_alone:
        values["nll"] = values["neg_elbo"]
    return values


def meaningful(model: Model, values: dict[str, Array]) -> dict[str, Array]:
    """The `values` of `per_image` that have a meaning for `model`: without a bound on ln p(x),
    none that contains a density of q."""
    parts = ("distortion", "posterior_mean", "mean_variance")
    kept = values if has_bound(model) else [name for name in values if name.startswith(parts)]
    return {name: values[name] for name in kept}
