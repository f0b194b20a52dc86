"""How good a run's pictures are: samples and reconstructions against a split of the data."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vae_jax import generate
from vae_jax.data import SplitName
from vae_jax.errors import VaeJaxError
from vae_jax.metrics.colour import colour
from vae_jax.metrics.estimate import Estimate
from vae_jax.metrics.frechet import frechet_distance
from vae_jax.metrics.kernel import kernel_distance
from vae_jax.metrics.learned import learned
from vae_jax.metrics.precision_recall import precision_recall
from vae_jax.metrics.reconstruction import psnr, ssim
from vae_jax.metrics.spaces import MIN_IMAGES, Features, check_images, standardized
from vae_jax.metrics.texture import texture
from vae_jax.run import Run

SEED = 0  # of the samples


@dataclass(frozen=True)
class Score:
    """One number of the samples, beside that of training images in their place.

    Attributes:
        space: of the features.
        name: of the number.
        samples: against the split.
        training: the floor: as good as pictures of the same kind that are not those of the split.
    """

    space: str
    name: str
    samples: Estimate
    training: Estimate


@dataclass(frozen=True)
class Quality:
    """Of the pictures of a run's first seed.

    Attributes:
        num_images: in each of the sets: samples, images of the split, training images.
        scores: in each space.
        reconstruction: means over images of the split, by name: `psnr` in decibels, `ssim`.
    """

    num_images: int
    scores: list[Score]
    reconstruction: dict[str, Estimate]


def quality(
    run: Run, split: SplitName, num_images: int, features: Mapping[str, Features] | None = None
) -> Quality:
    """Scores samples and reconstructions of the first seed, both as means of p(x|z).

    Distances, precision and recall are between `num_images` samples, or training images, and as
    many images of the split, in three spaces of features: colour, texture, and those learned here
    on the training split; and in those of the user.

    Args:
        run: the trained model; it keeps the network of the learned features in its folder.
        split: of its data, whose images as stored are the reference.
        num_images: evenly spaced over the splits.
        features: the user's own spaces, taken as they are: not standardized.

    Raises:
        VaeJaxError: `num_images` is below 40 or above what the splits have, the split is the
            training one, or images have other than 1 or 3 channels.
    """
    data = run.experiment.data
    if split == "train":
        raise VaeJaxError(
            "Quality is measured against images that training has not seen: choose --split test."
        )
    reference = getattr(data, split).images
    most = min(len(reference), len(data.train))
    if not MIN_IMAGES <= num_images <= most:
        raise VaeJaxError(
            f"--quality is {num_images}: give at least {MIN_IMAGES} and at most {most}, the images "
            f"that the {split} and training splits of {data.name} both have."
        )
    check_images(data.train.images[:1])
    rows = _spaced(num_images, len(reference))
    originals = reference[rows]
    training = data.train.images[_spaced(num_images, len(data.train))]
    samples = _bytes(generate.sample(run, num_images, SEED))
    reconstructions = _bytes(generate.reconstruct_rows(run, split, rows))

    own = {"colour": colour, "texture": texture, "learned": learned(run.folder, data.train)}
    spaces = {name: standardized(space, training) for name, space in own.items()}
    scores = []
    for space, function in {**spaces, **(features or {})}.items():
        real = function(originals)
        ours, floor = (_scores(real, function(each)) for each in (samples, training))
        scores += [Score(space, name, ours[name], floor[name]) for name in ours]
    errors = {
        "psnr": psnr(reconstructions, originals),
        "ssim": ssim(reconstructions, originals),
    }
    means = {name: Estimate.mean(values) for name, values in errors.items()}
    return Quality(num_images, scores, means)


def _scores(real: np.ndarray, generated: np.ndarray) -> dict[str, Estimate]:
    precision, recall = precision_recall(real, generated)
    return {
        "frechet": frechet_distance(generated, real),
        "kernel": kernel_distance(generated, real),
        "precision": precision,
        "recall": recall,
    }


def _spaced(count: int, total: int) -> np.ndarray:
    return np.arange(count) * total // count


def _bytes(pictures: np.ndarray) -> np.ndarray:
    return np.rint(255 * pictures).astype(np.uint8)
