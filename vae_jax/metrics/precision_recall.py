"""Precision and recall of generated pictures."""

import numpy as np

from vae_jax.metrics.estimate import Estimate
from vae_jax.metrics.spaces import check_features

NEIGHBOURS = 3
ROWS_AT_ONCE = 1000


def precision_recall(
    real: np.ndarray, generated: np.ndarray, neighbours: int = NEIGHBOURS
) -> tuple[Estimate, Estimate]:
    """The generated images within the manifold of the real ones, and the real ones within theirs.

    The manifold of a set is the union of balls around its features, each as large as the distance
    to the k-th nearest other one. The interval is that of the proportion, the manifold being given.

    Args:
        real: features `[N, F]`, N >= 40.
        generated: features `[M, F]`; a fair comparison has M = N.
        neighbours: k.

    Returns:
        Precision and recall.

    Raises:
        VaeJaxError: they are no two such sets.

    References:
        Kynkäänniemi et al. (2019), Improved precision and recall metric for assessing generative
        models.
    """
    real, generated = check_features(real, generated)
    centre = real.mean(0)  # squares of what is near zero lose the least to rounding
    real, generated = real - centre, generated - centre
    return (
        Estimate.proportion(_within(generated, real, neighbours)),
        Estimate.proportion(_within(real, generated, neighbours)),
    )


def _within(points: np.ndarray, manifold: np.ndarray, neighbours: int) -> np.ndarray:
    """Which points `[N]` lie in a ball of the manifold."""
    radii = []
    for first in range(0, len(manifold), ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(manifold)))
        squares = _squared_distances(manifold[rows], manifold)
        squares[np.arange(len(rows)), rows] = np.inf  # itself is no neighbour
        radii.append(np.partition(squares, neighbours - 1, axis=1)[:, neighbours - 1])
    inside = [
        (_squared_distances(points[first : first + ROWS_AT_ONCE], manifold) <= np.hstack(radii))
        for first in range(0, len(points), ROWS_AT_ONCE)
    ]
    return np.concatenate([balls.any(1) for balls in inside])


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)
