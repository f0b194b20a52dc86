"""The quality of a run's samples and reconstructions, measured against a split of the data."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vae_jax import generate
from vae_jax.data import SplitName
from vae_jax.errors import VaeJaxError
from vae_jax.metrics.distances import (
    MIN_IMAGES,
    Estimate,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from vae_jax.metrics.handmade import colour, texture
from vae_jax.metrics.learned import learned_features
from vae_jax.metrics.reconstruction import psnr, ssim
from vae_jax.metrics.spaces import Features, check_images, standardized
from vae_jax.run import Run

SAMPLING_SEED = 0


@dataclass(frozen=True)
class Score:
    """One distance or share in one feature space, beside the value for training images.

    Attributes:
        space: the name of the feature space.
        name: the name of the quantity.
        samples: its value for samples against the split.
        training: the floor: its value for real images that are not in the split.
    """

    space: str
    name: str
    samples: Estimate
    training: Estimate


@dataclass(frozen=True)
class Quality:
    """The scores of a run's first seed.

    Attributes:
        num_images: the size of each set: samples, images of the split, training images.
        scores: one for each space and quantity.
        reconstruction: means over images of the split, `psnr` in decibels and `ssim`; and
            `rfrechet`, the Fréchet distance of the reconstructions from these images in learned
            features.
    """

    num_images: int
    scores: list[Score]
    reconstruction: dict[str, Estimate]


def measure_quality(
    run: Run, split: SplitName, num_images: int, features: Mapping[str, Features] | None = None
) -> Quality:
    """Score samples and reconstructions of the first seed, as `Run` makes pictures of both.

    Distances, precision and recall compare `num_images` samples, or training images, with equally
    many images of the split, in three feature spaces: colour, texture, and features learned on the
    training split; and in the user's own. A conditional model's samples have the labels of those
    images, and thus their shares of the classes.

    Args:
        run: the trained model; its folder keeps the network of the learned features.
        split: the reference, its images as stored.
        num_images: the number of images, evenly spaced over the splits.
        features: the user's own spaces, which are not standardized.

    Returns:
        The scores.

    Raises:
        VaeJaxError: `num_images` is below 40 or above the size of a split, the split is the
            training one, or images have other than 1 or 3 channels.
    """
    data = run.experiment.data
    if split == "train":
        raise VaeJaxError(
            "Quality is measured against images that training has not seen: choose --split test."
        )
    reference = data[split].images
    most = min(len(reference), len(data.train))
    if most < MIN_IMAGES:
        raise VaeJaxError(
            f"Quality is measured on at least {MIN_IMAGES} images, and of {split} and training "
            f"images {data.name} has {most}: leave --quality-images out."
        )
    if not MIN_IMAGES <= num_images <= most:
        raise VaeJaxError(
            f"--quality-images is {num_images}: give at least {MIN_IMAGES} and at most {most}, the "
            f"images that the {split} and training splits of {data.name} both have."
        )
    check_images(data.train.images[:1])
    rows = _spaced(num_images, len(reference))
    originals = reference[rows]
    training = data.train.images[_spaced(num_images, len(data.train))]
    labels = run.labels(split, rows)
    samples = _bytes(
        generate.sample(run, num_images, SAMPLING_SEED, None if labels is None else list(labels))
    )
    reconstructions = _bytes(generate.reconstruct_rows(run, split, rows))

    learned = learned_features(run.folder, data.train)
    own = {"colour": colour, "texture": texture, "learned": learned}
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
    space = spaces["learned"]
    means["rfrechet"] = frechet_distance(space(reconstructions), space(originals))
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


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.rint(255 * images).astype(np.uint8)
