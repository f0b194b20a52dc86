"""Whether a conditional model's samples show the class asked for, as judged by a classifier.

    python scripts/tell_apart.py runs/conditional/fashion_mnist

A classifier (one hidden layer) learns the classes from real images of the training split alone. It
then classifies real test images, which shows how good it is, and samples (means of p(x|z, y), z
from the prior), the same number for each of C classes, so that chance is 1/C. Intervals are exact
binomial intervals (Clopper & Pearson 1934).
"""

import warnings
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from vae_jax import generate, load_run
from vae_jax.run import Run

CONFIDENCE = 0.95


def pixels(images: np.ndarray) -> np.ndarray:
    """Images `[N, H, W, C]` in [0, 1] as vectors."""
    return images.reshape(len(images), -1)


def learn(run: Run, num_train: int, hidden: int, seed: int) -> MLPClassifier:
    """A classifier trained on at most `num_train` training images of a run's data."""
    train = run.experiment.data.train
    assert train.labels is not None
    order = np.random.default_rng(seed).permutation(len(train))[:num_train]
    classifier = MLPClassifier((hidden,), early_stopping=len(order) > 1000, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(pixels(train.images[order] / np.float32(255)), train.labels[order])
    return classifier


def named(classifier: MLPClassifier, images: np.ndarray) -> np.ndarray:
    """The classes `[N]` to which the classifier assigns images in [0, 1]."""
    return np.asarray(classifier.predict(pixels(images)))


def tell_apart(
    run: Run, *, per_class: int = 100, num_train: int = 20_000, hidden: int = 256, seed: int = 0
) -> Table:
    """The accuracy of the classifier on real test images, on samples, and on those of each class.

    Args:
        run: the run of a conditional model.
        per_class: the number of samples of each class.
        num_train: the largest number of training images for the classifier.
        hidden: the number of units of its hidden layer.
        seed: the seed of the classifier and of the samples.

    Raises:
        VaeJaxError: the model is not conditional.
    """
    names, test = run.class_names, run.experiment.data.test
    assert test.labels is not None
    classifier = learn(run, num_train, hidden, seed)
    labels = np.repeat(np.arange(len(names)), per_class)
    samples = generate.sample(run, len(labels), seed, labels.tolist())
    right = named(classifier, samples) == labels
    really_right = named(classifier, test.images / np.float32(255)) == test.labels
    groups = {"real test images": really_right, "samples": right}
    groups |= {f"samples of {name}": right[labels == y] for y, name in enumerate(names)}
    table = Table(title=f"{run.folder.path}: {run.checkpoint}, step {int(run.state.step[0])}")
    for column in ("", "named correctly", "accuracy", f"{CONFIDENCE:.0%} interval", "p, by chance"):
        table.add_column(column)
    for group, each in groups.items():
        test_of_chance = binomtest(int(each.sum()), len(each), 1 / len(names), "greater")
        interval = binomtest(int(each.sum()), len(each)).proportion_ci(CONFIDENCE)
        table.add_row(
            group,
            f"{each.sum():,} of {len(each):,}",
            f"{each.mean():.3f}",
            f"{interval.low:.3f} to {interval.high:.3f}",
            f"{test_of_chance.pvalue:.1g}",
        )
    table.caption = f"Chance: {1 / len(names):.3f}, of {len(names)} classes."
    return table


def main(
    run: tyro.conf.Positional[Path], per_class: int = 100, num_train: int = 20_000, seed: int = 0
) -> None:
    """Print how often a classifier of real images assigns samples to the class asked for.

    Args:
        run: the run folder of a conditional model.
        per_class: the number of samples of each class.
        num_train: the largest number of training images for the classifier.
        seed: the seed of the classifier and of the samples.
    """
    table = tell_apart(load_run(run), per_class=per_class, num_train=num_train, seed=seed)
    Console(width=110).print(table)


if __name__ == "__main__":
    tyro.cli(main)
