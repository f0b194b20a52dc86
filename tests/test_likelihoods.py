"""Properties of every public likelihood, from its declared support and measure.

A new likelihood in `vae_jax/__init__.pyi` is tested by all of this without a line here.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import Bernoulli, DiscretizedLogistic, Gaussian, HeteroscedasticGaussian
from vae_jax.compatibility import public
from vae_jax.data import PROTOCOLS

N, F = 4, 3  # examples, features
PIXEL, PAIR, IMAGE = (1, 1, 1), (1, 2, 1), (4, 3, 2)

ALL: list[Any] = public("likelihood")
every = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
every_mass = pytest.mark.parametrize(
    "cls", [c for c in ALL if c.measure == "mass"], ids=lambda cls: cls.__name__
)


class Grid(NamedTuple):
    """The values that one pixel can take: levels of weight one, or midpoints of small cells."""

    values: np.ndarray
    weights: np.ndarray | float
    half_step: float


def grid_of(cls) -> Grid:
    """From what the likelihood declares; reals are cut off where 30 standard deviations end."""
    if cls.measure == "mass":
        levels = 256 if "uint8" in cls.supports else 2
        return Grid(np.arange(levels) / (levels - 1), 1.0, 0.5 / (levels - 1))
    low, high = (-60.0, 61.0) if "real" in cls.supports else (0.0, 1.0)
    edges = np.linspace(low, high, 40001)
    step = edges[1] - edges[0]
    return Grid(edges[:-1] + step / 2, step, step / 2)


def conditional(cls, image_shape, features=None, transform=lambda variables: variables) -> Any:
    """p(x|z) of a freshly made likelihood; N examples with features of their own."""
    likelihood = cls()
    if features is None:
        features = jax.random.normal(jax.random.key(1), (N, F))

    @jax.jit
    def make(features):
        variables = likelihood.init(jax.random.key(0), features, image_shape)
        return likelihood.apply(transform(variables), features, image_shape)

    return make(features)


def pixel_masses(cls, p):
    """Each cell's probability for a one-pixel image, `[cells, N]`, and the grid."""
    grid = grid_of(cls)
    log_p = p.log_prob(jnp.asarray(grid.values, jnp.float32)[:, None, None, None, None])
    return np.exp(np.asarray(log_p, np.float64)) * grid.weights, grid


# --- Every likelihood ---------------------------------------------------------------------------


@every
def test_declarations(cls):
    """Some protocol of the data fits, and a mass is over discrete data alone."""
    assert cls.measure in ("mass", "density", "pseudo")
    assert any(protocol.support in cls.supports for protocol in PROTOCOLS.values())
    if cls.measure == "mass":
        assert cls.supports <= {"binary", "uint8"}


@every
def test_shapes(cls):
    """Vector and spatial features both give batch [N], event [H, W, C]."""
    for features in (jnp.ones((N, F)), jnp.ones((N, *IMAGE[:2], F))):
        p = conditional(cls, IMAGE, features)
        assert (p.batch_shape, p.event_shape, p.mean.shape) == ((N,), IMAGE, (N, *IMAGE))
        assert p.log_prob(p.sample(jax.random.key(0), (2,))).shape == (2, N)


@every
def test_total_probability_of_a_pixel_is_one(cls):
    """Enumeration of the levels, or midpoint quadrature, for each of N parameter values."""
    masses, _ = pixel_masses(cls, conditional(cls, PIXEL))
    np.testing.assert_allclose(masses.sum(0), 1, atol=1e-4)


@every_mass
def test_total_probability_of_an_image_is_one(cls):
    """Enumeration of every image of two pixels: the event is summed, not averaged."""
    p = conditional(cls, PAIR)
    levels = grid_of(cls).values.astype(np.float32)
    images = np.stack(np.meshgrid(levels, levels), -1).reshape(-1, 1, *PAIR)
    total = np.exp(np.asarray(p.log_prob(images), np.float64)).sum(0)
    np.testing.assert_allclose(total, 1, atol=1e-4)


@every
def test_an_images_log_probability_is_the_sum_of_its_pixels(cls):
    """Two pixels: ln p(a, b) + ln p(c, d) = ln p(a, d) + ln p(c, b) for a product of pixels."""
    p = conditional(cls, PAIR)
    a, c = (np.asarray(p.sample(jax.random.key(seed))) for seed in (1, 2))
    crossed = [np.concatenate([u[:, :, :1], v[:, :, 1:]], 2) for u, v in ((a, c), (c, a))]
    straight = p.log_prob(a) + p.log_prob(c)
    np.testing.assert_allclose(p.log_prob(crossed[0]) + p.log_prob(crossed[1]), straight, rtol=1e-4)


@every
def test_samples_lie_in_the_support_and_follow_the_density(cls):
    """Empirical against summed cdf by the Dvoretzky-Kiefer-Wolfowitz bound, at 1e-6.

    P(sup |F_n - F| > e) <= 2 exp(-2 n e²) for any distribution, discrete ones too.
    """
    count = 20000
    p = conditional(cls, PIXEL)
    samples = np.asarray(p.sample(jax.random.key(2), (count,)), np.float64).reshape(count, N)
    masses, grid = pixel_masses(cls, p)
    if cls.measure == "mass":
        nearest = grid.values[np.abs(samples[..., None] - grid.values).argmin(-1)]
        np.testing.assert_allclose(samples, nearest, atol=1e-6)
    assert samples.min() >= grid.values[0] - grid.half_step
    assert samples.max() <= grid.values[-1] + grid.half_step
    bound = np.sqrt(np.log(2 / 1e-6) / (2 * count))
    for n in range(N):
        empirical = np.searchsorted(np.sort(samples[:, n]), grid.values + grid.half_step) / count
        assert np.abs(empirical - masses[:, n].cumsum()).max() < bound


@every
def test_mean_is_the_densitys(cls):
    """E[x] by enumeration or quadrature: what reconstructions show, so logits would fail.

    DiscretizedLogistic documents its location instead: the middle of its mass, within a level.
    """
    p = conditional(cls, PIXEL)
    masses, grid = pixel_masses(cls, p)
    mean = np.asarray(p.mean).reshape(N)
    if cls is DiscretizedLogistic:
        median = grid.values[(masses.cumsum(0) < 0.5).sum(0)]
        np.testing.assert_allclose(mean, median, atol=1 / 255)
    else:
        np.testing.assert_allclose(mean, grid.values @ masses, atol=1e-3)


@every
def test_finite_at_extreme_features(cls):
    """Affine outputs of ±1e4 in every combination: finite log_prob, gradients and mean."""
    features = jnp.array([[1e4], [-1e4]])
    likelihood = cls()
    # Kernels of ±1, so that among the pixels each head's output has either sign.
    variables = jax.tree.map(jnp.sign, likelihood.init(jax.random.key(0), features, IMAGE))
    signs = {np.sign(leaf).min() for leaf in jax.tree.leaves(variables) if leaf.ndim == 2}
    assert signs == {-1.0}

    def log_prob(variables, features, x):
        return likelihood.apply(variables, features, IMAGE).log_prob(x).sum()

    evaluate = jax.jit(jax.value_and_grad(log_prob, (0, 1)))
    for level in (0.0, 1.0) if cls.supports == {"binary"} else (0.0, 128 / 255, 1.0):
        for leaf in jax.tree.leaves(evaluate(variables, features, jnp.full(IMAGE, level))):
            assert np.isfinite(leaf).all()
    mean = np.asarray(likelihood.apply(variables, features, IMAGE).mean)
    assert np.isfinite(mean).all()
    if cls.supports != {"real"}:
        assert mean.min() >= 0
        assert mean.max() <= 1


# --- Particular ones ----------------------------------------------------------------------------


def test_spatial_features_of_the_wrong_size_are_refused():
    with pytest.raises(ValueError, match=r"2x3 pixels, the images 4x3"):
        conditional(Bernoulli, IMAGE, jnp.ones((N, 2, 3, F)))


def test_spatial_features_reach_their_own_pixel_alone():
    """A 1x1 convolution: changing one pixel's features changes that pixel's mean alone."""
    features = np.random.default_rng(0).normal(size=(1, *IMAGE[:2], F)).astype(np.float32)
    before = np.asarray(conditional(Bernoulli, IMAGE, features).mean)
    features[0, 2, 1] += 1
    after = np.asarray(conditional(Bernoulli, IMAGE, features).mean)
    changed = np.argwhere((before != after).any(-1)[0])
    np.testing.assert_array_equal(changed, [[2, 1]])


def test_output_bias_starts_at_the_training_means_logits():
    """Burda et al. (2015): with the features at zero, the mean image is the training mean."""
    mean = np.random.default_rng(0).uniform(0.01, 0.99, IMAGE).astype(np.float32)

    bias_init = jax.nn.initializers.constant(np.log(mean / (1 - mean)).reshape(-1))
    p = conditional(partial(Bernoulli, bias_init=bias_init), IMAGE, jnp.zeros((N, F)))
    np.testing.assert_allclose(p.mean, np.broadcast_to(mean, (N, *IMAGE)), rtol=1e-5)


@pytest.mark.parametrize("log_scale", [-1.0, 0.5])
def test_a_learned_scale_has_the_gradient_of_maximum_likelihood(log_scale):
    """d ln p / d ln s = sum_i (x_i - m_i)²/s² - D; one parameter, `log_scale`."""
    x = np.random.default_rng(0).uniform(size=(N, *IMAGE)).astype(np.float32)

    def log_prob(log_scale):
        def at(variables):
            return {"params": {**variables["params"], "log_scale": log_scale}}

        p = conditional(Gaussian, IMAGE, transform=at)
        return p.log_prob(x)[0], p.mean[0]

    gradient, mean = jax.grad(log_prob, has_aux=True)(jnp.asarray(log_scale))
    expected = ((x[0] - np.asarray(mean)) ** 2).sum() / np.exp(2 * log_scale) - x[0].size
    assert gradient == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("scale", "learned"), [(0.25, {"loc"}), (None, {"loc", "log_scale"})])
def test_a_fixed_scale_is_no_parameter(scale, learned):
    found = []

    def look(variables):
        found.append(set(variables["params"]))
        return variables

    p = conditional(partial(Gaussian, scale=scale), IMAGE, transform=look)
    assert found == [learned]
    expected = np.full((N, *IMAGE), scale or 1.0, np.float32)
    np.testing.assert_array_equal(p.scale, expected)


@pytest.mark.parametrize("level", [-1e4, 1e4])
def test_heteroscedastic_scales_stay_within_their_limits(level):
    """min_scale, and far beyond any data's range: the density has no bound without the former."""

    def positive(variables):
        return jax.tree.map(jnp.abs, variables)

    p = conditional(HeteroscedasticGaussian, IMAGE, jnp.full((N, F), level), positive)
    expected = 1e-3 if level < 0 else 1e-3 + np.exp(10)
    np.testing.assert_allclose(p.scale, np.full((N, *IMAGE), expected), rtol=1e-6)
