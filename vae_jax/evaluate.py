"""Likelihood bounds, rate, distortion and active units, with every image counted once."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from vae_jax import parallel
from vae_jax.ais import AIS, make_annealer
from vae_jax.compatibility import has_bound
from vae_jax.data import SplitName
from vae_jax.distributions import Distribution
from vae_jax.experiment import Experiment
from vae_jax.inference_gap import inference_gaps, make_optimizer
from vae_jax.information import make_decomposer
from vae_jax.metrics.quality import Quality
from vae_jax.metrics.quality import quality as measure_quality
from vae_jax.metrics.spaces import Features
from vae_jax.run import Run
from vae_jax.splits import DECODED_FLOATS, SAMPLES_AT_ONCE, over_split
from vae_jax.vae import fold_in_each

ACTIVE_VARIANCE = 0.01


def per_image(
    model: nn.Module, variables: Any, x: Array, keys: Array, num_samples: int
) -> dict[str, Any]:
    """What K samples say of each image, in memory that does not grow with K.

    Args:
        model: returns Terms.
        variables: its variables.
        x: images `[B, H, W, C]` in the form of the protocol.
        keys: `[B]`.
        num_samples: K.

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
        terms: Any = model.apply(variables, x, fold_in_each(keys, index), chunk)
        used = (index * chunk + jnp.arange(chunk) < num_samples)[:, None]

        def total(values: Array) -> Array:
            return jnp.where(used, values, 0.0).sum(0)

        def mean_of(q: Distribution, z: Array) -> Array:
            draws = q.mean if q.exact_mean else z
            return draws.reshape(-1, len(x), *q.event_shape).mean(0)

        qs, zs = (each if isinstance(each, tuple) else (each,) for each in (terms.q, terms.z))
        statistics = {
            "log_sum_w": jax.nn.logsumexp(jnp.where(used, terms.log_w, -jnp.inf), axis=0),
            "neg_elbo": total(-terms.log_w),
            "distortion": total(-terms.log_px),
            "kl_sampled": total((terms.log_qz - terms.log_pz).sum(0)),
            "posterior_mean": [mean_of(q, z) for q, z in zip(qs, zs, strict=True)],
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

    def each_image(variables: Any, x: Array, keys: Array) -> dict[str, Any]:
        result = per_image(experiment.model, variables, x, keys, num_samples)
        return (
            result if bound else {name: result[name] for name in ("distortion", "posterior_mean")}
        )

    pixels = math.prod(experiment.data.image_shape)
    at_once = DECODED_FLOATS // (pixels * min(num_samples, SAMPLES_AT_ONCE))
    return over_split(experiment, split, num_images, at_once, each_image)


@dataclass(frozen=True)
class Evaluation:
    """What is known of a run on one split.

    Attributes:
        data: data set, split, protocol.
        checkpoint: which one, and its step.
        num_samples: K of `nll`.
        num_images: evaluated.
        ais: how annealed importance sampling was done, if it was.
        mean: of each quantity over images, nats per image but for `ais_acceptance`, `[S]`: those
            of `per_image`, and as asked for those of `make_annealer`, `decompose` and `gaps`. Where
            q has no density (`Deterministic`) or p(x|z) is not normalized, `per_image` has the
            distortion alone: then there is no bound on the likelihood.
        standard_error: of those means over images, `[S]`.
        active_units: for each layer, `[S]`: the units whose posterior mean E_q[z_u|x] has a
            variance over the images above 0.01 (Burda et al. 2015, section 5.2).
        bits_per_dim: nll / (ln 2 x dimensions), `[S]`; None for a density of continuous data.
        quality: of the pictures, if it was asked for.
    """

    data: str
    checkpoint: str
    num_samples: int
    num_images: int
    ais: AIS | None
    mean: dict[str, np.ndarray]
    standard_error: dict[str, np.ndarray]
    active_units: list[np.ndarray]
    bits_per_dim: np.ndarray | None
    quality: Quality | None


def standard_error_of_mean(values: np.ndarray) -> np.ndarray:
    """Of the mean over images, `[S, N]` to `[S]`; nan for a single image, which has none."""
    count = values.shape[1]
    if count == 1:
        return np.full(len(values), np.nan)
    return values.std(1, dtype=np.float64, ddof=1) / math.sqrt(count)


def bits_per_dim(nll: np.ndarray, experiment: Experiment) -> np.ndarray | None:
    """Negative log-likelihood in nats per image to bits per dimension.

    For dequantized data, where x = (v + u)/256, the density's bound on the 256 levels' mass adds
    8 bits (Theis et al. 2016, section 3.1). None where the measure carries no bits: densities of
    data that are not dequantized.
    """
    dimensions = math.prod(experiment.data.image_shape)
    bits = nll / (dimensions * math.log(2))
    if experiment.model.likelihood.measure == "mass":
        return bits
    return bits + 8 if experiment.data.protocol.name == "dequantize" else None


def _given_labels(experiment: Experiment) -> str:
    return "" if experiment.model.labels is None else ", each likelihood given the image's label"


def evaluate(
    run: Run,
    *,
    split: SplitName = "test",
    num_samples: int = 5000,
    num_images: int | None = None,
    ais: AIS | None = None,
    information: bool = False,
    gaps: bool = False,
    quality: int | None = None,
    features: Mapping[str, Features] | None = None,
) -> Evaluation:
    """Evaluates a run.

    Args:
        run: the trained model.
        split: of its data.
        num_samples: K of the importance-weighted bound.
        num_images: evenly spaced over the split; None takes all.
        ais: also anneal, for these images and for as many simulated ones (`make_annealer`).
        information: also divide the rate in two (`make_decomposer`).
        gaps: also divide what the ELBO loses in two (`make_optimizer`).
        quality: also score so many samples and reconstructions (`metrics.quality`).
        features: spaces of features for it, beside its own.

    Raises:
        VaeJaxError: as for `make_evaluator`, and for those of what is asked for.
    """
    experiment, variables = run.experiment, parallel.replicate(run.variables)
    measured = None if quality is None else measure_quality(run, split, quality, features)
    evaluators = [make_evaluator(experiment, split, num_samples, num_images)]
    if ais is not None:
        evaluators.append(make_annealer(experiment, split, ais, num_images))
    if information:
        evaluators.append(make_decomposer(experiment, split, num_images))
    if gaps:
        evaluators.append(make_optimizer(experiment, split, num_samples, num_images))
    result: dict[str, Any] = {}
    # Accelerators round the factors of a product to ten bits or eight unless told not to.
    with jax.default_matmul_precision("float32"):
        for evaluator in evaluators:
            result |= evaluator(variables)
    if gaps:
        result |= inference_gaps(result)
    means = [m.reshape(*m.shape[:2], -1) for m in result.pop("posterior_mean")]
    count = result["distortion"].shape[1]
    mean = {name: values.mean(1, dtype=np.float64) for name, values in result.items()}
    return Evaluation(
        data=f"{experiment.data.description}, {split} split{_given_labels(experiment)}",
        checkpoint=f"{run.checkpoint}, step {int(run.state.step[0])}",
        num_samples=num_samples,
        num_images=count,
        ais=ais,
        mean=mean,
        standard_error={name: standard_error_of_mean(values) for name, values in result.items()},
        active_units=[(m.var(1) > ACTIVE_VARIANCE).sum(1) for m in means],
        bits_per_dim=bits_per_dim(mean["nll"], experiment) if "nll" in mean else None,
        quality=measured,
    )
