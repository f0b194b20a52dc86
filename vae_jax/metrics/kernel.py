"""The kernel distance between two sets of features."""

import numpy as np

from vae_jax.metrics.estimate import GROUPS, Estimate
from vae_jax.metrics.spaces import check_features


def kernel_distance(x: np.ndarray, y: np.ndarray) -> Estimate:
    """E k(x, x') + E k(y, y') - 2 E k(x, y), k(a, b) = (a.b / F + 1)^3, without bias.

    The squared maximum mean discrepancy, each expectation over pairs of different images; below
    zero about half the time where the two distributions are equal. A set against itself, whose
    pairs in the last term include each image with itself, has
    -2/N (mean_i k(x_i, x_i) - mean_i<j k(x_i, x_j)).

    Args:
        x: features `[N, F]`, N >= 40.
        y: features `[M, F]`, M >= 40.

    Raises:
        VaeJaxError: they are no two such sets.

    References:
        Binkowski et al. (2018), Demystifying MMD GANs. Gretton et al. (2012), A kernel two-sample
        test.
    """
    x, y = check_features(x, y)
    xx, yy, xy = _sums(x, x), _sums(y, y), _sums(x, y)
    for sums, features in ((xx, x), (yy, y)):
        squares = _kernel((features**2).sum(1) / features.shape[1])
        sums[np.diag_indices(GROUPS)] -= [squares[g::GROUPS].sum() for g in range(GROUPS)]
    sizes = [np.array([len(f[g::GROUPS]) for g in range(GROUPS)]) for f in (x, y)]

    def discrepancy(kept: np.ndarray) -> float:
        n, m = (size[kept].sum() for size in sizes)
        within_x, within_y, between = (sums[np.ix_(kept, kept)].sum() for sums in (xx, yy, xy))
        return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)

    groups = np.arange(GROUPS)
    without = np.array([discrepancy(np.delete(groups, group)) for group in groups])
    return Estimate.jackknife(discrepancy(groups), without, unbiased=True)


def _kernel(mean_product: np.ndarray) -> np.ndarray:
    return (mean_product + 1) ** 3


def _sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums of k over the pairs of a group of x and a group of y, `[G, G]`."""
    rows = []
    for first in range(GROUPS):
        columns = _kernel(x[first::GROUPS] @ y.T / x.shape[1]).sum(0)
        rows.append([columns[second::GROUPS].sum() for second in range(GROUPS)])
    return np.array(rows)
