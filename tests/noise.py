"""Whether noise is what it should be, whatever the keys that it is drawn from."""

import numpy as np
from scipy import stats


def assert_standard_normal(noise: np.ndarray) -> None:
    """Rows `[N, columns]` of independent standard normals, of which no two are the same.

    Means, variances and correlations within six standard errors, and Kolmogorov-Smirnov at 1e-4.
    """
    count, columns = noise.shape
    assert np.abs(noise.mean(0)).max() < 6 / np.sqrt(count)
    assert np.abs(noise.var(0) - 1).max() < 6 * np.sqrt(2 / count)
    correlations = np.corrcoef(noise.T).reshape(columns, columns) - np.eye(columns)
    assert np.abs(correlations).max() < 6 / np.sqrt(count)
    assert len(np.unique(noise.round(2), axis=0)) == count
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
