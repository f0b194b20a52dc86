"""Properties of every public likelihood, from its declared support and measure.

A new likelihood in `vae_jax/__init__.pyi` is tested by all of this without a line here.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vae_jax import (
    Bernoulli,
    CategoricalPixels,
    Charbonnier,
    DiscretizedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    Laplace,
    MixtureOfLogistics,
    VaeJaxError,
)
from vae_jax.compatibility import LIKELIHOODS
from vae_jax.data import PROTOCOLS
from vae_jax.likelihoods.base import Levels

N, F = 4, 3  # examples, features
PIXEL, PAIR, IMAGE = (1, 1, 1), (1, 2, 1), (4, 3, 2)

# With 32 levels in place of 256.
FIVE_BITS = [
    type(f"{cls.__name__}OfFiveBits", (cls,), {"levels": 32, "__annotations__": {"levels": Levels}})
    for cls in (CategoricalPixels, DiscretizedLogistic, MixtureOfLogistics)
]
ALL: list[Any] = [*LIKELIHOODS, *FIVE_BITS]
every = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
every_mass = pytest.mark.parametrize(
    "cls", [c for c in ALL if c.measure == "mass"], ids=lambda cls: cls.__name__
)


# Compiled once for each kind of density and shape.
log_prob = jax.jit(lambda p, x: p.log_prob(x))
mean_of = jax.jit(lambda p: p.mean)
sample = jax.jit(lambda p, key, count: p.sample(key, (count,)), static_argnames="count")


class Grid(NamedTuple):
    """The values that one pixel can take: levels of weight one, or midpoints of small cells."""

    values: np.ndarray
    weights: np.ndarray | float
    half_step: float


def grid_of(cls) -> Grid:
    """From what the likelihood declares; reals are cut off where 30 standard deviations end."""
    if cls.measure == "mass":
        levels = {"binary": 2, "uint5": 32, "uint8": 256}[next(iter(cls.supports))]
        return Grid(np.arange(levels) / (levels - 1), 1.0, 0.5 / (levels - 1))
    low, high = (-60.0, 61.0) if "real" in cls.supports else (0.0, 1.0)
    edges = np.linspace(low, high, 40001)
    step = edges[1] - edges[0]
    return Grid(edges[:-1] + step / 2, step, step / 2)


def conditional(
    cls, image_shape, features=None, transform=lambda variables: variables, compiled=jax.jit
) -> Any:
    """p(x|z) of a freshly made likelihood; N examples with features of their own."""
    likelihood = cls()
    if features is None:
        features = jax.random.normal(jax.random.key(1), (N, F))

    @compiled
    def make(features):
        variables = likelihood.init(jax.random.key(0), features, image_shape)
        return likelihood.apply(transform(variables), features, image_shape)

    return make(features)


@cache
def fresh(cls, image_shape):
    """`conditional`, once for all tests."""
    return conditional(cls, image_shape)


@cache
def pixel_masses(cls):
    """Each cell's probability for a one-pixel image, `[cells, N]`, and the grid."""
    grid = grid_of(cls)
    pixels = jnp.asarray(grid.values, jnp.float32)[:, None, None, None, None]
    log_p = log_prob(fresh(cls, PIXEL), pixels)
    return np.exp(np.asarray(log_p, np.float64)) * grid.weights, grid


# --- Every likelihood ---------------------------------------------------------------------------


@every
def test_declarations(cls):
    """Some protocol of the data fits, and a mass is over discrete data alone."""
    assert cls.measure in ("mass", "density", "pseudo")
    assert any(protocol.support in cls.supports for protocol in PROTOCOLS.values())
    if cls.measure == "mass":
        assert cls.supports <= {"binary", "uint5", "uint8"}


@every
def test_shapes(cls):
    """Vector and spatial features both give batch [N], event [H, W, C]."""
    for features in (jnp.ones((N, F)), jnp.ones((N, *IMAGE[:2], F))):
        p = conditional(cls, IMAGE, features, compiled=lambda make: partial(jax.eval_shape, make))
        mean = jax.eval_shape(mean_of, p)
        assert (p.batch_shape, p.event_shape, mean.shape) == ((N,), IMAGE, (N, *IMAGE))
        x = jax.eval_shape(partial(sample, count=2), p, jax.random.key(0))
        assert x.shape == (2, N, *IMAGE)
        assert jax.eval_shape(log_prob, p, x).shape == (2, N)


@every
def test_total_probability_of_a_pixel_is_one(cls):
    """Enumeration of the levels, or midpoint quadrature, for each of N parameter values."""
    masses, _ = pixel_masses(cls)
    np.testing.assert_allclose(masses.sum(0), 1, atol=1e-4)


@every
def test_what_is_no_pixel_has_no_density(cls):
    """Outside [0, 1], unless pixels are any reals; a byte that was not scaled is one such value."""
    outside = np.array([-1, -0.1, 1.1, 255], np.float32).reshape(-1, 1, 1, 1, 1)
    found = np.asarray(log_prob(fresh(cls, PIXEL), outside))
    assert np.isfinite(found).all() if "real" in cls.supports else (found == -np.inf).all()


@every_mass
def test_total_probability_of_an_image_is_one(cls):
    """Enumeration of every image of two pixels: the event is summed, not averaged."""
    levels = grid_of(cls).values.astype(np.float32)
    images = np.stack(np.meshgrid(levels, levels), -1).reshape(-1, 1, *PAIR)
    total = np.exp(np.asarray(log_prob(fresh(cls, PAIR), images), np.float64)).sum(0)
    np.testing.assert_allclose(total, 1, atol=1e-4)


@every
def test_an_images_log_probability_is_the_sum_of_its_pixels(cls):
    """Two pixels: ln p(a, b) + ln p(c, d) = ln p(a, d) + ln p(c, b) for a product of pixels."""
    p = fresh(cls, PAIR)
    a, c = np.asarray(sample(p, jax.random.key(1), 2))
    crossed = [np.concatenate([u[:, :, :1], v[:, :, 1:]], 2) for u, v in ((a, c), (c, a))]
    straight, across = (log_prob(p, np.stack(pair)).sum(0) for pair in ((a, c), crossed))
    np.testing.assert_allclose(across, straight, rtol=1e-4)


@every
def test_samples_lie_in_the_support_and_follow_the_density(cls):
    """Empirical against summed cdf by the Dvoretzky-Kiefer-Wolfowitz bound, at 1e-6.

    P(sup |F_n - F| > e) <= 2 exp(-2 n e²) for any distribution, discrete ones too.
    """
    count = 20000
    samples = np.asarray(sample(fresh(cls, PIXEL), jax.random.key(2), count), np.float64)
    samples = samples.reshape(count, N)
    masses, grid = pixel_masses(cls)
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

    A density that declares its mean inexact has a central point in its place, as a median is one:
    within a standard deviation of E[x], and half a level.
    """
    p = fresh(cls, PIXEL)
    masses, grid = pixel_masses(cls)
    mean, expected = np.asarray(mean_of(p)).reshape(N), grid.values @ masses
    if p.exact_mean:
        np.testing.assert_allclose(mean, expected, atol=1e-3)
    else:
        deviation = np.sqrt(np.square(grid.values) @ masses - expected**2)
        assert (np.abs(mean - expected) <= deviation + 0.5 / 255).all()


@every
def test_finite_at_extreme_features(cls):
    """Affine outputs of ±1e4 in every combination: finite log_prob, gradients and mean."""
    features = jnp.array([[1e4], [-1e4]])
    likelihood = cls()
    # Kernels of ±1, so that among the pixels each head's output has either sign.
    made = jax.jit(likelihood.init, static_argnums=2)(jax.random.key(0), features, IMAGE)
    variables = jax.tree.map(jnp.sign, made)
    signs = {np.sign(leaf).min() for leaf in jax.tree.leaves(variables) if leaf.ndim == 2}
    assert signs == {-1.0}

    def total_and_mean(variables, features, x):
        p: Any = likelihood.apply(variables, features, IMAGE)
        return p.log_prob(x).sum(), p.mean

    evaluate = jax.jit(jax.value_and_grad(total_and_mean, (0, 1), has_aux=True))
    middle = {"binary": 0.0, "uint5": 16 / 31}.get(next(iter(cls.supports)), 128 / 255)
    for level in (0.0, middle, 1.0):
        (total, mean), gradients = evaluate(variables, features, jnp.full(IMAGE, level))
        for leaf in jax.tree.leaves((total, mean, gradients)):
            assert np.isfinite(leaf).all()
        if cls.supports != {"real"}:
            assert mean.min() >= 0
            assert mean.max() <= 1


# --- Particular ones ----------------------------------------------------------------------------


def test_spatial_features_of_the_wrong_size_are_refused():
    with pytest.raises(VaeJaxError, match=r"2x3 pixels, the images 4x3"):
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


def test_a_discretized_logistics_mean_is_its_median():
    """What it documents: the middle of its mass, within a level."""
    masses, grid = pixel_masses(DiscretizedLogistic)
    mean = np.asarray(mean_of(fresh(DiscretizedLogistic, PIXEL))).reshape(N)
    median = grid.values[(masses.cumsum(0) < 0.5).sum(0)]
    np.testing.assert_allclose(mean, median, atol=1 / 255)


@pytest.mark.parametrize(("cls", "power"), [(Gaussian, 2), (Laplace, 1)])
def test_a_learned_scale_has_the_gradient_of_maximum_likelihood(cls, power):
    """d ln p / d ln s = sum_i (|x_i - m_i| / s)^power - D; one parameter, `log_scale`."""
    x = np.random.default_rng(0).uniform(size=(N, *IMAGE)).astype(np.float32)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient_and_mean(log_scale):
        def at(variables):
            return {"params": {**variables["params"], "log_scale": log_scale}}

        p = conditional(cls, IMAGE, transform=at)
        return p.log_prob(x)[0], p.mean[0]

    for log_scale in (-1.0, 0.5):
        gradient, mean = gradient_and_mean(log_scale)
        error = (np.abs(x[0] - np.asarray(mean)) ** power).sum()
        assert gradient == pytest.approx(error / np.exp(power * log_scale) - x[0].size, rel=1e-4)


@pytest.mark.parametrize("cls", [Gaussian, Laplace])
@pytest.mark.parametrize(("scale", "learned"), [(0.25, {"loc"}), (None, {"loc", "log_scale"})])
def test_a_fixed_scale_is_no_parameter(cls, scale, learned):
    found = []

    def look(variables):
        found.append(set(variables["params"]))
        return variables

    p = conditional(partial(cls, scale=scale), IMAGE, transform=look)
    assert found == [learned]
    expected = np.full((N, *IMAGE), scale or 1.0, np.float32)
    np.testing.assert_array_equal(p.scale, expected)


def test_least_squares_is_a_gaussian_of_scale_the_root_of_one_half():
    """-ln p - sum (x - m)² is a constant, (D/2) ln pi, so the gradients are the same."""
    x = np.random.default_rng(0).uniform(size=(N, *IMAGE)).astype(np.float32)
    p = conditional(partial(Gaussian, scale=0.5**0.5), IMAGE)
    gradient = jax.grad(lambda loc: -p.replace(loc=loc).log_prob(x).sum())(p.mean)
    np.testing.assert_allclose(gradient, 2 * (np.asarray(p.mean) - x), rtol=1e-4, atol=1e-6)
    errors = np.square(x - np.asarray(p.mean)).sum((1, 2, 3))
    expected = errors + x[0].size / 2 * np.log(np.pi)
    np.testing.assert_allclose(-log_prob(p, x), expected, rtol=1e-5)


@pytest.mark.parametrize("level", [-1e4, 1e4])
def test_heteroscedastic_scales_stay_within_their_limits(level):
    """min_scale, and far beyond any data's range: the density has no bound without the former."""

    def positive(variables):
        return jax.tree.map(jnp.abs, variables)

    p = conditional(HeteroscedasticGaussian, IMAGE, jnp.full((N, F), level), positive)
    expected = 1e-3 if level < 0 else 1e-3 + np.exp(10)
    np.testing.assert_allclose(p.scale, np.full((N, *IMAGE), expected), rtol=1e-6)


@pytest.mark.parametrize(("scale", "epsilon"), [(1.0, 1e-3), (0.05, 0.2), (1e-3, 1.0)])
def test_charbonniers_density_is_scipys_hyperbolic(scale, epsilon):
    """In float64, to 1e-9 nats, where it is a parabola, where it is a line, and between."""
    reach = 20 * scale + np.sqrt(40 * scale * epsilon)
    x = np.linspace(-reach, reach, 41).reshape(-1, 1, 1, 1, 1)
    with jax.enable_x64(True):
        made = conditional(partial(Charbonnier, scale=scale, epsilon=epsilon), PIXEL)
        p = made.replace(loc=np.float64(made.loc))
        found = np.asarray(p.log_prob(p.loc + x))
    hyperbolic: Any = stats.genhyperbolic(1, epsilon / scale, 0, scale=epsilon)
    expected = np.broadcast_to(hyperbolic.logpdf(x[:, :, 0, 0, 0]), found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("scale", "epsilon"), [(0.05, 0.2), (1e-3, 1.0)])
def test_charbonniers_draws_have_the_hyperbolic_deviation(scale, epsilon):
    """e² K_2(a) / (a K_1(a)) at a = e / s (Barndorff-Nielsen 1977)."""
    count, a = 40000, epsilon / scale
    p = conditional(partial(Charbonnier, scale=scale, epsilon=epsilon), PIXEL)
    drawn = np.asarray(sample(p, jax.random.key(3), count), np.float64).reshape(count, N)
    deviation = epsilon * np.sqrt(special.kve(2, a) / (a * special.k1e(a)))
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.03)
    mean = np.asarray(mean_of(p)).reshape(N)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * deviation / np.sqrt(count))
