"""What is known of a run on a split: bounds, gaps, information, active units, quality."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from vae_jax import parallel
from vae_jax.data import SplitName
from vae_jax.evaluation.ais import AIS, make_annealer
from vae_jax.evaluation.bounds import make_evaluator
from vae_jax.evaluation.gaps import inference_gaps, make_optimizer
from vae_jax.evaluation.information import make_decomposer
from vae_jax.experiment import Experiment
from vae_jax.metrics.quality import Quality, measure_quality
from vae_jax.metrics.spaces import Features
from vae_jax.run import Run

ACTIVE_VARIANCE = 0.01


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
