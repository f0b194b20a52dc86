"""Usage of a codebook."""

from typing import cast

import numpy as np
from flax.typing import VariableDict
from jax import Array

from vae_jax.data import SplitName
from vae_jax.distributions import Quantized
from vae_jax.evaluation.over_split import over_split
from vae_jax.experiment import Experiment


def codebook_use(
    variables: VariableDict,
    experiment: Experiment,
    split: SplitName,
    num_images: int | None,
) -> dict[str, np.ndarray]:
    """The share of codes in use, and the perplexity of their frequencies, over all images.

    Args:
        variables: the variables of S seeds, host arrays `[S, ...]`.
        experiment: the experiment, for its data and model.
        split: the split of the data.
        num_images: the number of images, evenly spaced over the split; None takes all.

    Returns:
        `codebook_use`, from 0 to 1, and `codebook_perplexity`, exp H from 1 to the number of codes
        C, `[S]` each, means over the levels of residual codes. Empty if z is not a map of codes.
        Few images cannot use all of a large codebook: if they have n codes, at most n / C of it.
    """
    model = experiment.model
    if "codebook" not in model.posteriors[0].traits:
        return {}

    num_codes: list[int] = []

    def codes(variables: VariableDict, x: Array, keys: Array, y: Array | None) -> Array:
        del keys
        q = cast(Quantized, model.apply(variables, x, y, method="encode"))
        num_codes.append(q.codebook.num_codes)
        return q.indices

    found = np.asarray(over_split(experiment, split, codes, num_images)(variables))
    counts = [
        [np.bincount(level.ravel(), minlength=num_codes[0]) for level in np.moveaxis(seed, -1, 0)]
        for seed in found
    ]
    return {
        "codebook_use": np.array([np.mean([(c > 0).mean() for c in seed]) for seed in counts]),
        "codebook_perplexity": np.array(
            [np.mean([perplexity_of(c) for c in seed]) for seed in counts]
        ),
    }


def perplexity_of(counts: np.ndarray) -> float:
    """The perplexity exp H of frequencies proportional to `counts`, with entropy H in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
