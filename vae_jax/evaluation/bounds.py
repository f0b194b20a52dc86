"""Likelihood bounds, rate and distortion of each image of a split."""

from collections.abc import Callable

import numpy as np
from flax.typing import VariableDict
from jax import Array

from vae_jax.bounds import SAMPLES_AT_ONCE, bounded, per_image
from vae_jax.data import SplitName
from vae_jax.evaluation.over_split import Evaluator, over_split
from vae_jax.experiment import Experiment
from vae_jax.step import TrainState


def make_bounds_evaluator(
    experiment: Experiment, split: SplitName, num_samples: int, num_images: int | None = None
) -> Evaluator:
    """Compile `per_image` for a whole split, on all devices.

    Args:
        experiment: the experiment, for its data and model.
        split: the split of the data.
        num_samples: the number of samples K.
        num_images: the number of images N, evenly spaced over the split; None takes all.

    Returns:
        An evaluator of the values of `per_image`, `[S, N, ...]`: all of them where the model has a
        bound on the likelihood, else the distortion and the posterior means with their variances.

    Raises:
        VaeJaxError: as in `over_split`.
    """

    def each_image(
        variables: VariableDict, x: Array, keys: Array, y: Array | None
    ) -> dict[str, Array]:
        values = per_image(experiment.model, variables, x, keys, num_samples, y)
        return bounded(experiment.model, values)

    samples = min(num_samples, SAMPLES_AT_ONCE)
    return over_split(experiment, split, each_image, num_images, samples)


def make_validation(experiment: Experiment) -> Callable[[TrainState], dict[str, np.ndarray]]:
    """Compile the validation of a state on the host.

    Returns:
        A function from a state `[S, ...]` to mean bounds over the validation split, nats per image,
        `[S]`: `valid_neg_elbo`, in which the KL weighs one whatever its weight in training, and
        `valid_nll` with the objective's K. Where the model has no bound on the likelihood, it gives
        `valid_distortion` alone; where there is no validation split, nothing.
    """
    if len(experiment.data.valid) == 0:
        return lambda state: {}
    evaluator = make_bounds_evaluator(experiment, "valid", experiment.objective.num_samples)

    def validate(state: TrainState) -> dict[str, np.ndarray]:
        result = evaluator(state.variables)
        names = ("neg_elbo", "nll") if "nll" in result else ("distortion",)
        return {f"valid_{name}": result[name].mean(1) for name in names}

    return validate
