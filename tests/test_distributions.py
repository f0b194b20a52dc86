"""Densities, samplers and divergences against SciPy, NumPyro, enumeration and closed forms."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import special, stats

from vae_jax import MLP, VAE, Bernoulli, DiagonalGaussian, VampPrior
from vae_jax.distributions import LaplaceDistribution, Mixture, Normal, exact_kl
from vae_jax.likelihoods.bernoulli import BernoulliDistribution
from vae_jax.likelihoods.logistic import DiscretizedLogisticDistribution

K, B, D = 5, 4, 3
LEVELS = np.arange(256) / 255
LOC = np.linspace(-1.5, 2.0, B * D).reshape(B, D).astype(np.float32)
SCALE = np.linspace(0.3, 1.7, B * D).reshape(B, D).astype(np.float32)
LOG_WEIGHTS = np.log(np.array([0.2, 0.7, 0.1], np.float32))


def mixture() -> Any:
    return Mixture(jnp.asarray(LOG_WEIGHTS), Normal(jnp.asarray(LOC[:3]), jnp.asarray(SCALE[:3])))


BATCHED: dict[str, Any] = {
    "normal": Normal(jnp.asarray(LOC), jnp.asarray(SCALE)),
    "bernoulli": BernoulliDistribution(jnp.asarray(LOC)),
    "discretized_logistic": DiscretizedLogisticDistribution(
        jnp.asarray(LOC), scale=jnp.asarray(SCALE)
    ),
}
EVERY = BATCHED | {"mixture": mixture()}
batched = pytest.mark.parametrize("p", BATCHED.values(), ids=BATCHED)
every = pytest.mark.parametrize("p", EVERY.values(), ids=EVERY)


def test_jit_tells_types_apart():
    """In jaxlib 0.10 dataclasses with the same fields have equal tree structures."""
    loc, scale = jnp.zeros(D), jnp.ones(D)
    made = (
        Normal(loc, scale),
        LaplaceDistribution(loc, scale),
        DiscretizedLogisticDistribution(loc, scale=scale),
    )
    assert len({jax.tree.structure(p) for p in made}) == 3
    for p, q in itertools.combinations(made, 2):
        assert jax.tree.structure(p) != jax.tree.structure(q)
    assert jax.tree.structure(made[0]) == jax.tree.structure(Normal(scale, loc))


def keys(seed: int, *shape: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), shape)


def within_standard_errors(samples: np.ndarray, expected: np.ndarray, axis: int = 0) -> bool:
    """Whether a Monte Carlo mean is within 4 standard errors: 1 in 16,000 by chance."""
    error = samples.std(axis) / np.sqrt(samples.shape[axis])
    return bool(np.all(np.abs(samples.mean(axis) - expected) <= 4 * error))


# --- Shapes, keys, pytrees: what every density offers -------------------------------------------


@every
def test_shapes(p):
    """[*sample, *batch, *event], with log_prob summed over the event alone."""

    @jax.jit
    def everything(p, key):
        z, log_p = p.sample_and_log_prob(key, (K,))
        return z, log_p, p.log_prob(z), p.sample(key), p.mean

    z, log_p, log_p_again, one, mean = everything(p, jax.random.key(0))
    assert z.shape == (K, *p.batch_shape, *p.event_shape)
    assert p.event_shape == (D,)
    assert log_p.shape == (K, *p.batch_shape)
    assert one.shape == mean.shape == (*p.batch_shape, *p.event_shape)
    np.testing.assert_array_equal(log_p, log_p_again)


@batched
def test_noise_is_each_examples_own(p):
    """With keys [B], example b's draw depends on key[b] and its own parameters alone."""
    example_keys = keys(1, B)
    together = p.sample(example_keys, (K,))
    for b in range(B):
        alone = jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], p).sample(
            example_keys[b : b + 1], (K,)
        )
        np.testing.assert_array_equal(together[:, b], alone[:, 0])


@batched
def test_distributions_are_pytrees(p):
    """stop_gradient through tree.map stops the gradient; vmap sees through the dataclass."""

    @jax.jit
    def found(p):
        x = p.sample(jax.random.key(0))

        def log_prob(loc, stop):
            q = p.replace(loc=loc)
            return (jax.tree.map(jax.lax.stop_gradient, q) if stop else q).log_prob(x).sum()

        stopped, moved = (jax.grad(log_prob)(p.loc, stop) for stop in (True, False))
        return stopped, moved, jax.vmap(lambda p, x: p.log_prob(x))(p, x), p.log_prob(x)

    stopped, moved, mapped, together = found(p)
    assert np.all(stopped == 0)
    assert np.all(moved != 0)
    np.testing.assert_allclose(mapped, together, rtol=1e-6)


# --- Densities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [(D,), (1, D, 1)])
def test_normal_is_scipys(event):
    """An [H, W, C] event is summed like a vector."""
    x = np.random.default_rng(0).normal(size=(K, B, *event)).astype(np.float32) * 3
    loc, scale = (a.reshape(B, *event) for a in (LOC, SCALE))
    expected = stats.norm.logpdf(x, loc, scale).reshape(K, B, D).sum(-1)
    p = Normal(jnp.asarray(loc), jnp.asarray(scale), event_ndims=len(event))
    np.testing.assert_allclose(p.log_prob(jnp.asarray(x)), expected, rtol=2e-6)


@pytest.mark.parametrize("shape", [(), (D,), (2, 1, D)])
def test_a_scale_broadcasts_against_locations(shape):
    """One for all of an image, for each channel, for each channel of a row."""
    generator = np.random.default_rng(0)
    loc = generator.normal(size=(B, 2, 3, D)).astype(np.float32)
    x = jnp.asarray(generator.normal(size=(2, 3, D)), jnp.float32)
    scale = generator.uniform(0.5, 2.0, shape).astype(np.float32)
    for p, exact in ((Normal, stats.norm), (LaplaceDistribution, stats.laplace)):
        distribution = p(jnp.asarray(loc), jnp.asarray(scale), event_ndims=3)
        by_component = exact.logpdf(np.asarray(x), loc, scale)
        np.testing.assert_allclose(distribution.log_prob(x), by_component.sum((1, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(distribution.components.log_prob(x), by_component, rtol=1e-5)


@pytest.mark.parametrize("event", [(D,), (1, D, 1)])
def test_bernoulli_is_scipys(event):
    x = np.random.default_rng(0).integers(0, 2, (K, B, *event))
    logits = LOC.reshape(B, *event)
    expected = stats.bernoulli.logpmf(x, special.expit(logits)).reshape(K, B, D).sum(-1)
    p = BernoulliDistribution(jnp.asarray(logits), event_ndims=len(event))
    np.testing.assert_allclose(p.log_prob(jnp.asarray(x)), expected, rtol=2e-6)
    np.testing.assert_allclose(p.mean, special.expit(logits), rtol=1e-6)


@pytest.mark.parametrize("logit", [0.0, 90.0, 1e3, 1e4, -1e3, -1e4])
def test_bernoulli_at_extreme_logits(logit):
    """Values by NumPy's logaddexp; d/dl ln p = x - sigmoid(l). NaN in codebases that clip."""
    for x in (0.0, 1.0):

        def log_prob(logit, x=x):
            return BernoulliDistribution(logit[None]).log_prob(jnp.array([x]))

        value, gradient = jax.value_and_grad(log_prob)(jnp.asarray(logit))
        expected = -np.logaddexp(0, -logit if x else logit)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-30)
        np.testing.assert_allclose(gradient, x - special.expit(logit), atol=1e-6)


def discretized_logistic_mass(loc: float, scale: float) -> np.ndarray:
    """Masses of the 256 levels as SciPy's differences of the cdf, open at both ends, `[256]`."""
    cdf = stats.logistic.cdf((np.arange(255) + 0.5) / 255, loc, scale)
    return np.diff(np.concatenate([[0.0], cdf, [1.0]]))


@pytest.mark.parametrize("loc", [-0.1, 0.0, 0.4, 1.0, 1.3])
@pytest.mark.parametrize("scale", [0.002, 0.05, 3.0])
def test_discretized_logistic_is_a_difference_of_scipys_cdf(loc, scale):
    with jax.enable_x64(True):
        p = DiscretizedLogisticDistribution(jnp.full(1, loc), scale=jnp.full(1, scale))
        mass = np.exp(p.log_prob(jnp.asarray(LEVELS)[:, None]))
    assert mass.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(mass, discretized_logistic_mass(loc, scale), rtol=1e-9, atol=1e-14)


@jax.jit
def log_mass_and_gradients(loc, scale):
    """ln mass of the 256 levels in float32, and its derivatives by loc and scale, `[256]` each."""

    def log_mass(loc, scale):
        p = DiscretizedLogisticDistribution(loc[None], scale=scale[None])
        return p.log_prob(jnp.asarray(LEVELS, jnp.float32)[:, None])

    return log_mass(loc, scale), jax.jacfwd(log_mass, (0, 1))(loc, scale)


@pytest.mark.parametrize("loc", [-1e3, -1.0, 0.0, 0.5, 1.0, 1e3])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_discretized_logistic_in_the_far_tails(loc, scale):
    """Float32 against ln(e^a - e^b), a and b SciPy's ln cdf below the location, ln sf above it."""
    low, high = LEVELS - 0.5 / 255, LEVELS + 0.5 / 255
    p = stats.logistic(loc, scale)
    a = np.where(loc < LEVELS, p.logsf(low), p.logcdf(high))
    b = np.where(loc < LEVELS, p.logsf(high), p.logcdf(low))
    expected = a + np.log1p(-np.exp(b - a))
    expected[0], expected[-1] = p.logcdf(high[0]), p.logsf(low[-1])
    log_mass, gradients = log_mass_and_gradients(jnp.float32(loc), jnp.float32(scale))
    np.testing.assert_allclose(log_mass, expected, rtol=1e-4, atol=1e-4)
    assert np.isfinite(gradients).all()


def test_mixture_is_scipys_logsumexp_and_numpyros():
    p, x = mixture(), np.random.default_rng(0).normal(size=(K, B, D)).astype(np.float32)
    components = stats.norm.logpdf(x[..., None, :], LOC[:3], SCALE[:3]).sum(-1)
    expected = np.asarray(special.logsumexp(components + LOG_WEIGHTS, axis=-1))
    assert p.log_prob(x).shape == (K, B)
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-5)
    numpyros: Any = dist.MixtureSameFamily(
        dist.Categorical(logits=LOG_WEIGHTS), dist.Normal(LOC[:3], SCALE[:3]).to_event(1)
    )
    np.testing.assert_allclose(p.log_prob(x), numpyros.log_prob(x), rtol=1e-5)
    np.testing.assert_allclose(p.mean, np.exp(LOG_WEIGHTS) @ LOC[:3], rtol=1e-5)


def test_normals_in_pairs():
    """Every value under every normal: SciPy's densities, and derivatives by central differences.

    In float64 with h = 1e-5 the differences' own error is 1e-9; far values with small scales, where
    expanding the square would cancel, agree to rounding.
    """
    generator = np.random.default_rng(1)
    with jax.enable_x64(True):
        point = [generator.normal(size=shape) for shape in ((2, 5, D), (4, D), (4, D))]
        weights = generator.normal(size=(2, 5, 4))

        @jax.jit
        def total(z, loc, log_scale):
            return (weights * Normal(loc, jnp.exp(log_scale)).log_prob_pairs(z)).sum()

        gradient = jax.jit(jax.grad(total, (0, 1, 2)))(*point)
        directions = [generator.normal(size=leaf.shape) for leaf in point]
        above, below = (
            total(*(p + h * v for p, v in zip(point, directions, strict=True)))
            for h in (1e-5, -1e-5)
        )
        slope = sum(float((g * v).sum()) for g, v in zip(gradient, directions, strict=True))
        assert (above - below) / 2e-5 == pytest.approx(slope, rel=1e-6)
    z, loc = (np.asarray(100 + a, np.float32) for a in point[:2])
    scale = np.float32(1e-3)
    log_p = Normal(jnp.asarray(loc), jnp.asarray(scale)).log_prob_pairs(jnp.asarray(z))
    expected = stats.norm.logpdf(z[..., None, :].astype(np.float64), loc.astype(np.float64), scale)
    np.testing.assert_allclose(log_p, expected.sum(-1), rtol=1e-5)


# --- Samplers -----------------------------------------------------------------------------------


def test_normal_samples():
    """Kolmogorov-Smirnov against SciPy, each of 12 components at a significance of 1e-4."""
    z = np.asarray(BATCHED["normal"].sample(jax.random.key(3), (4000,)))
    for b, d in itertools.product(range(B), range(D)):
        cdf = stats.norm(LOC[b, d], SCALE[b, d]).cdf
        assert stats.kstest(z[:, b, d], cdf).pvalue > 1e-4


def test_normal_samples_are_reparameterized():
    """z = loc + scale eps, so dz/dloc = 1 and dz/dscale = (z - loc) / scale."""
    q, key = BATCHED["normal"], jax.random.key(3)
    tangent = Normal(jnp.full((B, D), 2.0), jnp.full((B, D), 3.0))
    z, dz = jax.jvp(lambda q: q.sample(key, (K,)), (q,), (tangent,))
    np.testing.assert_allclose(dz, 2 + 3 * (z - LOC) / SCALE, rtol=1e-3, atol=1e-5)


def test_bernoulli_samples():
    x = np.asarray(BATCHED["bernoulli"].sample(jax.random.key(4), (4000,)))
    assert set(np.unique(x)) == {0.0, 1.0}
    for b, d in itertools.product(range(B), range(D)):
        count = int(x[:, b, d].sum())
        assert stats.binomtest(count, 4000, special.expit(LOC[b, d])).pvalue > 1e-4


def test_discretized_logistic_samples():
    """Chi-squared of the levels' counts against SciPy's cdf; rare levels are pooled."""
    loc, scale, count = 0.1, 0.05, 20000
    p = DiscretizedLogisticDistribution(jnp.full(1, loc), scale=jnp.full(1, scale))
    x = np.asarray(p.sample(jax.random.key(5), (count,)), np.float64)[:, 0] * 255
    np.testing.assert_allclose(x, np.round(x), atol=1e-4)
    expected = count * discretized_logistic_mass(loc, scale)
    observed = np.bincount(np.round(x).astype(int), minlength=256)
    common = expected > 5
    observed, expected = (np.append(n[common], n[~common].sum()) for n in (observed, expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_mixture_samples():
    """Kolmogorov-Smirnov of each coordinate against the weighted sum of SciPy's cdfs."""
    z = np.asarray(mixture().sample(jax.random.key(6), (4000,)))
    for d in range(D):

        def cdf(x, d=d):
            return stats.norm.cdf(x[:, None], LOC[:3, d], SCALE[:3, d]) @ np.exp(LOG_WEIGHTS)

        assert stats.kstest(z[:, d], cdf).pvalue > 1e-4


# --- Divergences --------------------------------------------------------------------------------


def closed_form(q, p) -> np.ndarray:
    kl = exact_kl(q, p)
    assert kl is not None
    return np.asarray(kl)


def test_exact_kl_of_normals_is_numpyros():
    q, p = BATCHED["normal"], Normal(jnp.asarray(LOC[::-1]), jnp.asarray(SCALE.T.reshape(B, D)))
    expected = dist.kl_divergence(
        dist.Normal(q.loc, q.scale).to_event(1), dist.Normal(p.loc, p.scale).to_event(1)
    )
    np.testing.assert_allclose(closed_form(q, p), expected, rtol=1e-5)
    assert closed_form(q, p).shape == (B,)
    np.testing.assert_allclose(closed_form(q, q), np.zeros(B), atol=1e-6)


def test_exact_kl_to_the_standard_normal():
    """Kingma & Welling (2013), appendix B: -1/2 sum (1 + ln s² - m² - s²)."""
    q, p = BATCHED["normal"], Normal(jnp.zeros(D), jnp.ones(D))
    expected = -0.5 * (1 + np.log(SCALE**2) - LOC**2 - SCALE**2).sum(-1)
    np.testing.assert_allclose(closed_form(q, p), expected, rtol=1e-5)


def test_exact_kl_of_bernoullis_is_the_enumerated_sum():
    """sum over the 2^D values of q(x) ln q(x)/p(x), with SciPy's masses."""
    q, p = BATCHED["bernoulli"], BernoulliDistribution(jnp.asarray(LOC[::-1] * 2))
    values = np.array(list(itertools.product((0, 1), repeat=D)))[:, None]
    log_q, log_p = (
        stats.bernoulli.logpmf(values, special.expit(np.float64(r.loc))).sum(-1) for r in (q, p)
    )
    expected = (np.exp(log_q) * (log_q - log_p)).sum(0)
    np.testing.assert_allclose(closed_form(q, p), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (BATCHED["normal"], Normal(jnp.full(D, 0.3), jnp.full(D, 1.2))),
        (BATCHED["bernoulli"], BernoulliDistribution(jnp.full((B, D), 0.3))),
    ],
    ids=["normal", "bernoulli"],
)
def test_exact_kl_is_the_mean_of_sampled_log_ratios(q, p):
    z, log_q = q.sample_and_log_prob(jax.random.key(7), (20000,))
    ratios = np.asarray(log_q - p.log_prob(z), np.float64)
    assert within_standard_errors(ratios, closed_form(q, p))


def test_exact_kl_is_none_without_a_closed_form():
    assert exact_kl(BATCHED["normal"], mixture()) is None


# --- VampPrior ----------------------------------------------------------------------------------

SHAPE = (2, 2, 1)


@pytest.fixture(scope="module")
def vamp():
    """A VAE with a VampPrior of three components, and its parameters."""
    model = VAE(
        encoder=MLP((6,)),
        posterior=DiagonalGaussian(D),
        prior=VampPrior(3),
        decoder=MLP((6,)),
        likelihood=Bernoulli(),
        image_shape=SHAPE,
    )
    x = jnp.zeros((1, *SHAPE))
    params = jax.jit(model.init)(jax.random.key(0), x, keys(0, 1))["params"]
    # Components far apart, so that a wrong density cannot hide.
    spread = jax.random.uniform(jax.random.key(1), (3, *SHAPE))
    return model, {**params, "prior": {"pseudo_inputs": spread}}


def prior_log_prob(model, params, z):
    def log_prob(model, z):
        return model.prior(model).log_prob(z)

    return model.apply({"params": params}, z, method=log_prob)


def test_vamp_prior_density(vamp):
    """ln 1/C sum_c q(z|u_c) in NumPy: the encoder by hand, SciPy's normal density."""
    model, params = vamp
    host = jax.tree.map(np.float64, params)
    u = host["prior"]["pseudo_inputs"].reshape(3, -1)
    dense = host["encoder"]["Dense_0"]
    hidden = np.tanh(u @ dense["kernel"] + dense["bias"])
    loc, log_scale = (
        hidden @ host["posterior"][name]["kernel"] + host["posterior"][name]["bias"]
        for name in ("loc", "log_scale")
    )
    z = np.random.default_rng(0).normal(size=(K, B, D)).astype(np.float32)
    components = stats.norm.logpdf(z[..., None, :], loc, np.exp(log_scale)).sum(-1)
    expected = special.logsumexp(components, axis=-1) - np.log(3)
    np.testing.assert_allclose(prior_log_prob(model, params, z), expected, rtol=1e-5)


def test_vamp_prior_learns_its_pseudo_inputs_within_the_unit_interval(vamp):
    model, params = vamp
    z = np.random.default_rng(0).normal(size=(B, D)).astype(np.float32)

    @jax.jit
    def mean_log_prob(pseudo_inputs):
        changed = {**params, "prior": {"pseudo_inputs": pseudo_inputs}}
        return prior_log_prob(model, changed, z).mean()

    inside = params["prior"]["pseudo_inputs"]
    assert np.all(jax.grad(mean_log_prob)(inside) != 0)
    black, white = jnp.zeros_like(inside), jnp.ones_like(inside)
    assert mean_log_prob(black - 3) == mean_log_prob(black)
    assert mean_log_prob(white + 3) == mean_log_prob(white)
    assert mean_log_prob(white) != mean_log_prob(black)
