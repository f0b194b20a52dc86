"""A number with its 95 % confidence interval, by the jackknife or for a proportion."""

import math
from dataclasses import dataclass

import numpy as np

GROUPS = 20  # that the jackknife leaves out, one at a time
T_QUANTILE = 2.093024  # 97.5 % of Student's t with GROUPS - 1 degrees of freedom
NORMAL_QUANTILE = 1.959964


@dataclass(frozen=True)
class Estimate:
    """What a sample says of a quantity.

    Attributes:
        value: the estimate, its bias taken off.
        low: lower end of the 95 % confidence interval.
        high: upper end.
        plain: the quantity of this very sample, as its paper defines it, bias and all.
    """

    value: float
    low: float
    high: float
    plain: float

    @classmethod
    def jackknife(cls, plain: float, without: np.ndarray, unbiased: bool = False) -> "Estimate":
        """T - b, b = (G - 1)(mean_g T_g - T), se^2 = (G - 1)/G sum_g (T_g - mean T_g)^2.

        What is left of a bias c/N is of the order 1/N^2. Where the estimator does not move to
        first order, as at distances of zero, the interval is too wide, never too narrow on average.

        Args:
            plain: T, of the whole sample.
            without: T_g `[G]`, each without one of G = 20 equal groups.
            unbiased: T has no bias to take off.

        References:
            Efron & Stein (1981), The jackknife estimate of variance.
        """
        number = len(without)
        bias = 0.0 if unbiased else (number - 1) * (without.mean() - plain)
        half = T_QUANTILE * math.sqrt((number - 1) * without.var())
        value = float(plain - bias)
        return cls(value, value - half, value + half, float(plain))

    @classmethod
    def proportion(cls, hits: np.ndarray) -> "Estimate":
        """Of independent trials, booleans `[N]`.

        References:
            Wilson (1927), Probable inference, the law of succession, and statistical inference.
        """
        p, n, q = float(hits.mean()), len(hits), NORMAL_QUANTILE**2
        middle = (p + q / (2 * n)) / (1 + q / n)
        half = math.sqrt(q * (p * (1 - p) / n + q / (4 * n**2))) / (1 + q / n)
        return cls(p, middle - half, middle + half, p)

    @classmethod
    def mean(cls, values: np.ndarray) -> "Estimate":
        """Of independent values `[N]`, N > 1; of infinite ones, no interval."""
        mean = float(values.mean())
        if not math.isfinite(mean):
            return cls(mean, math.nan, math.nan, mean)
        half = NORMAL_QUANTILE * float(values.std(ddof=1)) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half, mean)
