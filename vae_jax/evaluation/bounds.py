"""Likelihood bounds, rate and distortion of each image, in memory that does not grow with K."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from vae_jax import random
from vae_jax.data import SplitName
from vae_jax.distributions import Distribution
from vae_jax.evaluation.over_split import DECODED_FLOATS, SAMPLES_AT_ONCE, over_split
from vae_jax.experiment import Experiment
from vae_jax.interfaces import Model, has_bound


def per_image(
    model: Model,
    variables: Any,
    x: Array,
    keys: Array,
    num_samples: int,
    y: Array | None = None,
) -> dict[str, Any]:
    """What K samples say of each image, in memory that does not grow with K.

    Args:
        model: returns Terms.
        variables: its variables.
        x: images `[B, H, W, C]` in the form of the protocol.
        keys: `[B]`.
        num_samples: K.
        y: labels `[B]` of a conditional model.

    Returns:
        `[B]` each, in nats: `nll` -L_K, the importance-weighted bound (Burda et al. 2015, eq. 8);
        `neg_elbo` -L_1, averaged over the K samples; `distortion` -E_q ln p(x|z); `kl_sampled`
        E_q[ln q(z|x) - ln p(z)]; `kl` the exact KL where there is one; and `posterior_mean`,
        E_q[z], `[B, *event]`, a list with one for each layer (the mean of the samples where no
        closed form exists).
    """
    chunk = min(num_samples, SAMPLES_AT_ONCE)
    num_chunks = -(-num_samples // chunk)

    def one_chunk(index: Array) -> dict[str, Any]:
        terms: Any = model.apply(variables, x, random.indexed(keys, index), chunk, y)
        used = (index * chunk + jnp.arange(chunk) < num_samples)[:, None]

        def total(values: Array) -> Array:
            return jnp.where(used, values, 0.0).sum(0)

        def mean_of(q: Distribution, z: Array) -> Array:
            draws = q.mean if q.exact_mean else z
            return draws.reshape(-1, len(x), *q.event_shape).mean(0)

        statistics = {
            "log_sum_w": jax.nn.logsumexp(jnp.where(used, terms.log_w, -jnp.inf), axis=0),
            "neg_elbo": total(-terms.log_w),
            "distortion": total(-terms.log_px),
            "kl_sampled": total((terms.log_qz - terms.log_pz).sum(0)),
            "posterior_mean": [mean_of(q, z) for q, z in zip(terms.q, terms.z, strict=True)],
        }
        if terms.kl is not None:
            statistics["kl"] = terms.kl.sum(0)
        return statistics

    chunks = lax.map(one_chunk, jnp.arange(num_chunks))
    sums = {name: chunks.pop(name).sum(0) for name in ("neg_elbo", "distortion", "kl_sampled")}
    log_sum_w = jax.nn.logsumexp(chunks.pop("log_sum_w"), axis=0)
    return {
        "nll": math.log(num_samples) - log_sum_w,
        **{name: value / num_samples for name, value in sums.items()},
        **jax.tree.map(lambda values: values.mean(0), chunks),
    }


def make_evaluator(
    experiment: Experiment, split: SplitName, num_samples: int, num_images: int | None = None
) -> Callable[[Any], dict[str, Any]]:
    """`per_image` for a whole split, on all devices.

    Args:
        experiment: its data and model.
        split: of the data.
        num_samples: K.
        num_images: evenly spaced over the split; None takes all.

    Returns:
        A function of the model's variables `[D, S, ...]` (`parallel.replicate` of `Run.variables`),
        to host arrays as of `per_image`, `[S, N, ...]`: all of them where the model has a bound on
        the likelihood, else the distortion and the posterior means. An image's noise depends on its
        place in the split alone, not on batches or devices.

    Raises:
        VaeJaxError: the split has no or not so many images.
    """
    bound = has_bound(experiment.model)

    def each_image(variables: Any, x: Array, keys: Array, y: Array | None) -> dict[str, Any]:
        result = per_image(experiment.model, variables, x, keys, num_samples, y)
        return (
            result if bound else {name: result[name] for name in ("distortion", "posterior_mean")}
        )

    pixels = math.prod(experiment.data.image_shape)
    at_once = DECODED_FLOATS // (pixels * min(num_samples, SAMPLES_AT_ONCE))
    return over_split(experiment, split, num_images, at_once, each_image)
