"""Likelihood bounds, rate and distortion of each image of a split."""

from flax.typing import VariableDict
from jax import Array

from vae_jax.bounds import SAMPLES_AT_ONCE, bounded, per_image
from vae_jax.data import SplitName
from vae_jax.evaluation.over_split import Evaluator, over_split
from vae_jax.experiment import Experiment


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
