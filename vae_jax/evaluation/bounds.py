"""Likelihood bounds, rate and distortion of each image of a split, and moments of its latents."""

from collections.abc import Callable, Collection

import numpy as np
from flax.typing import VariableDict
from jax import Array

from vae_jax.bounds import SAMPLES_AT_ONCE, meaningful, per_image
from vae_jax.data import SplitName
from vae_jax.evaluation.moments import Moments
from vae_jax.evaluation.over_split import Evaluator, OfSeeds, PerImage, over_split
from vae_jax.experiment import Experiment
from vae_jax.vae import has_bound

MomentsOfLayers = list[tuple[Moments, Moments]]
"""For each layer, the moments of the posterior means and of their sampling variances."""


def make_bounds_evaluator(
    experiment: Experiment,
    split: SplitName,
    num_samples: int,
    num_images: int | None = None,
    names: Collection[str] | None = None,
    exact_prior: bool = True,
) -> Evaluator:
    """Compile `per_image` for a whole split, on all devices.

    Args:
        experiment: the experiment, for its data and model.
        split: the split of the data.
        num_samples: the number of samples K.
        num_images: the number of images N, evenly spaced over the split; None takes all.
        names: the values to compute; None takes all.
        exact_prior: as in `per_image`.

    Returns:
        An evaluator of the values of `per_image` that are one number for each image, `[S, N]`: all
        of them if the model has a bound on the likelihood, else the distortion.

    Raises:
        VaeJaxError: as in `over_split`.
    """

    def each_image(
        variables: VariableDict, x: Array, keys: Array, y: Array | None
    ) -> dict[str, Array]:
        values = per_image(experiment.model, variables, x, keys, num_samples, y, exact_prior)
        numbers = _numbers(meaningful(experiment.model, values))
        return {name: numbers[name] for name in numbers if names is None or name in names}

    samples = min(num_samples, SAMPLES_AT_ONCE)
    return over_split(experiment, split, each_image, num_images, samples)


def make_bounds_and_latents_evaluator(
    experiment: Experiment, split: SplitName, num_samples: int, num_images: int | None = None
) -> Callable[[VariableDict], tuple[PerImage, MomentsOfLayers]]:
    """Compile the bounds of `make_bounds_evaluator` and the moments of posterior means.

    The means of all images are never gathered: their moments are computed on the devices.

    Args:
        experiment, split, num_samples, num_images: as in `make_bounds_evaluator`.

    Returns:
        A function of the variables of S seeds to the values `[S, N]`, and to the moments `[S, ...]`
        of each layer.

    Raises:
        VaeJaxError: as in `over_split`.
    """

    def each_image(
        variables: VariableDict, x: Array, keys: Array, y: Array | None
    ) -> tuple[dict[str, Array], list[tuple[Array, Array]]]:
        values = per_image(experiment.model, variables, x, keys, num_samples, y)
        latents = [
            (values[f"posterior_mean_z{layer}"], values[f"mean_variance_z{layer}"])
            for layer, _ in enumerate(experiment.model.posteriors, start=1)
        ]
        return _numbers(meaningful(experiment.model, values)), latents

    samples = min(num_samples, SAMPLES_AT_ONCE)
    return over_split(experiment, split, each_image, num_images, samples, with_moments=True)


def make_validation(experiment: Experiment) -> Callable[[OfSeeds], dict[str, np.ndarray]]:
    """Compile the validation of an experiment's variables.

    Returns:
        A function from the variables of S seeds to mean bounds over the validation split, nats per
        image, `[S]`: `valid_neg_elbo`, in which the KL has weight one whatever its weight in
        training, and `valid_nll` with the objective's K. With a prior for which training has only a
        bound, it gives the former alone, by that bound, since ln p(z) itself takes long. If the
        model has no bound on the likelihood, it gives `valid_distortion` alone; if there is no
        validation split, nothing. Only these numbers of each image leave the devices.
    """
    if len(experiment.data.valid) == 0:
        return lambda variables: {}
    names = ("neg_elbo", "nll") if has_bound(experiment.model) else ("distortion",)
    names = names if experiment.model.prior.exact else names[:1]
    num_samples, num_images = experiment.objective.num_samples, experiment.validate_images
    evaluator = make_bounds_evaluator(experiment, "valid", num_samples, num_images, names, False)

    def validate(variables: OfSeeds) -> dict[str, np.ndarray]:
        result = evaluator(variables)
        return {f"valid_{name}": result[name].mean(1) for name in names}

    return validate


def _numbers(values: dict[str, Array]) -> dict[str, Array]:
    latents = "posterior_mean", "mean_variance"
    return {name: each for name, each in values.items() if not name.startswith(latents)}
