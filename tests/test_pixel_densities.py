"""Densities of pixels, each against SciPy, enumeration or the paper's own formula in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from vae_jax.cpu.softplus import softplus
from vae_jax.likelihoods.categorical import CategoricalPixelsDistribution
from vae_jax.likelihoods.continuous_bernoulli import ContinuousBernoulliDistribution
from vae_jax.likelihoods.logistic_mixture import MixtureOfLogisticsDistribution

log_prob = jax.jit(lambda p, x: p.log_prob(x))
mean_of = jax.jit(lambda p: p.mean)
sample = jax.jit(lambda p, key, count: p.sample(key, (count,)), static_argnames="count")


# --- Continuous Bernoulli -----------------------------------------------------------------------

# Both branches of the normalizer, their border, and zero.
LOGITS = np.array([-300, -20, -1.001, -0.999, -0.1, -1e-4, 0, 1e-8, 0.02, 0.999, 1.001, 5, 88, 300])
CONTINUOUS_BERNOULLI = ContinuousBernoulliDistribution(
    jnp.asarray(LOGITS, jnp.float32), event_ndims=0
)


def test_continuous_bernoulli_has_the_papers_normalizer():
    """ln C(lambda) = ln[2 artanh(1 - 2 lambda) / (1 - 2 lambda)], Loaiza-Ganem & Cunningham."""
    logits = LOGITS[(np.abs(LOGITS) > 1e-3) & (np.abs(LOGITS) < 30)]
    p = ContinuousBernoulliDistribution(jnp.asarray(logits, jnp.float32), event_ndims=0)
    probability = special.expit(logits)
    log_c = np.log(2 * np.arctanh(1 - 2 * probability) / (1 - 2 * probability))
    for x in (0.0, 0.3, 1.0):
        expected = x * np.log(probability) + (1 - x) * np.log1p(-probability) + log_c
        np.testing.assert_allclose(log_prob(p, x), expected, rtol=1e-5, atol=1e-6)


def test_continuous_bernoullis_mean_and_gradient_are_those_of_quadrature():
    """E[x] by quad; and d ln p(x) / d l = x - E[x], of an exponential family."""

    def integral(power, logit):
        shift = max(logit, 0)  # so that nothing overflows
        values = integrate.quad(
            lambda x: x**power * np.exp(logit * x - shift), 0, 1, points=(0.01, 0.99), limit=200
        )
        return values[0]

    expected = np.array([integral(1, logit) / integral(0, logit) for logit in LOGITS])
    np.testing.assert_allclose(mean_of(CONTINUOUS_BERNOULLI), expected, rtol=2e-5)
    value = jnp.asarray(0.3)
    slope = jax.jit(jax.grad(lambda p: p.log_prob(value).sum()))(CONTINUOUS_BERNOULLI).loc
    np.testing.assert_allclose(slope, 0.3 - expected, rtol=1e-4, atol=1e-5)


def test_continuous_bernoullis_samples_follow_its_cdf():
    """Kolmogorov-Smirnov against (e^(l x) - 1) / (e^l - 1), p > 1e-4 for each of 14 logits."""
    samples = np.asarray(sample(CONTINUOUS_BERNOULLI, jax.random.key(0), 5000), np.float64)
    for draws, logit in zip(samples.T, LOGITS, strict=True):
        # Through 1 - x where e^l would overflow; uniform at zero.
        u, tilt = (1 - draws, -logit) if logit > 0 else (draws, logit or -1e-9)
        assert stats.kstest(np.expm1(tilt * u) / np.expm1(tilt), "uniform").pvalue > 1e-4


# --- Categorical --------------------------------------------------------------------------------


def test_categorical_pixels_pick_their_levels_logits():
    """ln softmax by SciPy at the level of each pixel and channel, and the mean level."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 2, 2, 3, 256))
    levels = generator.integers(256, size=(3, 2, 2, 3))
    levels[0, 0, 0, :2] = 0, 255
    p = CategoricalPixelsDistribution(jnp.asarray(logits, jnp.float32))
    log_softmax = special.log_softmax(logits, -1)
    expected = np.take_along_axis(log_softmax, levels[..., None], -1).sum((1, 2, 3, 4))
    np.testing.assert_allclose(log_prob(p, np.float32(levels / 255)), expected, rtol=1e-5)
    np.testing.assert_allclose(mean_of(p), np.exp(log_softmax) @ np.arange(256) / 255, rtol=1e-5)


# --- Mixture of logistics -----------------------------------------------------------------------


def mixture(channels: int, components: int = 3, seed: int = 0) -> Any:
    """One pixel, `[1, 1, channels]`, with components from narrow to wide."""
    generator = np.random.default_rng(seed)
    lower = np.tril(np.ones((channels, channels)), -1)
    coefficients = lower * generator.uniform(-1, 1, (components, channels, channels))
    arrays: Any = {
        "log_weights": np.log(generator.dirichlet(np.ones(components))),
        "loc": generator.uniform(-0.1, 1.1, (components, channels)),
        "scale": 10 ** generator.uniform(-2.5, -1, (components, channels)),
        "coefficients": coefficients,
    }
    as_pixel: Any = {name: jnp.asarray(a, jnp.float32)[None, None] for name, a in arrays.items()}
    return MixtureOfLogisticsDistribution(**as_pixel)


def first_channels(p: Any, count: int) -> MixtureOfLogisticsDistribution:
    """The same without the channels after the first `count`."""
    return MixtureOfLogisticsDistribution(
        log_weights=p.log_weights,
        loc=p.loc[..., :count],
        scale=p.scale[..., :count],
        coefficients=p.coefficients[..., :count, :count],
    )


LEVELS = np.arange(256)


def test_categorical_pixels_beyond_the_levels_have_no_mass():
    """One value outside [0, 1] takes all mass from the image."""
    logits = np.random.default_rng(0).normal(size=(1, 2, 1, 256)).astype(np.float32)
    p = CategoricalPixelsDistribution(jnp.asarray(logits))
    for outside in (-1e-3, -1 / 255, 256 / 255, 1.001, 7.0, 255.0, np.inf, np.nan):
        log_p = p.log_prob(jnp.array([0.0, outside]).reshape(1, 2, 1))
        assert log_p == -np.inf
    for inside in (0.0, 0.3, 1.0):
        assert np.isfinite(p.log_prob(jnp.array([0.0, inside]).reshape(1, 2, 1)))


def test_mixture_of_logistics_is_pixelcnn_plus_plus():
    """The formula of the paper's section 2 in its own units, x in [-1, 1], by SciPy's logistic."""
    p = mixture(3)
    weights, m, s, a = (
        np.array(leaf, np.float64).reshape(leaf.shape[2:])
        for leaf in (jnp.exp(p.log_weights), 2 * p.loc - 1, 2 * p.scale, p.coefficients)
    )
    pixels = np.random.default_rng(1).integers(256, size=(200, 3))
    pixels[:8] = np.array(np.meshgrid(*[(0, 255)] * 3)).reshape(3, 8).T  # all corners
    x = pixels / 127.5 - 1
    red, green = x[:, :1], x[:, 1:2]
    mu: list[Any] = [m[:, 0] + 0 * red, m[:, 1] + a[:, 1, 0] * red]
    mu.append(m[:, 2] + a[:, 2, 0] * red + a[:, 2, 1] * green)
    total: Any = weights
    for c in range(3):
        logistic: Any = stats.logistic(mu[c], s[:, c])
        upper = np.where(pixels[:, [c]] == 255, np.inf, x[:, [c]] + 1 / 255)
        lower = np.where(pixels[:, [c]] == 0, -np.inf, x[:, [c]] - 1 / 255)
        # Above the location by the survival function, whose difference does not cancel there.
        by_cdf = logistic.cdf(upper) - logistic.cdf(lower)
        mass = np.where(lower > mu[c], logistic.sf(lower) - logistic.sf(upper), by_cdf)
        total = total * mass
    expected = np.log(np.sum(total, 1))
    ours = log_prob(p, (pixels / 255).astype(np.float32)[:, None, None])
    np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_channels_conditional_sums_to_one(channels):
    """Summed over the 256 levels of the last channel, the joint mass is that of the others."""
    p = mixture(channels)
    others = np.random.default_rng(1).integers(256, size=(20, channels - 1))
    others[0], others[1] = 0, 255
    joint = np.empty((256, 20, 1, 1, channels), np.float32)
    joint[..., 0, 0, :-1], joint[..., 0, 0, -1] = others / 255, LEVELS[:, None] / 255
    summed = np.asarray(special.logsumexp(np.asarray(log_prob(p, joint), np.float64), 0))
    expected = np.asarray(log_prob(first_channels(p, channels - 1), joint[0, ..., :-1]))
    np.testing.assert_allclose(summed, expected, rtol=1e-4, atol=1e-4)


def test_two_channels_are_drawn_as_they_are_scored():
    """All 65,536 masses sum to one, and 200,000 draws fall into 8x8 squares as the masses say.

    A square's count has the standard deviation of a binomial: 4.5 of these, for 64 squares.
    """
    p, count = mixture(2), 200_000
    pixels = np.stack(np.meshgrid(LEVELS, LEVELS, indexing="ij"), -1)[:, :, None, None]
    masses = np.exp(np.asarray(log_prob(p, np.float32(pixels / 255)), np.float64))
    assert masses.sum() == pytest.approx(1, abs=1e-4)
    expected = masses.reshape(8, 32, 8, 32).sum((1, 3))
    draws = np.asarray(sample(p, jax.random.key(0), count)).reshape(count, 2)
    levels = np.round(draws * 255).astype(int)
    np.testing.assert_allclose(draws, levels / 255, atol=1e-6)
    found = np.histogram2d(*levels.T, bins=8, range=[(0, 256)] * 2)[0] / count
    error = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(found - expected) < 4.5 * error + 1e-5).all()
    assert np.abs(np.corrcoef(draws.T)[0, 1]) > 0.05  # the channels are not independent here


def test_compiled_draws_are_those_step_by_step():
    """Thousands of pixels, whose channels jaxlib 0.10 on CPUs mixed up where selected by sums."""
    count, generator = 3000, np.random.default_rng(0)
    coefficients = np.tril(generator.normal(size=(count, 1, 1, 10, 3, 3)), -1)
    p = MixtureOfLogisticsDistribution(
        log_weights=jnp.full((count, 1, 1, 10), -np.log(10), jnp.float32),
        loc=jnp.asarray(generator.uniform(size=(count, 1, 1, 10, 3)), jnp.float32),
        scale=jnp.full((count, 1, 1, 10, 3), 0.05),
        coefficients=jnp.asarray(coefficients, jnp.float32),
    )
    key = jax.random.key(0)
    # A value at the border of two bins may be rounded to either.
    np.testing.assert_allclose(
        jax.jit(lambda p, key: p.sample(key))(p, key), p.sample(key), atol=0.01
    )


def test_narrow_components_average_to_the_mean():
    """At scales of a thousandth the draws' average is `mean` within four standard errors, a level.

    Each component's medians, channel after channel, are then its means.
    """
    p, count = mixture(3), 20_000
    p = p.replace(
        loc=jnp.clip(p.loc, 0.2, 0.8), scale=0 * p.scale + 1e-3, coefficients=p.coefficients / 3
    )
    draws = np.asarray(sample(p, jax.random.key(0), count)).reshape(count, 3)
    error = 4 * draws.std(0) / np.sqrt(count) + 1 / 255
    assert (np.abs(draws.mean(0) - np.asarray(mean_of(p)).reshape(3)) < error).all()


def test_mixture_of_logistics_is_finite_in_the_tails_and_at_the_edges():
    """1 and 1,000 scales away the gradient pulls the location towards the pixel, nowhere a NaN."""
    narrow = mixture(1, 2).replace(
        scale=jnp.full((1, 1, 2, 1), 1e-3), loc=jnp.array([0.4, 0.6]).reshape(1, 1, 2, 1)
    )
    gradient = jax.jit(jax.value_and_grad(lambda p, x: p.log_prob(x)))
    for level, towards in ((0, -1), (100, -1), (155, 1), (255, 1)):
        value, slope = gradient(narrow, np.full((1, 1, 1), level / 255, np.float32))
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
        assert np.sign(np.asarray(slope.loc).sum()) == towards
        assert value < -1


def test_softplus_and_two_derivatives():
    """Against NumPy's ln(e^0 + e^x) and SciPy's sigmoid; XLA flushes subnormals to zero."""
    x = np.array([-1e4, -90.0, -3.0, -0.1, 0.0, 0.1, 3.0, 90.0, 1e4], np.float32)
    first, second = jax.vmap(jax.grad(softplus)), jax.vmap(jax.grad(jax.grad(softplus)))
    sigmoid = special.expit(x)
    np.testing.assert_allclose(softplus(jnp.asarray(x)), np.logaddexp(0, x), rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(first(x), sigmoid, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(second(x), sigmoid * special.expit(-x), rtol=1e-5, atol=1e-37)
