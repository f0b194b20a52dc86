"""Distances between sets of features and between images: SciPy, brute force, simulation."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import linalg, ndimage, stats

from vae_jax import VaeJaxError, metrics
from vae_jax.metrics.distances import GROUPS, T_QUANTILE


def features(count: int, seed: int, width: int = 6, shift: float = 0.0) -> np.ndarray:
    """Correlated normal features."""
    mix = np.random.default_rng(99).normal(size=(width, width))
    return np.random.default_rng(seed).normal(size=(count, width)) @ mix + shift


@pytest.mark.parametrize("width", [1, 6, 40])
def test_the_frechet_distance_is_scipys(width: int) -> None:
    x, y = features(200, 0, width), 1.3 * features(150, 1, width)[:, ::-1] + 0.5
    s_x, s_y = (np.cov(each, rowvar=False).reshape(width, width) for each in (x, y))
    root: Any = linalg.sqrtm(s_x @ s_y)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s_x + s_y - 2 * root.real)
    found = metrics.frechet_distance(x, y)
    assert found.plain == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(y, x).plain == pytest.approx(expected, rel=1e-6)


def test_a_set_has_no_frechet_distance_from_itself_even_where_it_is_flat() -> None:
    """Features that repeat each other make the covariance singular."""
    x = features(100, 0)
    flat = np.concatenate([x, x[:, :3], np.ones((100, 2))], 1)
    found = metrics.frechet_distance(flat, flat)
    np.testing.assert_allclose([found.plain, found.value, found.low, found.high], 0, atol=1e-9)


def test_the_jackknife_takes_the_bias_off_and_its_interval_holds() -> None:
    """Normal sets whose distance has a closed form, drawn 200 times."""
    scale, shift, width, count = 1.5, 0.3, 5, 60
    truth = width * (shift**2 + (scale - 1) ** 2)
    generator = np.random.default_rng(0)
    found = []
    for _ in range(200):
        x, y = generator.normal(size=(2, count, width))
        found.append(metrics.frechet_distance(x, scale * y + shift))
    plain, value = (np.array([getattr(f, name) for f in found]) for name in ("plain", "value"))
    error = value.std() / np.sqrt(len(value))
    assert plain.mean() - truth > 8 * error
    assert abs(value.mean() - truth) < 3.5 * error
    assert 0.90 < np.mean([f.low < truth < f.high for f in found]) < 0.99


@pytest.mark.parametrize("scales", [np.ones(30), 1 / np.arange(1, 31)])
def test_a_frechet_distance_has_an_interval_that_holds_or_none(scales: np.ndarray) -> None:
    """Two sets from one distribution: the truth is zero."""
    generator = np.random.default_rng(0)
    for count in (40, 59, 60, 90):
        held = []
        for _ in range(40):
            x, y = generator.normal(size=(2, count, 30)) * scales
            found = metrics.frechet_distance(x, y)
            held.append(found.low < 0 < found.high)
            assert np.isnan([found.low, found.high]).all() == (count < 60)
        assert np.mean(held) == 0 if count < 60 else np.mean(held) >= 0.9
    few, many = generator.normal(size=(59, 30)), generator.normal(size=(90, 30))
    assert np.isnan(metrics.frechet_distance(few, many).low)
    assert np.isnan(metrics.frechet_distance(many, few).low)


def brute_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [
            (np.dot(p, q) / len(p) + 1) ** 3
            for (i, p), (j, q) in product(enumerate(a), enumerate(b))
            if not (same and i == j)
        ]
        return float(np.mean(pairs))

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_the_kernel_distance_and_its_jackknife_are_those_of_all_pairs() -> None:
    x, y = features(43, 0), features(51, 1, shift=0.4)
    found = metrics.kernel_distance(x, y)
    assert found.value == found.plain == pytest.approx(brute_kernel_distance(x, y), rel=1e-9)
    without = [
        brute_kernel_distance(*(np.delete(f, np.s_[g::GROUPS], 0) for f in (x, y)))
        for g in range(GROUPS)
    ]
    error = np.std(without) * np.sqrt(GROUPS - 1)
    half = stats.t.ppf(0.975, GROUPS - 1) * error
    np.testing.assert_allclose([found.low, found.high], found.value + half * np.array([-1, 1]))


def test_the_kernel_distance_is_unbiased_and_its_interval_holds() -> None:
    """Sets drawn from three points, whose distance in the population is a sum of nine terms."""
    points = np.array([[1.0, -1.0], [0.5, 2.0], [-1.5, 0.0]])
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    kernel = (points @ points.T / 2 + 1) ** 3
    truth = (p - q) @ kernel @ (p - q)
    generator = np.random.default_rng(0)
    found = [
        metrics.kernel_distance(*(points[generator.choice(3, 45, p=w)] for w in (p, q)))
        for _ in range(300)
    ]
    value = np.array([f.value for f in found])
    assert abs(value.mean() - truth) < 3 * value.std() / np.sqrt(len(value))
    assert 0.90 < np.mean([f.low < truth < f.high for f in found]) < 0.995


def test_a_set_has_the_stated_kernel_distance_from_itself() -> None:
    x = features(50, 0)
    kernel = (x @ x.T / 6 + 1) ** 3
    between = kernel[np.triu_indices(50, 1)].mean()
    expected = -2 / 50 * (kernel.diagonal().mean() - between)
    assert metrics.kernel_distance(x, x).value == pytest.approx(expected, rel=1e-9)


def test_precision_and_recall_are_those_of_brute_force() -> None:
    real, generated = features(47, 0), features(60, 1, shift=1.0)

    def within(points: np.ndarray, manifold: np.ndarray) -> float:
        radii = [sorted(np.linalg.norm(manifold - centre, axis=1))[3] for centre in manifold]
        hits = [
            any(np.linalg.norm(point - c) <= r for c, r in zip(manifold, radii, strict=True))
            for point in points
        ]
        return float(np.mean(hits))

    precision, recall = metrics.precision_recall(real, generated)
    assert precision.value == within(generated, real)
    assert recall.value == within(real, generated)
    assert 0 < precision.value < 1
    for found, count in ((precision, 60), (recall, 47)):
        wilson = stats.binomtest(round(found.value * count), count).proportion_ci(method="wilson")
        np.testing.assert_allclose([found.low, found.high], wilson, rtol=1e-5)


def test_one_of_two_modes_is_precise_and_recalls_half() -> None:
    x = features(400, 0)
    real = np.concatenate([x[:200], x[200:] + 100])
    precision, recall = metrics.precision_recall(real, features(400, 1))
    assert precision.value > 0.7
    assert 0.35 < recall.value <= 0.5


def test_quantiles_are_scipys() -> None:
    assert pytest.approx(stats.t.ppf(0.975, GROUPS - 1), rel=1e-6) == T_QUANTILE
    values = np.random.default_rng(0).normal(3, 2, 50)
    found = metrics.Estimate.mean(values)
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-6)


# --- Reconstructions ----------------------------------------------------------------------------


def test_the_nearest_is_that_of_all_pairs() -> None:
    """Squared errors pair by pair; an image is its own nearest, of two equal ones the first."""
    generator = np.random.default_rng(0)
    images, others = (generator.integers(0, 256, (n, 8, 9, 3)).astype(np.uint8) for n in (5, 12))
    others[7] = others[3] = images[2]
    errors = (images[:, None].astype(float) - others) ** 2
    np.testing.assert_array_equal(
        metrics.nearest_pictures(images, others), errors.sum((2, 3, 4)).argmin(1)
    )
    assert metrics.nearest_pictures(images, others)[2] == 3
    with pytest.raises(VaeJaxError, match=r"no nearest ones among candidates .* the same shape"):
        metrics.nearest_pictures(images, others[:, :7])


@pytest.mark.parametrize("shape", [(14, 12, 1), (8, 9, 3), (13, 8, 3)])
def test_ssim_is_that_of_a_loop_over_windows(shape: tuple[int, int, int]) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (2, 2, *shape)).astype(np.uint8)
    y = (0.7 * x + 0.3 * y).astype(np.uint8)
    side = min(11, *(n if n % 2 else n - 1 for n in shape[:2]))
    kernel = np.zeros((side, side))
    kernel[side // 2, side // 2] = 1
    kernel = ndimage.gaussian_filter(kernel, 1.5, mode="constant", truncate=20)
    kernel /= kernel.sum()
    c_1, c_2 = 6.5025, 58.5225  # of 8-bit images (Wang et al. 2004, section III)
    for n, found in enumerate(metrics.ssim(x, y)):
        local = []
        corners = product(range(shape[0] - side + 1), range(shape[1] - side + 1), range(shape[2]))
        for i, j, c in corners:
            a, b = (im[n, i : i + side, j : j + side, c].astype(float) for im in (x, y))
            m_a, m_b = (kernel * a).sum(), (kernel * b).sum()
            v_a, v_b = (kernel * (a - m_a) ** 2).sum(), (kernel * (b - m_b) ** 2).sum()
            v_ab = (kernel * (a - m_a) * (b - m_b)).sum()
            local.append(
                (2 * m_a * m_b + c_1)
                * (2 * v_ab + c_2)
                / ((m_a**2 + m_b**2 + c_1) * (v_a + v_b + c_2))
            )
        assert found == pytest.approx(np.mean(local), abs=1e-9)


def test_ssim_and_psnr_of_equal_and_of_shifted_images() -> None:
    x = np.full((2, 16, 16, 3), 100, np.uint8)
    x[1] = np.random.default_rng(0).integers(0, 200, (16, 16, 3))
    np.testing.assert_allclose(metrics.ssim(x, x), 1)
    assert np.isinf(metrics.psnr(x, x)).all()
    np.testing.assert_allclose(metrics.psnr(x + np.uint8(16), x), 10 * np.log10(255**2 / 16**2))
    flat = metrics.ssim(x[:1] + np.uint8(16), x[:1])
    np.testing.assert_allclose(flat, (2 * 100 * 116 + 6.5025) / (100**2 + 116**2 + 6.5025))


def test_what_cannot_be_compared_is_refused() -> None:
    few, wide = features(39, 0), features(40, 0, 7)
    for distance in (metrics.frechet_distance, metrics.kernel_distance, metrics.precision_recall):
        for x, y in ((few, wide), (features(40, 0), wide)):
            with pytest.raises(VaeJaxError, match="cannot be compared"):
                distance(x, y)
        with pytest.raises(VaeJaxError, match=r"give \[N, F\]"):
            distance(wide, wide[0])
        with pytest.raises(VaeJaxError, match="not finite"):
            distance(wide, np.where(wide > 1, np.nan, wide))
    image = np.zeros((1, 8, 8, 1), np.uint8)
    for error in (metrics.psnr, metrics.ssim):
        with pytest.raises(VaeJaxError, match="give uint8 from 0 to 255"):
            error(image, image / 255)
        with pytest.raises(VaeJaxError, match="give both the same"):
            error(image, image[:, :7])
