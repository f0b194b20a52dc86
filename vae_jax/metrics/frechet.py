"""The Fréchet distance between two sets of features."""

from typing import Any

import numpy as np

from vae_jax.metrics.estimate import GROUPS, Estimate
from vae_jax.metrics.spaces import check_features


def frechet_distance(x: np.ndarray, y: np.ndarray) -> Estimate:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), of means and covariances.

    The squared 2-Wasserstein distance of two Gaussians. Of N images it is too large by about c/N;
    `plain` has that bias, of `value` the jackknife has taken it off, if N is well above F.

    Args:
        x: features `[N, F]`, N >= 40.
        y: features `[M, F]`, M >= 40.

    Raises:
        VaeJaxError: they are no two such sets.

    References:
        Heusel et al. (2017), GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium. Chong & Forsyth (2020), Effectively unbiased FID and Inception Score.
    """
    x, y = check_features(x, y)
    without = [_distance(_without(x, group), _without(y, group)) for group in range(GROUPS)]
    return Estimate.jackknife(_distance(x, y), np.array(without))


def _without(x: np.ndarray, group: int) -> np.ndarray:
    return np.delete(x, np.s_[group::GROUPS], axis=0)


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    a, b = _factor(x), _factor(y)
    shift = x.mean(0) - y.mean(0)
    # With S_x = A A' and S_y = B B', the eigenvalues of S_x S_y are the squared singular values of
    # A'B: no root of a matrix that rounding has left indefinite.
    overlap = np.linalg.svd(a.T @ b, compute_uv=False).sum()
    return float(shift @ shift + (a**2).sum() + (b**2).sum() - 2 * overlap)


def _factor(x: np.ndarray) -> np.ndarray:
    """A `[F, min(N, F)]` with A A' the covariance of the rows."""
    triangle: Any = np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r")
    return triangle.T
