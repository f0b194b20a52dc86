"""The von Mises-Fisher distribution against SciPy's densities and Bessel functions."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import special, stats

from vae_jax import ELBO, HypersphericalUniform, VaeJaxError, VampPrior, VonMisesFisher
from vae_jax.distributions import (
    HypersphericalUniformDistribution,
    VonMisesFisherDistribution,
    exact_kl,
)

DIMS = (2, 3, 5, 20, 50)
KAPPAS = np.array([0.1, 1.0, 10.0, 100.0, 1000.0])
every_dim = pytest.mark.parametrize("dim", DIMS)
every_sampled_dim = pytest.mark.parametrize("dim", [2, 3, 20])


def directions(seed: int, *shape: int) -> np.ndarray:
    """Random unit vectors, float32."""
    z = np.random.default_rng(seed).normal(size=shape)
    return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


def von_mises_fisher(dim: int, kappas: np.ndarray, seed: int = 0) -> VonMisesFisherDistribution:
    """A batch with these concentrations and random mean directions."""
    loc = jnp.asarray(directions(seed, len(kappas), dim))
    return VonMisesFisherDistribution(loc, jnp.asarray(kappas, jnp.float32))


def log_bessel_normalizer(kappa: Any, dim: int) -> np.ndarray:
    """ln of the integral of exp(kappa mu.z): (2 pi)^(d/2) I_(d/2-1)(kappa) kappa^(1-d/2)."""
    order = dim / 2 - 1
    log_bessel = np.log(special.ive(order, kappa)) + kappa
    return dim / 2 * np.log(2 * np.pi) + log_bessel - order * np.log(kappa)


def bessel_resultant(kappa: Any, dim: int) -> np.ndarray:
    """E[mu.z] = I_(d/2) / I_(d/2-1)."""
    return special.ive(dim / 2, kappa) / special.ive(dim / 2 - 1, kappa)


def log_sphere_area(dim: int) -> float:
    return np.log(2) + dim / 2 * np.log(np.pi) - special.gammaln(dim / 2)


def within_standard_errors(samples: np.ndarray, expected: Any, axis: int = 0) -> bool:
    """Whether Monte Carlo means are within 4 standard errors."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis) / np.sqrt(samples.shape[axis])
    return bool(np.all(np.abs(samples.mean(axis) - expected) <= 4 * error))


# --- Density and divergence ---------------------------------------------------------------------


@every_dim
def test_density_mean_and_kl_are_scipys(dim):
    """scipy.stats.vonmises_fisher at random points and near the mean; Bessel functions for others.

    Flat at kappa = 0 and nearly so at 1e-6; float32 also at 1e4 and 1e5.
    """
    kappas = np.concatenate([[0.0, 1e-6], KAPPAS, [1e4, 1e5]])
    q, p = von_mises_fisher(dim, kappas), HypersphericalUniformDistribution(dim)
    z = directions(1, 6, len(kappas), dim)
    z[:3] = q.loc + z[:3] / np.sqrt(1 + kappas)[:, None]
    z /= np.linalg.norm(z, axis=-1, keepdims=True)

    @jax.jit
    def evaluate(q, z):
        kl, slope = jax.vjp(lambda kappa: exact_kl(q.replace(kappa=kappa), p), q.kappa)
        return q.log_prob(z), q.mean, kl, slope(jnp.ones_like(q.kappa))[0]

    log_q, mean, kl, slope = evaluate(q, z)
    assert log_q.shape == (6, len(kappas))
    np.testing.assert_allclose(log_q[:, :2], np.full((6, 2), -log_sphere_area(dim)), rtol=1e-5)
    np.testing.assert_allclose(mean[:2], np.zeros((2, dim)), atol=1e-6)
    np.testing.assert_allclose(kl[:2], np.zeros(2), atol=1e-5)
    np.testing.assert_allclose(slope[:2], np.zeros(2), atol=1e-5)
    for b, kappa in enumerate(kappas[2:], start=2):
        loc = np.asarray(q.loc[b], np.float64)
        expected = stats.vonmises_fisher(loc / np.linalg.norm(loc), kappa).logpdf(z[:, b])
        # The float32 unit vectors themselves are off by 1e-7.
        np.testing.assert_allclose(log_q[:, b], expected, rtol=1e-5, atol=1e-4 + 4e-7 * kappa)
        np.testing.assert_allclose(mean[b], bessel_resultant(kappa, dim) * loc, atol=1e-6)
    kappas = kappas[2:]
    resultant = bessel_resultant(kappas, dim)
    expected = kappas * resultant - log_bessel_normalizer(kappas, dim) + log_sphere_area(dim)
    np.testing.assert_allclose(kl[2:], expected, rtol=1e-5, atol=2e-5)
    # d KL / d kappa = kappa A', and A' = 1 - A² - (d - 1) A / kappa.
    expected = kappas * (1 - resultant**2) - (dim - 1) * resultant
    np.testing.assert_allclose(slope[2:7], expected[:5], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(slope[7:] * kappas[5:], (dim - 1) / 2, rtol=0.01)  # its limit


@every_sampled_dim
def test_density_integrates_to_one(dim):
    """Over caps of angle t around loc, whose area element is A_(d-1) sin(t)^(d-2) dt."""
    q = von_mises_fisher(dim, KAPPAS)
    loc = np.asarray(q.loc, np.float64)
    other = directions(2, len(KAPPAS), dim).astype(np.float64)
    other -= (other * loc).sum(-1, keepdims=True) * loc
    other /= np.linalg.norm(other, axis=-1, keepdims=True)
    edges = np.linspace(0, np.pi, 20001)
    t = (edges[:-1] + edges[1:]) / 2
    z = np.cos(t)[:, None, None] * loc + np.sin(t)[:, None, None] * other
    density = np.exp(np.asarray(jax.jit(q.log_prob)(z.astype(np.float32)), np.float64))
    area = np.exp(log_sphere_area(dim - 1)) * np.sin(t)[:, None] ** (dim - 2)
    np.testing.assert_allclose((density * area).sum(0) * (t[1] - t[0]), 1, rtol=1e-4)


# --- Sampler ------------------------------------------------------------------------------------


class Draws(NamedTuple):
    """20,000 samples of a batch, ln q of each, and their derivatives.

    By kappa, and by loc along `tangent`, a unit vector orthogonal to it.
    """

    kappa: np.ndarray
    loc: np.ndarray
    tangent: np.ndarray
    z: np.ndarray
    log_q: np.ndarray
    by_kappa: np.ndarray
    by_loc: np.ndarray


@cache
def draws(dim: int) -> Draws:
    q = von_mises_fisher(dim, np.array([1e-3, 0.5, 3.0, 30.0, 300.0, 1e4]), seed=3)
    loc = np.asarray(q.loc, np.float64)
    tangent = np.random.default_rng(6).normal(size=loc.shape)
    tangent -= (tangent * loc).sum(-1, keepdims=True) * loc
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)

    def sample(q):
        return q.sample_and_log_prob(jax.random.key(1), (20000,))

    @jax.jit
    def everything(q, tangent):
        (z, log_q), derivative = jax.linearize(sample, q)
        by_kappa, _ = derivative(q.replace(loc=0 * q.loc, kappa=jnp.ones_like(q.kappa)))
        by_loc, _ = derivative(q.replace(loc=tangent, kappa=0 * q.kappa))
        return z, log_q, by_kappa, by_loc

    made = everything(q, jnp.asarray(tangent, jnp.float32))
    return Draws(
        np.asarray(q.kappa, np.float64), loc, tangent, *(np.asarray(x, np.float64) for x in made)
    )


@pytest.mark.others_slow
@every_sampled_dim
def test_samples(dim):
    """Kolmogorov-Smirnov on the angle to loc, by a cdf summed from the density; moments.

    E[z] = A loc and E[z z'] = A/kappa I + (1 - d A/kappa) loc loc', A by Bessel functions.
    """
    kappas, loc, _, z, *_ = draws(dim)
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-6)
    edges = np.linspace(0, np.pi, 400001)
    t = (edges[:-1] + edges[1:]) / 2
    for b, kappa in enumerate(kappas):
        angle = 2 * np.arctan2(
            np.linalg.norm(z[:, b] - loc[b], axis=-1), np.linalg.norm(z[:, b] + loc[b], axis=-1)
        )
        cdf = np.exp(kappa * (np.cos(t) - 1) + (dim - 2) * np.log(np.sin(t))).cumsum()
        cdf = partial(np.interp, xp=edges[1:], fp=cdf / cdf[-1])
        assert stats.kstest(angle[:4000], cdf).pvalue > 1e-4
        resultant = bessel_resultant(kappa, dim)
        assert within_standard_errors(z[:, b], resultant * loc[b])
        second = resultant / kappa * np.eye(dim)
        second += (1 - dim * resultant / kappa) * np.outer(loc[b], loc[b])
        assert within_standard_errors(z[:, b, :, None] * z[:, b, None, :], second)


@pytest.mark.others_slow
@every_sampled_dim
def test_kl_is_the_mean_of_sampled_log_ratios(dim):
    kappas, _, _, z, log_q, *_ = draws(dim)
    q, p = von_mises_fisher(dim, kappas), HypersphericalUniformDistribution(dim)
    assert within_standard_errors(log_q - np.asarray(p.log_prob(jnp.asarray(z))), exact_kl(q, p))


@every_sampled_dim
def test_reparameterized_gradients(dim):
    """d/dkappa and d/dloc of E[exp(a.z)] = Z(|kappa loc + a|) / Z(kappa), by differences.

    Along the sphere at loc, each within 4 standard errors of the samples' own derivatives.
    """
    kappas, loc, tangent, z, _, by_kappa, by_loc = draws(dim)
    a = 2 * directions(5, dim).astype(np.float64)

    def log_expectation(kappa, loc):
        moved = np.linalg.norm(kappa[:, None] * loc + a, axis=-1)
        return log_bessel_normalizer(moved, dim) - log_bessel_normalizer(kappa, dim)

    def difference(dkappa, dloc):
        forward, back = (
            np.exp(log_expectation(kappas + step * dkappa, loc + step * dloc))
            for step in (1e-5, -1e-5)
        )
        return (forward - back) / 2e-5

    of_exp = np.exp(z @ a)[..., None] * a
    expected = difference(np.minimum(kappas, 1.0), 0 * tangent)
    # At kappa = 1e4 the difference of Bessel functions has lost its digits.
    scaled = (of_exp * by_kappa).sum(-1) * np.minimum(kappas, 1.0)
    assert within_standard_errors(scaled[:, :5], expected[:5])
    assert within_standard_errors((of_exp * by_loc).sum(-1), difference(0 * kappas, tangent))


def derivatives_along_the_inverse_cdf():
    """The cdf u of draws on the sphere in R^3, d w / d ln kappa at u by differences, and ours.

    w = loc.z has F(w) = (e^(kw) - e^(-k)) / (e^k - e^(-k)), invertible.
    """
    kappas, loc, _, z, _, by_kappa, _ = draws(3)
    chosen = slice(1, 5)  # where NumPy's formula has digits left
    kappas, loc = kappas[chosen], loc[chosen]
    w = (z[:, chosen] * loc).sum(-1)
    u = np.exp(kappas * (w - 1)) * np.expm1(-kappas * (w + 1)) / np.expm1(-2 * kappas)

    def inverse(kappa):
        return 1 + np.log(u + (1 - u) * np.exp(-2 * kappa)) / kappa

    expected = (inverse(1.001 * kappas) - inverse(0.999 * kappas)) / 0.002
    return u, expected, kappas * (by_kappa[:, chosen] * loc).sum(-1)


def test_each_samples_derivative_is_that_of_the_inverse_cdf():
    u, expected, derivative = derivatives_along_the_inverse_cdf()
    assert (u < 1e-5).any()
    np.testing.assert_allclose(derivative, expected, rtol=1e-3, atol=1e-4)


class AngleDensity(NamedTuple):
    """The density of the angle to loc, and integrals of it, by quadrature in float64."""

    dim: int
    kappa: float

    def __call__(self, t: np.ndarray) -> np.ndarray:
        """Up to a constant, which keeps it from underflow at its mode."""
        half = self.dim / 2 - 1
        mode = np.arccos(self.kappa / (half + np.hypot(half, self.kappa) + 1e-300))

        def log_density(t: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore"):
                log_sine = np.log(np.sin(t)) if half else 0 * t
            return 2 * half * log_sine - 2 * self.kappa * np.sin(t / 2) ** 2

        return np.exp(log_density(t) - log_density(mode))

    def integral(self, low: float, high: float, of_angle: Any = np.ones_like) -> float:
        nodes, weights = np.polynomial.legendre.leggauss(60)
        edges = np.linspace(0, np.pi, 20)[1:-1]
        near = 10 ** np.linspace(-5, 0, 40)  # where a large kappa puts all mass
        cuts = np.unique(np.clip([low, high, *edges, *near], low, high))
        half, middle = np.diff(cuts)[:, None] / 2, (cuts[1:] + cuts[:-1])[:, None] / 2
        t = middle + half * nodes
        return float((half * weights * self(t) * of_angle(t)).sum())


@pytest.mark.parametrize("dim", [2, 3, 4, 20, 200])
def test_the_ends_of_the_noise(dim):
    """The least and the greatest u and some between, over kappa.

    From the nearer end, the mass up to the angle is that of u, and d angle / d kappa the implicit
    derivative there. Near u = 1 there were draws that are no numbers and gradients of 1e20.
    """
    kappas = np.array([0.0, 1e-3, 1.0, 1.7, 5.4, 17.0, 300.0, 1e4, 1e6])
    us = np.array([2.0**-24, 2.0**-20, 1e-3, 0.5, 1 - 1e-3, 1 - 2.0**-20, 1 - 2.0**-24])

    @jax.jit
    def angles(kappa: Any) -> Any:
        def of(kappa: Any) -> Any:
            loc = jnp.zeros((len(kappas), dim)).at[:, 0].set(1.0)
            u = jnp.broadcast_to(jnp.asarray(us, jnp.float32)[:, None], (len(us), len(kappas)))
            return VonMisesFisherDistribution(loc, kappa)._angle(u)

        return jax.jvp(of, (kappa,), (jnp.ones_like(kappa),))

    found, slopes = map(np.asarray, angles(jnp.asarray(kappas, jnp.float32)))
    for b, kappa in enumerate(kappas.astype(np.float32).astype(np.float64).tolist()):
        density = AngleDensity(dim, kappa)
        total = density.integral(0, np.pi)
        mean = density.integral(0, np.pi, np.cos) / total
        for u, angle, slope in zip(us.tolist(), found[:, b].tolist(), slopes[:, b], strict=True):
            angle = min(angle, np.pi)
            end, mass = ((0, angle), u) if u <= 0.5 else ((angle, np.pi), 1 - u)
            height = float(density(np.array(angle))) / total
            # The angle has float32's digits, and in a window of 32 deviations 2^-24 of them.
            digits = 4e-7 + 4e-6 / np.sqrt(dim + kappa)
            reached = density.integral(*end) / total
            assert abs(reached - mass) <= 1e-4 * mass + digits * height, (kappa, u)
            change = density.integral(*end, lambda t, mean=mean: np.cos(t) - mean) / total
            expected = change / height * (-1 if u <= 0.5 else 1)
            assert abs(slope - expected) <= 1e-3 * abs(expected) + digits, (kappa, u)


def test_gradients_are_finite_where_loc_meets_the_axis():
    """A reflection from e_1 to loc has no gradient at loc = e_1, unless it is chosen well."""
    q = VonMisesFisherDistribution(
        jnp.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), jnp.full(3, 1e4)
    )

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(q):
        z, log_q = q.sample_and_log_prob(jax.random.key(0), (5000,))
        return z.sum() + log_q.sum(), z.mean(0)

    gradients, mean = gradient(q)
    np.testing.assert_allclose(mean, q.loc, atol=1e-3)  # 7 standard errors
    assert np.isfinite(gradients.loc).all()
    assert np.isfinite(gradients.kappa).all()


def test_noise_is_each_examples_own():
    """With keys [B], example b's draw depends on key[b] and its own parameters alone."""
    q, keys = von_mises_fisher(4, KAPPAS), jax.random.split(jax.random.key(0), len(KAPPAS))
    sample = jax.jit(lambda q, keys: q.sample(keys, (3,)))
    z = sample(q, keys)
    order = np.array([3, 1, 4, 0, 2])
    shuffled = sample(jax.tree.map(lambda leaf: leaf[order], q), keys[order])
    np.testing.assert_allclose(shuffled, z[:, order], atol=1e-6)
    assert len(np.unique(z)) == z.size


# --- The uniform distribution -------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 20])
def test_the_uniform_distribution(dim):
    """SciPy's area; each coordinate is 2 Beta((d-1)/2, (d-1)/2) - 1."""
    p = HypersphericalUniformDistribution(dim)
    z = np.asarray(p.sample(jax.random.key(5), (4000,)), np.float64)
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(
        p.log_prob(jnp.asarray(z)), np.full(4000, -log_sphere_area(dim)), rtol=1e-6
    )
    for coordinate in z.T[:3]:
        marginal = stats.beta((dim - 1) / 2, (dim - 1) / 2, loc=-1, scale=2)
        assert stats.kstest(coordinate, marginal.cdf).pvalue > 1e-4
    assert within_standard_errors(z, p.mean)


# --- In a model ---------------------------------------------------------------------------------


def test_posterior_has_a_direction_even_for_features_of_zero():
    """Zero features and zero biases: e_1, kappa = 1 + ln 2, and gradients that are finite."""
    posterior, features = VonMisesFisher(3), jnp.zeros((2, 4)).at[1].set(1.0)
    params = jax.jit(posterior.init)(jax.random.key(0), features)

    def loss(params):
        q: Any = posterior.apply(params, features)
        return (q.loc * jnp.arange(3.0)).sum() + q.kappa.sum(), q

    gradients, q = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(q.loc[0], [1, 0, 0])
    np.testing.assert_allclose(np.linalg.norm(q.loc, axis=-1), 1, rtol=1e-6)
    assert q.kappa[0] == pytest.approx(1 + np.log(2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    with pytest.raises(
        VaeJaxError, match="dim of VonMisesFisher is 1: give a whole number of at least 2"
    ):
        VonMisesFisher(1).init(jax.random.key(0), features)


@pytest.mark.others_slow
@pytest.mark.parametrize("prior", [HypersphericalUniform(3), VampPrior(4)], ids=["uniform", "vamp"])
def test_every_parameter_of_a_model_on_the_sphere_has_a_gradient(prior):
    """ELBO, with the exact KL from the uniform prior and a sampled one from a VampPrior."""
    model = tiny.model().clone(posterior=VonMisesFisher(3), prior=prior)
    x = jnp.asarray(tiny.images(6, 0) / 255, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 6)

    @jax.jit
    def everything():
        params = model.init(jax.random.key(0), x, keys)["params"]

        def loss(params):
            terms: Any = model.apply({"params": params}, x, keys, 3)
            return ELBO(3)(terms, jnp.int32(0), tiny.model())[0], terms.kl

        (z,), _ = model.apply({"params": params}, keys, method="sample")
        return jax.value_and_grad(loss, has_aux=True)(params), z

    ((loss, kl), gradients), z = everything()
    assert np.isfinite(loss)
    assert (kl is None) == isinstance(prior, VampPrior)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-6)
