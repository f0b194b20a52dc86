"""Augmentation: what each does to a known image, and that training alone sees it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from running import interrupted_after, on_devices, rows, summary
from scipy import ndimage

from vae_jax import (
    BrightnessJitter,
    ColourJitter,
    Experiment,
    HorizontalFlip,
    RandomAffine,
    RandomShift,
    Run,
    VaeJaxError,
    train,
)
from vae_jax.data.augment import augmented
from vae_jax.errors import Interrupted
from vae_jax.train import make_validation

PICTURE = np.random.default_rng(0).integers(256, size=(6, 8, 3)).astype(np.uint8)


def draws(*augmentations: Any, image: np.ndarray = PICTURE, count: int = 400) -> np.ndarray:
    """The same image augmented with many keys."""
    keys = jax.random.split(jax.random.key(0), count)
    many = np.broadcast_to(image, (count, *image.shape))
    return np.asarray(jax.jit(lambda x, k: augmented(augmentations, x, k))(many, keys))


def test_a_flip_is_numpys_in_half_of_the_draws() -> None:
    made = draws(HorizontalFlip())
    flipped = (made == PICTURE[:, ::-1]).all((1, 2, 3))
    assert (flipped | (made == PICTURE).all((1, 2, 3))).all()
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / 20  # four standard deviations of 400 draws


def test_shifts_are_numpys_crops_of_the_mirrored_border_and_all_occur() -> None:
    made = draws(RandomShift(1))
    padded = np.pad(PICTURE, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    crops = [padded[i : i + 6, j : j + 8] for i in range(3) for j in range(3)]
    counts = [(made == crop).all((1, 2, 3)).sum() for crop in crops]
    assert sum(counts) == 400
    assert min(counts) > 15  # of 44 expected, a standard deviation of 6


def test_an_affine_map_is_scipys_within_its_amounts() -> None:
    """Two channels are ramps and tell where each pixel comes from; SciPy then moves the third."""
    y, x = np.indices((21, 27))
    waves = 120 + 60 * np.sin(y / 3) * np.cos(x / 4)
    picture = np.stack([10 * y, 9 * x, waves], axis=-1).round().astype(np.uint8)
    inner = (abs(y - 10) < 6) & (abs(x - 13) < 8)  # whatever the map, not from the border
    pixels = np.stack([y - 10, x - 13, np.ones_like(x)], axis=-1)[inner]
    angles, stretches, shifts = [], [], []
    affine = RandomAffine(degrees=10.0, stretch=0.2, shift=1.5)
    for made in draws(affine, image=picture, count=60):
        sources = made[inner][:, :2] / [10, 9] - [10, 13]
        fit = np.linalg.lstsq(pixels, sources, rcond=None)[0]
        places = pixels @ fit + [10, 13]
        scipys = ndimage.map_coordinates(picture[..., 2] + 0.0, places.T, order=1)
        assert abs(made[inner][:, 2] - scipys).max() < 1.5  # its rounding and the ramps'
        (a, c), (b, d), shift = fit
        np.testing.assert_allclose(np.arctan2(-b, a), np.arctan2(c, d), atol=0.02)  # one angle
        angles.append(np.degrees(np.arctan2(c, d)))
        stretches.append([np.log(np.hypot(a, b)), np.log(np.hypot(c, d))])
        shifts.append(shift)
    for found, limit in ((angles, 10.0), (stretches, 0.2), (shifts, 1.5)):
        assert -1.03 * limit < np.min(found) < -0.8 * limit
        assert 0.8 * limit < np.max(found) < 1.03 * limit
    for pair in (stretches, shifts):
        assert abs(np.corrcoef(np.transpose(pair))[0, 1]) < 0.5  # each way by itself


def test_the_border_of_an_affine_map_mirrors_the_image() -> None:
    """Rows of one grey stay so when the image is made narrower, up to its last column."""
    rows_of_one_grey = np.repeat(np.arange(0, 80, 10, dtype=np.uint8), 8).reshape(8, 8, 1)
    affine = RandomAffine(degrees=0.0, stretch=0.5, shift=0.0)
    made = draws(affine, image=rows_of_one_grey, count=50)
    assert (made == made[:, :, :1]).all()
    assert len(np.unique(made)) > 20


@pytest.mark.parametrize("augmentation", [BrightnessJitter(0.2), ColourJitter(0.2)])
def test_jitters_scale_within_their_amount(augmentation: Any) -> None:
    grey = np.full((2, 2, 3), 100, np.uint8)
    made = draws(augmentation, image=grey).astype(int)
    assert (made == made[:, :1, :1]).all()  # every pixel alike
    one_factor = (made[..., :1] == made).all((1, 2, 3)).mean()
    assert one_factor == 1 if isinstance(augmentation, BrightnessJitter) else one_factor < 0.1
    channel = made[:, 0, 0, 0]
    assert (channel.min(), channel.max()) == (80, 120)
    assert abs(channel.mean() - 100) < 4 * 40 / np.sqrt(12 * 400)
    white = draws(augmentation, image=np.full((2, 2, 3), 255, np.uint8))
    assert white.max() == 255  # what is brighter is cut off and does not come round to black
    assert white.min() >= 203


def test_each_augmentation_of_a_row_has_its_own_noise() -> None:
    """Two flips cancel in half of the draws, and not always."""
    twice = (draws(HorizontalFlip(), HorizontalFlip()) == PICTURE).all((1, 2, 3)).mean()
    assert 0.4 < twice < 0.6


def test_nothing_to_do_leaves_the_bytes() -> None:
    assert (draws(count=3) == PICTURE).all()
    idle = (RandomShift(0), RandomAffine(0.0, 0.0, 0.0), BrightnessJitter(0.0))
    assert (draws(*idle, count=3) == PICTURE).all()


@pytest.mark.parametrize(
    ("augmentation", "sentence"),
    [
        (RandomShift(4), r"RandomShift by 4 pixels does not fit images of shape \(4, 4, 1\)"),
        (lambda image, key: image[1:], r"makes uint8 \(3, 4, 1\) of uint8 \(4, 4, 1\)"),
        (lambda image, key: image / 255, r"makes float32 \(4, 4, 1\)"),
    ],
)
def test_what_does_not_keep_the_images_is_refused(augmentation: Any, sentence: str) -> None:
    with pytest.raises(VaeJaxError, match=sentence):
        dataclasses.replace(tiny.experiment(), augment=(augmentation,))


def augmented_experiment() -> Experiment:
    parts = (HorizontalFlip(), RandomShift(1), BrightnessJitter(0.2))
    return dataclasses.replace(tiny.experiment(num_steps=20), augment=parts)


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in rows(run.folder.path) if "loss" in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Augmented training on one device, without a break."""
    with on_devices(1):
        return train(augmented_experiment(), tmp_path_factory.mktemp("runs") / "whole")


@pytest.mark.slow
def test_training_is_augmented_and_validation_is_not(whole: Run, tmp_path: Path) -> None:
    with on_devices(1):
        plain = train(tiny.experiment(num_steps=20), tmp_path / "plain")
        values = [make_validation(run.experiment)(whole.state.variables) for run in (plain, whole)]
    assert losses(plain) != losses(whole)
    assert values[0] == values[1]


@pytest.mark.slow
def test_augmented_training_is_the_same_after_a_break(whole: Run, tmp_path: Path) -> None:
    """To the bit, after SIGTERM."""
    with on_devices(1):
        with pytest.raises(Interrupted), interrupted_after(10):
            train(augmented_experiment(), tmp_path / "broken")
        train(augmented_experiment(), tmp_path / "broken")
    assert summary(tmp_path / "broken") == summary(whole.folder.path)


@pytest.mark.slow
def test_augmented_training_is_the_same_on_eight_devices(whole: Run, tmp_path: Path) -> None:
    """To float tolerance."""
    with on_devices(8):
        eight = train(augmented_experiment(), tmp_path / "eight")
    np.testing.assert_allclose(losses(eight), losses(whole), rtol=1e-4)
