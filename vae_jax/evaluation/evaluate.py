"""Results of a run on a split: bounds, gaps, information, active units, quality."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jax import Array

from vae_jax.data import SplitName
from vae_jax.errors import Shown
from vae_jax.evaluation.ais import AIS, make_ais_evaluator
from vae_jax.evaluation.bounds import make_bounds_and_latents_evaluator
from vae_jax.evaluation.codebook import codebook_use
from vae_jax.evaluation.gaps import inference_gaps, make_gaps_evaluator
from vae_jax.evaluation.information import make_information_evaluator
from vae_jax.evaluation.moments import Moments
from vae_jax.evaluation.over_split import Evaluator
from vae_jax.experiment import Experiment
from vae_jax.given import Count, checked
from vae_jax.likelihoods import SeenPixels
from vae_jax.metrics.quality import Quality, measure_quality
from vae_jax.metrics.spaces import Features
from vae_jax.progress import Waiting
from vae_jax.run import Run

ACTIVE_VARIANCE = 0.01


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """The results of evaluating a run on one split.

    Attributes:
        data: the data set, its split and its protocol, in words.
        checkpoint: the checkpoint that was evaluated and its step, in words.
        num_samples: the number of samples K behind `nll`.
        num_images: the number of images N.
        ais: the settings of annealed importance sampling; None if there was none.
        mean: the mean of each quantity over images, `[S]`, in nats per image except
            `ais_acceptance`: the quantities of `bounds.per_image` and, if requested, those of
            `make_ais_evaluator`, `information.decompose` and `inference_gaps`. If q has no density
            (`Deterministic`) or p(x|z) is not normalized, there is no bound on the likelihood, and
            of `bounds.per_image` only the distortion.
        standard_error: the standard errors of these means over images, `[S]`.
        active_units: the number of active units of each layer, `[S]`; see `active_units`.
        codebook: `codebook_use` and `codebook_perplexity`, `[S]` each, if z is a map of codes;
            otherwise empty. See `codebook.codebook_use`.
        bits_per_dim: nll / (ln 2 x dimensions), `[S]`; None for a density of continuous data.
        quality: the scores of samples and reconstructions; None if not requested.
    """

    data: str
    checkpoint: str
    num_samples: int
    num_images: int
    ais: AIS | None
    mean: dict[str, np.ndarray]
    standard_error: dict[str, np.ndarray]
    active_units: list[np.ndarray]
    codebook: dict[str, np.ndarray]
    bits_per_dim: np.ndarray | None
    quality: Quality | None

    @property
    def shown(self) -> dict[str, str]:
        """A summary in a few lines; `report.show` prints all of it."""
        names = {
            "nll": f"NLL, K = {self.num_samples}",
            "neg_elbo": "negative ELBO",
            "kl" if "kl" in self.mean else "kl_sampled": "rate",
            "distortion": "distortion",
        }
        found = {
            label: f"{over_seeds(self.mean[name], self.standard_error[name])} nats"
            for name, label in names.items()
            if name in self.mean
        }
        if self.bits_per_dim is not None:
            found["bits/dim"] = over_seeds(self.bits_per_dim)
        units = (f"{each.mean():.0f}" for each in self.active_units)
        return {
            "evaluation": f"{self.num_images:,} images, {self.checkpoint}",
            **found,
            "active units": " + ".join(units),
            "data": self.data,
        }


def over_seeds(values: np.ndarray, standard_error: np.ndarray | None = None) -> str:
    """A value as text: that of one seed ± its standard error, or mean ± sd over several seeds.

    Bits per dimension, which come without a standard error, have a third decimal.
    """
    if len(values) > 1:
        digits = 3 if standard_error is None else 2
        mean, deviation = values.mean(), values.std(ddof=1)
        return f"{mean:.{digits}f} ± {deviation:.{digits}f} (sd of {len(values)} seeds)"
    if standard_error is None:
        return f"{values[0]:.3f}"
    return f"{values[0]:.2f} ± {standard_error[0]:.2f} (s.e.)"


def standard_error_of_mean(values: np.ndarray) -> np.ndarray:
    """The standard error of the mean of `values` over images, `[S, N]` to `[S]`; nan if N = 1."""
    count = values.shape[1]
    if count == 1:
        return np.full(len(values), np.nan)
    return values.std(1, dtype=np.float64, ddof=1) / math.sqrt(count)


def bits_per_dim(nll: np.ndarray, experiment: Experiment) -> np.ndarray | None:
    """Convert the `nll` of an experiment's images in nats per image to bits per dimension.

    For dequantized data, where x = (v + u)/256, the bound that the density gives on the mass of the
    256 levels adds 8 bits (Theis et al. 2016, section 3.1). None for densities of data that are not
    dequantized, which have no bits, and for missing pixels, with which dimensions vary.
    """
    if isinstance(experiment.model.likelihood, SeenPixels):
        return None
    dimensions = math.prod(experiment.data.image_shape)
    bits = nll / (dimensions * math.log(2))
    if experiment.model.likelihood.measure == "mass":
        return bits
    return bits + 8 if experiment.data.protocol.name == "dequantize" else None


def _given_labels(experiment: Experiment) -> str:
    return "" if experiment.model.labels is None else ", each likelihood given the image's label"


@checked
def evaluate(
    run: Run,
    *,
    split: SplitName = "test",
    num_samples: Count = 5000,
    num_images: int | None = None,
    ais: AIS | None = None,
    information: bool = False,
    gaps: bool = False,
    quality_images: int | None = None,
    features: Mapping[str, Features] | None = None,
) -> Evaluation:
    """Evaluate a run: bounds on the likelihood, their parts, and more on request.

    Args:
        run: the trained model.
        split: the split of its data.
        num_samples: the number of samples K of the importance-weighted bound.
        num_images: the number of images N, evenly spaced over the split; None takes all.
        ais: settings of annealing for these images and for N simulated ones, or None
            (`make_ais_evaluator`).
        information: whether to divide the rate in two (`make_information_evaluator`).
        gaps: whether to divide the ELBO's distance from ln p(x) in two (`make_gaps_evaluator`).
        quality_images: the number of samples and reconstructions to score (`metrics.quality`).
        features: spaces of features in which to score them, besides the package's own.

    Returns:
        The results.

    Raises:
        VaeJaxError: as in `over_split`, and in the functions named above.

    References:
        Burda et al. (2015), "Importance weighted autoencoders", equation 8, for `nll`, and section
            5.2, for active units.
        Hoffman & Johnson (2016), "ELBO surgery: yet another way to carve up the variational
            evidence lower bound", for `information`.
        Cremer et al. (2018), "Inference suboptimality in variational autoencoders", for `gaps`.

    Example:
        >>> result = evaluate(run, num_samples=5000)
        >>> result.mean["nll"], result.standard_error["nll"]  # of each seed
    """
    experiment = run.experiment
    quality = None
    if quality_images is not None:
        with Waiting(f"Comparing pictures of {run.folder.path}"):
            quality = measure_quality(run, split, quality_images, features)
    bounds = make_bounds_and_latents_evaluator(experiment, split, num_samples, num_images)
    evaluators: list[Evaluator] = []
    if ais is not None:
        evaluators.append(make_ais_evaluator(experiment, split, ais, num_images))
    if information:
        evaluators.append(make_information_evaluator(experiment, split, num_images))
    if gaps:
        evaluators.append(make_gaps_evaluator(experiment, split, num_samples, num_images))
    with Waiting(f"Evaluating {run.folder.path}"):
        values, latents = bounds(run.variables)
        for evaluator in evaluators:
            values |= evaluator(run.variables)
        codebook = codebook_use(run.variables, experiment, split, num_images)
    if gaps:
        values |= inference_gaps(values)
    mean = {name: each.mean(1, dtype=np.float64) for name, each in values.items()}
    return Evaluation(
        data=f"{experiment.data.description}, {split} split{_given_labels(experiment)}",
        checkpoint=f"{run.checkpoint}, step {int(run.state.step[0])}",
        num_samples=num_samples,
        num_images=values["distortion"].shape[1],
        ais=ais,
        mean=mean,
        standard_error={name: standard_error_of_mean(each) for name, each in values.items()},
        active_units=[active_units(means, variances) for means, variances in latents],
        codebook=codebook,
        bits_per_dim=bits_per_dim(mean["nll"], experiment) if "nll" in mean else None,
        quality=quality,
    )


def active_units(means: Moments, variances: Moments) -> np.ndarray:
    """The number of active units of a layer, `[S]`; nan if it cannot be estimated.

    A unit is active if its posterior mean E_q[z_u|x] has a variance over the images above 0.01.
    Means of samples also vary by chance: that variance is subtracted, without bias, and the
    difference must exceed 0.01 by three of its standard errors.

    Args:
        means: moments over N images of posterior means, or of estimates of them, `[S, *event]`.
        variances: moments of the sampling variances of these estimates, `[S, *event]`; zero if the
            means are exact, nan if each is of one sample, from which no variance can be estimated.

    References:
        Burda et al. (2015), "Importance weighted autoencoders", section 5.2.
    """

    def flat(values: Array) -> np.ndarray:
        return np.asarray(values, np.float64).reshape(len(values), -1)

    count = flat(means.count)
    noise, noise_squares = flat(variances.mean), flat(variances.squares) / count
    found = flat(means.squares) / count - (1 - 1 / count) * noise
    # That of (mean + noise)² - variance at the threshold, for normal noise and any K > 1.
    variance_of_each = 4 * (noise_squares + noise**2) + 4 * ACTIVE_VARIANCE * noise
    error = np.sqrt(variance_of_each / count)
    units = (found > ACTIVE_VARIANCE + 3 * error).sum(1)
    return np.where(np.isnan(found).any(1), np.nan, units)
