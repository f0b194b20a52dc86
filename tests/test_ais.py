"""Annealed importance sampling against exact likelihoods; its transitions against their targets."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import integrate, special, stats
from test_evaluate import make_run

from vae_jax import (
    AIS,
    MLP,
    Bernoulli,
    DiagonalGaussian,
    GumbelSoftmax,
    HierarchicalVAE,
    StandardNormal,
    UniformConcrete,
    VaeJaxError,
    evaluate,
)
from vae_jax.evaluation.ais import (
    ACCEPTANCE,
    FIRST_STEP_SIZE,
    PILOTS,
    anneal,
    bracket,
    forward,
    log_mean_exp,
    make_ais_evaluator,
    reverse,
    simulate,
)
from vae_jax.hmc import Point, hmc, leapfrog, make_point_at
from vae_jax.report import rows_of
from vae_jax.step import init_state

SHAPE, D = (2, 4, 1), 2


def keys(seed: int, n: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def log_normal(z):
    return stats.norm.logpdf(z)


def bimodal(z):
    """A log-likelihood with two modes of different width, at -1 and 1.5."""
    return jnp.logaddexp(-3 * (z + 1) ** 2, -0.5 - 8 * (z - 1.5) ** 2)


def point_at(z: jax.Array) -> Point:
    """A standard normal prior and the sum of `bimodal` over the components."""
    gradient = jax.vmap(jax.vmap(jax.grad(lambda z: bimodal(z).sum())))
    log_pz = jax.scipy.stats.norm.logpdf(z).sum(-1)
    return Point(z, log_pz, bimodal(z).sum(-1), -z, gradient(z))


# --- Temperatures and transitions ---------------------------------------------------------------


def test_temperatures_are_a_sigmoid_from_0_to_1():
    """By hand for T = 2 and T = 4; ends that are exact, for any T."""
    assert AIS(2).betas == pytest.approx([0, 0.5, 1])
    quarter = (special.expit(-2) - special.expit(-4)) / (special.expit(4) - special.expit(-4))
    assert AIS(4).betas == pytest.approx([0, quarter, 0.5, 1 - quarter, 1])
    betas = AIS(1000).betas
    assert (betas[0], betas[-1], len(betas)) == (0, 1, 1001)
    assert (np.diff(betas) > 0).all()


@pytest.mark.parametrize("setting", ["num_temperatures", "num_chains", "num_leapfrog"])
def test_senseless_settings_are_refused(setting):
    with pytest.raises(VaeJaxError, match=f"{setting} of AIS is -1"):
        AIS(**{setting: -1})


def test_leapfrog_is_reversible_and_preserves_volume():
    """Seven steps, the momentum turned round, seven steps: the start. The Jacobian has det 1."""
    with jax.enable_x64(True):
        beta, step_size = jnp.asarray(0.7), jnp.array([0.2])

        @jax.jit
        def move(both):
            z, momentum = both
            start = point_at(z[None, None])
            end, momentum = leapfrog(point_at, start, momentum[None, None], beta, step_size, 7)
            return end.z[0, 0], momentum[0, 0]

        start = jnp.array([0.3, -1.2]), jnp.array([0.5, 0.8])
        z, momentum = move(start)
        assert np.abs(z - start[0]).max() > 0.5
        z, momentum = move((z, -momentum))
        np.testing.assert_allclose((z, -momentum), start, atol=1e-10)
        jacobian = jax.jacfwd(lambda flat: jnp.concatenate(move(jnp.split(flat, 2))))
        determinant = np.linalg.det(jacobian(jnp.concatenate(start)))
    assert determinant == pytest.approx(1, abs=1e-9)


def test_hmc_leaves_its_target_as_it_is():
    """Exact draws by the inverse CDF stay draws of p(z) p(x|z)^beta: Kolmogorov-Smirnov at 1e-4.

    Many moves are rejected, so that a wrong acceptance would show.
    """
    beta, count = 0.6, 20_000
    grid = np.linspace(-6, 6, 40001)
    log_target = log_normal(grid) + beta * np.asarray(bimodal(grid), np.float64)
    cdf = integrate.cumulative_trapezoid(np.exp(log_target), grid, initial=0)
    cdf /= cdf[-1]
    u = np.random.default_rng(0).uniform(size=count)
    z = jnp.asarray(np.interp(u, cdf, grid), jnp.float32)[:, None, None]

    @jax.jit
    def move(point, key):
        return hmc(point_at, point, key[None], jnp.float32(beta), jnp.array([0.6]), 3)

    point, probabilities = point_at(z), []
    for key in keys(1, 4):
        point, probability = move(point, key)
        probabilities.append(probability.mean())
    moved = np.asarray(point.z)[:, 0, 0]
    assert stats.kstest(moved, lambda value: np.interp(value, grid, cdf)).pvalue > 1e-4
    assert abs(np.corrcoef(moved, z[:, 0, 0])[0, 1]) < 0.9
    assert np.mean(probabilities) < 0.97


def test_without_moves_it_is_importance_sampling_from_the_prior():
    """sum_t (beta_t - beta_{t-1}) ln p(x|z) = ln p(x|z) where z stays."""
    z = jax.random.normal(jax.random.key(0), (PILOTS + 6, 3, 2))
    still = jax.jit(partial(forward, point_at, settings=AIS(13, num_leapfrog=0)))
    annealed = still(z, keys(1, 3))
    np.testing.assert_allclose(annealed.log_w, bimodal(z[PILOTS:]).sum(-1), rtol=1e-5)
    assert (np.asarray(annealed.acceptance) == 1).all()


# --- Exact likelihoods --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ppca(fit_linear_gaussian):
    """Images whose covariance has the eigenvalues 4, 2 and, six times, about 0.3."""
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    noise = np.sqrt([4.0, 2.0, 0.35, 0.3, 0.3, 0.3, 0.3, 0.25])
    x = ((generator.normal(size=(100, 8)) * noise) @ basis.T + 0.5).reshape(100, *SHAPE)
    return fit_linear_gaussian(x, D)


@pytest.fixture(scope="module")
def variables(ppca):
    return jax.tree.map(np.float32, ppca.variables)


@pytest.fixture(scope="module")
def simulated(ppca, variables):
    """2000 images and their latents."""
    return jax.jit(partial(simulate, ppca.model))(variables, keys(0, 2000))


@pytest.mark.slow
def test_simulated_bounds_bracket_the_likelihood(ppca, variables, simulated):
    """Lower < ln p(x) < upper on average over 2000 simulated images, SciPy's density between them.

    With 3 temperatures by 4 standard errors; with 100 the gap is a tenth at most, and the bounds
    are within 0.15 nats of ln p(x).
    """
    x, z = simulated
    exact = ppca.log_likelihood(np.asarray(x, np.float64))
    gaps = []
    for temperatures in (3, 100):
        settings = AIS(temperatures, num_chains=4)
        bounds = jax.jit(partial(bracket, ppca.model, settings=settings))
        lower, upper = (np.float64(b) for b in bounds(variables, x, z, keys(1, 2000)))
        below, above = exact - lower, upper - exact
        gaps.append((below.mean(), above.mean()))
        for short in (below, above):
            assert short.mean() > (4 if temperatures == 3 else -4) * stats.sem(short)
    assert all(fine < 0.1 * coarse for coarse, fine in zip(*gaps, strict=True))
    assert max(gaps[1]) < 0.15


def test_weights_are_unbiased_both_ways(ppca, variables):
    """E[w] = p(x) forwards and E[1/w] = 1/p(x) backwards, of 20,000 chains with 6 temperatures.

    Each chain backwards starts from a draw of its own of the exact posterior, which the model's
    encoder is. 4 standard errors. A step size that a chain tuned for itself would fail.
    """
    count, settings = 20_000, AIS(6, 20_000, 3)
    offset = np.array([1, -1, 0.5, 0, 0, 0.5, 1, -1])
    x = jnp.asarray(ppca.mean + offset, jnp.float32).reshape(1, *SHAPE)
    exact = ppca.log_likelihood(np.asarray(x, np.float64))

    @jax.jit
    def both(variables, keys):
        annealed = anneal(ppca.model, variables, x, keys, settings)
        q: Any = ppca.model.apply(variables, x, method="encode")
        at = make_point_at(ppca.model, variables, x, lambda z: (z,))
        z = q.sample(jax.random.key(1), (count,))
        return annealed, reverse(at, z, keys, settings, annealed.step_sizes)

    annealed, log_w = both(variables, keys(2, 1))
    assert annealed.log_w.shape == log_w.shape == (count, 1)
    for ratio in (np.exp(annealed.log_w - exact), np.exp(exact - log_w)):
        ratio = np.float64(ratio)
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(count)
        assert 0.001 < ratio.std() / np.sqrt(count) < 0.05
    assert annealed.step_sizes[0] == pytest.approx(FIRST_STEP_SIZE)
    assert np.ptp(annealed.step_sizes) > 0


def test_step_sizes_reach_the_acceptance(ppca, variables, simulated):
    """Of 0.65, on average over temperatures and images."""
    x = simulated[0][:20]
    annealed = jax.jit(partial(anneal, ppca.model, settings=AIS(300, 8)))(variables, x, keys(1, 20))
    assert annealed.acceptance.mean() == pytest.approx(ACCEPTANCE, abs=0.08)


def one_layer():
    model = tiny.model().clone(
        posterior=DiagonalGaussian(1), prior=StandardNormal(1), image_shape=SHAPE
    )
    return model, lambda z: (z,)


def two_layers():
    model = HierarchicalVAE(
        encoders=[MLP((4,)), MLP((4,))],
        posteriors=[DiagonalGaussian(1), DiagonalGaussian(1)],
        prior=StandardNormal(1),
        decoders=[MLP((4,)), MLP((4,))],
        conditionals=[DiagonalGaussian(1)],
        likelihood=Bernoulli(),
        image_shape=SHAPE,
    )
    return model, lambda z: (z[..., :1], z[..., 1:])


@pytest.mark.parametrize(("make", "dim"), [(one_layer, 1), (two_layers, 2)])
def test_a_model_that_is_not_gaussian_against_quadrature(make, dim):
    """ln of the integral of p(x, z) over a grid of z, one dimension for each layer.

    The likelihood's weights are enlarged, so that the posterior is not the prior. 4 standard
    errors.
    """
    model, layers = make()
    x = np.random.default_rng(0).integers(0, 2, (3, *SHAPE)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(1), x, keys(0, 3))
    params = variables["params"]
    params["likelihood"] = jax.tree.map(lambda leaf: 3 * leaf, params["likelihood"])
    axis = np.linspace(-8, 8, 4001 if dim == 1 else 401, dtype=np.float32)
    grid = np.stack(np.meshgrid(*[axis] * dim), -1).reshape(-1, 1, dim)
    grid = np.broadcast_to(grid, (len(grid), 3, dim))
    joint = jax.jit(partial(model.apply, method="log_joint"))
    log_joint = joint(variables, x, layers(jnp.asarray(grid)))
    cell = float(axis[1] - axis[0]) ** dim
    exact = special.logsumexp(np.float64(log_joint), axis=0) + np.log(cell)

    annealed = jax.jit(partial(anneal, model, settings=AIS(40, 400)))(variables, x, keys(3, 3))
    ratio = np.exp(np.float64(annealed.log_w) - exact)
    assert (np.abs(ratio.mean(0) - 1) < 4 * ratio.std(0) / np.sqrt(400)).all()
    assert (ratio.std(0) > 1e-3).all()
    assert (ratio.std(0) < 1.5).all()


# --- A split on all devices ---------------------------------------------------------------------


@pytest.mark.slow
def test_evaluation(tmp_path):
    """21 images over 8 devices and as many simulated ones, in the table and its caption's terms."""
    experiment = tiny.experiment()
    variables = jax.jit(partial(init_state, experiment))(0).variables
    run = make_run(experiment, tmp_path, jax.tree.map(lambda leaf: leaf[None], variables))
    evaluation = evaluate(run, num_samples=64, ais=AIS(5, 2, 2))
    names = {"nll_ais", "simulated_nll_upper", "simulated_nll_lower", "ais_acceptance"}
    assert names <= set(evaluation.mean)
    assert all(evaluation.standard_error[name] > 0 for name in names)
    assert evaluation.mean["nll_ais"] == pytest.approx(evaluation.mean["nll"], abs=0.5)
    rows = {name: (value, unit) for name, value, unit, _ in rows_of(evaluation)}
    value, unit = rows["NLL, annealed bound, T = 5, 2 chains"]
    assert value.startswith(f"{evaluation.mean['nll_ais'][0]:.2f} ± ")
    assert unit == "nats"


def test_log_mean_exp():
    """ln of the mean, by SciPy, where the weights underflow."""
    log_w = np.array([[-900.0], [-902.0], [-901.0]])
    expected = special.logsumexp(log_w, 0) - np.log(3)
    np.testing.assert_allclose(log_mean_exp(jnp.asarray(log_w)), expected, rtol=1e-6)


def test_latents_without_gradients_are_refused():
    model = tiny.model().clone(posterior=GumbelSoftmax(2, 3, 0.5), prior=UniformConcrete(2, 3, 0.5))
    experiment = dataclasses.replace(tiny.experiment()).with_model(model)
    with pytest.raises(VaeJaxError, match=r"real latents.*GumbelSoftmax.*'simplex'"):
        make_ais_evaluator(experiment, "test", AIS())
