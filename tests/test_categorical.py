"""Categorical latents: masses by enumeration, relaxations against SciPy, NumPyro and quadrature."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import tiny
from scipy import special, stats

from vae_jax import ELBO, IWAE, Categorical, GumbelSoftmax, UniformCategorical, UniformConcrete
from vae_jax.distributions import Concrete, OneHotCategorical, exact_kl

B, N, C, TEMPERATURE = 4, 2, 3, 0.7
LOGITS = np.random.default_rng(0).normal(size=(B, N, C)).astype(np.float32) * 1.5
CATEGORICAL: Any = OneHotCategorical(jnp.asarray(LOGITS), TEMPERATURE)
CONCRETE: Any = Concrete(jnp.asarray(LOGITS), TEMPERATURE)
PROBABILITIES = special.softmax(np.float64(LOGITS), axis=-1)
# All C^N one-hot values [9, N, C].
VALUES = np.eye(C)[list(itertools.product(range(C), repeat=N))]


def within_standard_errors(samples: Any, expected: Any) -> bool:
    """Whether Monte Carlo means over the first axis are within 4 standard errors."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(0) / np.sqrt(len(samples))
    return bool(np.all(np.abs(samples.mean(0) - expected) <= 4 * error))


@pytest.fixture(scope="module")
def draws():
    """20,000 samples of either, with one key, and their ln q: `[20000, B, N, C]`, `[20000, B]`."""

    @jax.jit
    def sample():
        qs = (CATEGORICAL, CONCRETE)
        return [q.sample_and_log_prob(jax.random.key(1), (20000,)) for q in qs]

    return [tuple(map(np.asarray, pair)) for pair in sample()]


# --- One-hot ------------------------------------------------------------------------------------


def test_masses_by_enumeration():
    """The product of the variables' probabilities; they sum to one over all C^N values."""
    log_p = np.asarray(CATEGORICAL.log_prob(VALUES[:, None]), np.float64)
    assert log_p.shape == (C**N, B)
    expected = np.log((VALUES[:, None] * PROBABILITIES).sum(-1)).sum(-1)
    np.testing.assert_allclose(log_p, expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(log_p).sum(0), 1, rtol=1e-6)
    np.testing.assert_allclose(CATEGORICAL.mean, PROBABILITIES, rtol=1e-5)


def test_exact_kl_is_the_enumerated_sum():
    """And to the uniform prior N ln C less the entropy."""
    p = CATEGORICAL.replace(logits=CATEGORICAL.logits[::-1] / 2)
    uniform: Any = UniformCategorical(N, C)(tiny.model())
    for other in (p, uniform):
        log_q, log_p = (
            np.asarray(r.log_prob(VALUES[:, None]), np.float64) for r in (CATEGORICAL, other)
        )
        expected = (np.exp(log_q) * (log_q - log_p)).sum(0)
        kl: Any = exact_kl(CATEGORICAL, other)
        assert kl.shape == (B,)
        np.testing.assert_allclose(kl, expected, rtol=1e-5)
    entropy = stats.entropy(PROBABILITIES, axis=-1).sum(-1)
    np.testing.assert_allclose(kl, N * np.log(C) - entropy, rtol=1e-5)


def test_one_hot_samples(draws):
    """Hard to the last bit; the counts of the C^N values are chi-squared."""
    (z, log_q), _ = draws
    assert set(np.unique(z)) == {0.0, 1.0}
    assert np.all(z.sum(-1) == 1)
    np.testing.assert_allclose(log_q[:100], CATEGORICAL.log_prob(z[:100]), rtol=1e-6)
    mass = (VALUES[:, None] * PROBABILITIES).sum(-1).prod(-1)
    which = z.argmax(-1) @ np.array([C, 1])
    for b in range(B):
        counts = np.bincount(which[:, b], minlength=C**N)
        assert stats.chisquare(counts, len(z) * mass[:, b]).pvalue > 1e-4


def test_the_straight_through_gradient_is_that_of_the_relaxed_sample():
    """By differences of the Concrete sample that has the same noise, of which it is the argmax."""
    key = jax.random.key(2)
    direction = np.random.default_rng(1).normal(size=LOGITS.shape).astype(np.float32)

    @jax.jit
    def relaxed(logits):
        return jnp.exp(Concrete(logits, TEMPERATURE).sample(key, (50,)))

    def hard(logits):
        return OneHotCategorical(logits, TEMPERATURE).sample(key, (50,))

    logits = jnp.asarray(LOGITS)
    value, derivative = jax.jit(partial(jax.jvp, hard))((logits,), (jnp.asarray(direction),))
    np.testing.assert_array_equal(value.argmax(-1), relaxed(logits).argmax(-1))
    step = 0.01
    expected = (relaxed(logits + step * direction) - relaxed(logits - step * direction)) / 0.02
    np.testing.assert_allclose(derivative, expected, atol=2e-3)
    assert np.abs(expected).max() > 0.1


# --- Relaxed ------------------------------------------------------------------------------------


def test_concrete_density_of_two_classes_is_scipys_and_numpyros():
    """x = sigmoid(y), y logistic: SciPy's logistic; NumPyro's RelaxedBernoulli with |dx/dy|."""
    logits, x = np.array([0.8, -0.4]), np.linspace(0.01, 0.99, 99)
    p = Concrete(jnp.asarray(logits, jnp.float32)[None], TEMPERATURE)
    log_p = p.log_prob(jnp.asarray(np.log(np.stack([x, 1 - x], -1)), jnp.float32)[:, None])
    logistic: Any = stats.logistic((logits[0] - logits[1]) / TEMPERATURE, 1 / TEMPERATURE)
    expected = logistic.logpdf(special.logit(x))
    np.testing.assert_allclose(log_p, expected, rtol=1e-4, atol=1e-5)
    numpyros: Any = dist.RelaxedBernoulliLogits(TEMPERATURE, logits[0] - logits[1])
    expected = numpyros.log_prob(x) + np.log(x * (1 - x))
    np.testing.assert_allclose(log_p, expected, rtol=1e-4, atol=1e-4)


def test_concrete_density_of_three_classes_integrates_to_one():
    """Over ln x_1 - ln x_3 and ln x_2 - ln x_3.

    The largest component is c with the category's probability (Maddison et al. 2017, prop. 1).
    """
    grid = np.linspace(-30, 30, 401)
    u, v = np.meshgrid(grid, grid, indexing="ij")
    log_x = special.log_softmax(np.stack([u, v, 0 * u], -1), axis=-1)
    x = jnp.asarray(log_x, jnp.float32)[:, :, None, None]
    log_p, other = (
        np.asarray(jax.jit(Concrete(jnp.asarray(logits), TEMPERATURE).log_prob)(x), np.float64)
        for logits in (LOGITS[:, :1], LOGITS[:, 1:])
    )
    cell = np.exp(log_p) * (grid[1] - grid[0]) ** 2
    np.testing.assert_allclose(cell.sum((0, 1)), 1, rtol=1e-3)
    largest = log_x.argmax(-1)[..., None]
    for c in range(C):
        mass = (cell * (largest == c)).sum((0, 1))
        np.testing.assert_allclose(mass, PROBABILITIES[:, 0, c], atol=0.03)
    # Two variables' density is the product of each one's.
    both = CONCRETE.log_prob(x[::40, ::40].repeat(N, -2))
    expected = log_p[::40, ::40] + other[::40, ::40]
    np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-3)


def test_concrete_samples_follow_the_density(draws):
    """E_q[p(x)/q(x)] = 1 for another Concrete p; the largest component has its probability."""
    _, (x, log_q) = draws
    np.testing.assert_allclose(np.exp(x).sum(-1), 1, rtol=1e-5)
    p = Concrete(CONCRETE.logits / 2, 0.8)
    assert within_standard_errors(np.exp(np.asarray(p.log_prob(x)) - log_q), 1.0)
    assert within_standard_errors(np.eye(C)[x.argmax(-1)], PROBABILITIES)
    # Two variables that differ in logits alone: a pair's log-ratio is logistic.
    for b, n in itertools.product(range(B), range(N)):
        pair = x[:4000, b, n, :2].astype(np.float64)
        difference = float(LOGITS[b, n, 0] - LOGITS[b, n, 1])
        logistic = stats.logistic(difference / TEMPERATURE, 1 / TEMPERATURE)
        assert stats.kstest(pair[:, 0] - pair[:, 1], logistic.cdf).pvalue > 1e-4
    assert not CONCRETE.exact_mean


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("gap", [0.0, 6.9, 20.0, 1e3, 1e4])
def test_concrete_is_scored_where_it_was_drawn(temperature, gap):
    """ln q - ln p of draws in float64, which are logistic; E_q[ln q - ln p] >= 0, by quadrature.

    As probabilities, components smaller than float32's were scored elsewhere: KLs of -2,547.
    """
    logits = jnp.array([[[0.0, -gap]]])

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(logits):
        q, p = Concrete(logits, temperature), UniformConcrete(1, 2, 0.5)(tiny.model())
        x, log_q = q.sample_and_log_prob(jax.random.key(3), (4000,))
        ratio = log_q - p.log_prob(x)
        return ratio.mean(), (x, ratio)

    derivative, (x, ratio) = gradient(logits)
    logistic: Any = stats.logistic
    y = np.float64(x[..., 0] - x[..., 1]).squeeze()  # ln x_1 - ln x_2
    exact = logistic(gap / temperature, 1 / temperature)
    assert stats.kstest(y, exact.cdf).pvalue > 1e-4
    log_q = exact.logpdf(y)
    log_p = logistic(0, 2).logpdf(y)
    np.testing.assert_allclose(ratio.squeeze(), log_q - log_p, rtol=1e-4, atol=1e-3 + 1e-6 * gap)
    # KL of two logistics: of y = (gap + e) / temperature, e standard.
    e, step = np.linspace(-40, 40, 80001, retstep=True)
    y = (gap + e) / temperature
    of_q = logistic.logpdf(e) + np.log(temperature)
    kl = (logistic.pdf(e) * (of_q - logistic(0, 2).logpdf(y))).sum() * step
    assert kl >= 0
    assert within_standard_errors(ratio, kl)
    assert np.isfinite(derivative).all()


# --- In a model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [CATEGORICAL, CONCRETE], ids=["onehot", "simplex"])
def test_noise_is_each_examples_own(q):
    """With keys [B], example b's draw depends on key[b] and its own logits alone."""
    keys, order = jax.random.split(jax.random.key(4), B), np.array([2, 0, 3, 1])
    sample = jax.jit(lambda q, keys: q.sample(keys, (5,)))
    z = sample(q, keys)
    shuffled = sample(q.replace(logits=q.logits[order]), keys[order])
    np.testing.assert_array_equal(shuffled, z[:, order])
    assert z.shape == (5, B, N, C)
    assert (q.batch_shape, q.event_shape) == ((B,), (N, C))


@pytest.mark.parametrize(
    ("posterior", "prior", "objective"),
    [
        (Categorical(N, C, TEMPERATURE), UniformCategorical(N, C), ELBO(3)),
        (GumbelSoftmax(N, C, TEMPERATURE), UniformConcrete(N, C, 0.5), IWAE(3)),
    ],
    ids=["onehot", "simplex"],
)
def test_every_parameter_of_a_model_of_categories_has_a_gradient(posterior, prior, objective):
    """The exact KL for one-hot latents; none is known between Concrete distributions."""
    model = tiny.model().clone(posterior=posterior, prior=prior)
    x = jnp.asarray(tiny.images(6, 0) / 255, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 6)

    @jax.jit
    def everything():
        params = model.init(jax.random.key(0), x, keys)["params"]

        def loss(params):
            terms: Any = model.apply({"params": params}, x, keys, 3)
            return objective(terms, jnp.int32(0), tiny.model())[0], terms.kl

        (z,), _ = model.apply({"params": params}, keys, method="sample")
        return jax.value_and_grad(loss, has_aux=True)(params), z

    ((loss, kl), gradients), z = everything()
    assert np.isfinite(loss)
    assert (kl is None) == isinstance(posterior, GumbelSoftmax)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradients))
    z = z if isinstance(posterior, Categorical) else np.exp(z)
    np.testing.assert_allclose(z.sum(-1), np.ones((6, N)), rtol=1e-5)
