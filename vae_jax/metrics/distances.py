"""Distances between two sets of features, each an estimate with its 95 % confidence interval."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from vae_jax import given
from vae_jax.errors import VaeJaxError

GROUPS = 20  # the jackknife leaves them out one at a time
MIN_IMAGES = 2 * GROUPS
IMAGES_PER_FEATURE = 2  # with fewer images a Fréchet distance has no interval
T_QUANTILE = 2.093024  # 97.5 % of Student's t with GROUPS - 1 degrees of freedom
NORMAL_QUANTILE = 1.959964
NEIGHBOURS = 3
ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Estimate:
    """A quantity estimated from a sample.

    Attributes:
        value: the estimate, corrected for its bias.
        low: the lower end of the 95 % confidence interval; nan if there is none.
        high: the upper end; nan if there is none.
        plain: the quantity of this sample, biased, as its paper defines it.
    """

    value: float
    low: float
    high: float
    plain: float

    @classmethod
    def jackknife(cls, plain: float, without: np.ndarray, unbiased: bool = False) -> "Estimate":
        """T - b, b = (G - 1)(mean_g T_g - T), se^2 = (G - 1)/G sum_g (T_g - mean T_g)^2.

        The remainder of a bias c/N is of order 1/N^2. If the estimator does not vary to first
        order, as at a distance of zero, the interval is too wide, never too narrow on average.

        Args:
            plain: T, of the whole sample.
            without: T_g `[G]`, each of the sample without one of G = 20 equal groups.
            unbiased: whether T has no bias to correct.

        References:
            Efron & Stein (1981), "The jackknife estimate of variance".
        """
        number = len(without)
        bias = 0.0 if unbiased else (number - 1) * (without.mean() - plain)
        half = T_QUANTILE * math.sqrt((number - 1) * without.var())
        value = float(plain - bias)
        return cls(value, value - half, value + half, float(plain))

    @classmethod
    def proportion(cls, hits: np.ndarray) -> "Estimate":
        """The share of hits in independent trials, booleans `[N]`, with Wilson's interval.

        References:
            Wilson (1927), "Probable inference, the law of succession, and statistical inference".
        """
        p, n, q = float(hits.mean()), len(hits), NORMAL_QUANTILE**2
        middle = (p + q / (2 * n)) / (1 + q / n)
        half = math.sqrt(q * (p * (1 - p) / n + q / (4 * n**2))) / (1 + q / n)
        return cls(p, middle - half, middle + half, p)

    @classmethod
    def mean(cls, values: np.ndarray) -> "Estimate":
        """The mean of independent values `[N]`, N > 1; without an interval if it is infinite."""
        mean = float(values.mean())
        if not math.isfinite(mean):
            return cls(mean, math.nan, math.nan, mean)
        half = NORMAL_QUANTILE * float(values.std(ddof=1)) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half, mean)


def frechet_distance(x: np.ndarray, y: np.ndarray) -> Estimate:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), of means and covariances.

    It is the squared 2-Wasserstein distance between two Gaussians. With N images it is too large by
    about c/N: `plain` includes this bias, and the jackknife removes it from `value`. If N < 2 F it
    removes only a part, so there is no interval: at N = F/2 none would contain the truth.

    Args:
        x: features `[N, F]`, N >= 40.
        y: features `[M, F]`, M >= 40.

    Raises:
        VaeJaxError: the two sets cannot be compared.

    References:
        Heusel et al. (2017), "GANs trained by a two time-scale update rule converge to a local Nash
            equilibrium".
        Chong & Forsyth (2020), "Effectively unbiased FID and Inception Score and where to find
            them".
    """
    x, y = _checked(x, y)
    without = [_frechet(_without(x, group), _without(y, group)) for group in range(GROUPS)]
    found = Estimate.jackknife(_frechet(x, y), np.array(without))
    if min(len(x), len(y)) < IMAGES_PER_FEATURE * x.shape[1]:
        return dataclasses.replace(found, low=math.nan, high=math.nan)
    return found


def _without(x: np.ndarray, group: int) -> np.ndarray:
    return np.delete(x, np.s_[group::GROUPS], axis=0)


def _frechet(x: np.ndarray, y: np.ndarray) -> float:
    a, b = _factor(x), _factor(y)
    shift = x.mean(0) - y.mean(0)
    # With S_x = A A' and S_y = B B', the eigenvalues of S_x S_y are the squared singular values of
    # A'B: no root of a matrix that rounding has left indefinite.
    overlap = np.linalg.svd(a.T @ b, compute_uv=False).sum()
    return float(shift @ shift + (a**2).sum() + (b**2).sum() - 2 * overlap)


def _factor(x: np.ndarray) -> np.ndarray:
    """A `[F, min(N, F)]` with A A' the covariance of the rows."""
    return np.asarray(np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r")).T


def kernel_distance(x: np.ndarray, y: np.ndarray) -> Estimate:
    """E k(x, x') + E k(y, y') - 2 E k(x, y), k(a, b) = (a.b / F + 1)^3, without bias.

    It is the squared maximum mean discrepancy, each expectation over pairs of different images;
    negative about half the time if the two distributions are equal. A set compared with itself,
    when the last term includes each image paired with itself, has
    -2/N (mean_i k(x_i, x_i) - mean_i<j k(x_i, x_j)).

    Args:
        x: features `[N, F]`, N >= 40.
        y: features `[M, F]`, M >= 40.

    Raises:
        VaeJaxError: the two sets cannot be compared.

    References:
        Binkowski et al. (2018), "Demystifying MMD GANs".
        Gretton et al. (2012), "A kernel two-sample test".
    """
    x, y = _checked(x, y)
    xx, yy, xy = _kernel_sums(x, x), _kernel_sums(y, y), _kernel_sums(x, y)
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


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums of k over the pairs of a group of x and a group of y, `[G, G]`."""
    rows = []
    for first in range(GROUPS):
        columns = _kernel(x[first::GROUPS] @ y.T / x.shape[1]).sum(0)
        rows.append([columns[second::GROUPS].sum() for second in range(GROUPS)])
    return np.array(rows)


def precision_recall(
    real: np.ndarray, generated: np.ndarray, neighbours: int = NEIGHBOURS
) -> tuple[Estimate, Estimate]:
    """The share of generated images on the real manifold, and of real ones on the generated.

    The manifold of a set is the union of balls around its features, each with the distance to the
    k-th nearest other feature as its radius. The intervals are those of a proportion, with the
    manifold considered as given.

    Args:
        real: features `[N, F]`, N >= 40.
        generated: features `[M, F]`, M >= 40; a fair comparison has M = N.
        neighbours: k.

    Returns:
        Precision and recall.

    Raises:
        VaeJaxError: the two sets cannot be compared.

    References:
        Kynkäänniemi et al. (2019), "Improved precision and recall metric for assessing generative
            models".
    """
    real, generated = _checked(real, generated)
    most = min(len(real), len(generated)) - 1
    if not 1 <= neighbours <= most:
        raise VaeJaxError(f"neighbours is {neighbours}: give 1 to {most}, the other images.")
    centre = real.mean(0)  # squares of values near zero lose the least to rounding
    real, generated = real - centre, generated - centre
    return (
        Estimate.proportion(_on_manifold(generated, real, neighbours)),
        Estimate.proportion(_on_manifold(real, generated, neighbours)),
    )


def _on_manifold(points: np.ndarray, manifold: np.ndarray, neighbours: int) -> np.ndarray:
    """Whether each of the points `[N]` lies in a ball of the manifold."""
    radii = []
    for first in range(0, len(manifold), ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(manifold)))
        squares = _squared_distances(manifold[rows], manifold)
        squares[np.arange(len(rows)), rows] = np.inf  # a point is no neighbour of itself
        radii.append(np.partition(squares, neighbours - 1, axis=1)[:, neighbours - 1])
    inside = [
        (_squared_distances(points[first : first + ROWS_AT_ONCE], manifold) <= np.hstack(radii))
        for first in range(0, len(points), ROWS_AT_ONCE)
    ]
    return np.concatenate([balls.any(1) for balls in inside])


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x_i - y_j|^2, `[n, m]`, for `[n, F]` and `[m, F]` in float64."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features as float64.

    Raises:
        VaeJaxError: they are not `[N, F]` and `[M, F]` with at least 40 rows each, all finite.
    """
    x, y = (np.asarray(given.array(each, "A set of features", "[N, F]")) for each in (x, y))
    for features in (x, y):
        if features.dtype.kind not in "fiu":
            raise VaeJaxError(f"Features are {features.dtype}: give numbers [N, F].")
        if features.ndim != 2 or len(features) < MIN_IMAGES or features.shape[1] != x.shape[-1]:
            raise VaeJaxError(
                f"Features {x.shape} and {y.shape} cannot be compared: give [N, F] and [M, F] of "
                f"at least {MIN_IMAGES} images each."
            )
        if not np.isfinite(features).all():
            raise VaeJaxError("A feature is not finite: fix the function that computes it.")
    return x.astype(np.float64), y.astype(np.float64)
