"""Approximation and amortization gaps of linear-Gaussian models, where both have closed forms."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_evaluate import make_run

from vae_jax import (
    DiagonalGaussian,
    HouseholderFlow,
    HouseholderSylvesterFlow,
    InverseAutoregressiveFlow,
    PlanarFlow,
    SylvesterFlow,
    TriangularSylvesterFlow,
    VaeJaxError,
    VonMisesFisher,
    evaluate,
)
from vae_jax.distributions import MultivariateNormal, Normal, Transformed
from vae_jax.evaluation.gaps import best, elbos, inference_gaps, make_gaps_evaluator, unconstrained
from vae_jax.flows import Planar
from vae_jax.step import init_state

SHAPE, D, N = (2, 4, 1), 2, 12


def keys(n: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), n)


@pytest.fixture(scope="module")
def x():
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    noise = np.sqrt([20.0, 1.0, 0.35, 0.3, 0.3, 0.3, 0.3, 0.25])
    return ((generator.normal(size=(100, 8)) * noise) @ basis.T + 0.5).reshape(100, *SHAPE)


@pytest.fixture(scope="module")
def ppca(fit_linear_gaussian, x):
    return fit_linear_gaussian(x, D)


@pytest.fixture(scope="module")
def correlated(ppca) -> Any:
    """The decoder's latents turned by 0.6 radians: p(x) stays, the posterior is correlated.

    Variables with an encoder that is 0.4 off in each mean, and the exact posterior's precision.
    """
    c, s = math.cos(0.6), math.sin(0.6)
    rotation = np.array([[c, -s], [s, c]])
    params = jax.tree.map(np.copy, ppca.variables["params"])
    weights = params["likelihood"]["loc"]["kernel"].T @ rotation
    noise = math.exp(2 * float(params["likelihood"]["log_scale"]))
    params["likelihood"]["loc"]["kernel"] = weights.T
    precision = np.eye(D) + weights.T @ weights / noise
    to_mean = weights @ np.linalg.inv(precision) / noise
    params["posterior"]["loc"] = {
        "kernel": to_mean,
        "bias": -params["likelihood"]["loc"]["bias"] @ to_mean + 0.4,
    }
    return {"params": jax.tree.map(np.float32, params)}, precision


def kl_normals(loc, covariance, other_loc, other_covariance):
    """KL between two multivariate normals, by the formula in terms of covariances."""
    inverse = np.linalg.inv(other_covariance)
    shift = other_loc - loc
    return 0.5 * (
        np.trace(inverse @ covariance)
        + shift @ inverse @ shift
        - len(loc)
        + np.linalg.slogdet(other_covariance)[1]
        - np.linalg.slogdet(covariance)[1]
    )


@pytest.mark.slow
def test_gaps_of_a_wrong_encoder_with_a_correlated_posterior(ppca, correlated, x):
    """Both gaps in closed form (Cremer et al. 2018, for a Gaussian posterior).

    L[q] = ln p(x) - KL(q || p(z|x)). The best mean-field Gaussian has the posterior's mean and the
    inverse diagonal of its precision P: a gap of 1/2 [sum ln P_ii - ln det P]; the rest is
    amortization. With 4096 samples that both bounds share.
    """
    variables, precision = correlated
    images = np.float32(x[:N])
    found = jax.jit(partial(elbos, ppca.model), static_argnums=3)(variables, images, keys(N), 4096)
    exact = ppca.log_likelihood(x[:N])
    values = {name: np.asarray(bound, np.float64)[None] for name, bound in found.items()}
    gaps = inference_gaps({"nll": -exact.reshape(1, N), **values})

    approximation = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert approximation > 0.3
    q: Any = ppca.model.apply(variables, images, method="encode")
    covariance = np.linalg.inv(precision)
    total = [
        kl_normals(loc, np.diag(scale**2), loc - 0.4, covariance)
        for loc, scale in zip(np.asarray(q.loc), np.asarray(q.scale), strict=True)
    ]
    np.testing.assert_allclose(gaps["approximation_gap"][0], approximation, atol=0.1)
    mean_gap = gaps["approximation_gap"].mean()
    assert mean_gap == pytest.approx(approximation, abs=0.04)
    amortization = np.array(total) - approximation
    np.testing.assert_allclose(gaps["amortization_gap"][0], amortization, rtol=0.1, atol=0.1)
    assert gaps["amortization_gap"].mean() == pytest.approx(amortization.mean(), rel=0.03)


def test_the_best_of_a_family_that_holds_the_posterior_is_the_posterior(ppca, correlated, x):
    """Full covariance: q* has the exact mean and covariance, so no approximation gap is left."""
    variables, precision = correlated
    images, flat = np.float32(x[:N]), x[:N].reshape(N, -1)
    start = MultivariateNormal(jnp.zeros((N, D)), jnp.broadcast_to(jnp.eye(D), (N, D, D)))
    found: Any = jax.jit(partial(best, ppca.model))(variables, start, images, keys(N))
    loc = variables["params"]["posterior"]["loc"]
    np.testing.assert_allclose(found.loc, flat @ loc["kernel"] + loc["bias"] - 0.4, atol=0.03)
    covariance = np.asarray(found.scale_tril) @ np.swapaxes(found.scale_tril, 1, 2)
    np.testing.assert_allclose(
        covariance, np.broadcast_to(np.linalg.inv(precision), (N, D, D)), atol=0.02
    )


def test_no_gap_of_an_exact_encoder(ppca, x):
    """q is p(z|x) already: both gaps are zero, and each image's result is its own."""
    variables = jax.tree.map(np.float32, ppca.variables)
    compiled = jax.jit(partial(elbos, ppca.model), static_argnums=3)
    found = compiled(variables, np.float32(x[:N]), keys(N), 1024)
    np.testing.assert_allclose(found["elbo"] - found["elbo_optimal"], 0, atol=0.02)
    exact = ppca.log_likelihood(x[:N])
    assert np.mean(found["elbo_optimal"]) == pytest.approx(exact.mean(), abs=0.1)


def test_optimization_does_not_depend_on_the_rest_of_the_batch(ppca, correlated, x):
    variables, _ = correlated
    images, own = x[:N].astype(np.float32), keys(N)
    start = Normal(jnp.zeros((N, D)), jnp.ones((N, D)))
    find = jax.jit(partial(best, ppca.model))
    together = find(variables, start, images, own)
    few = jax.tree.map(lambda leaf: leaf[3:5], start)
    alone = find(variables, few, images[3:5], own[3:5])
    np.testing.assert_allclose(alone.loc, together.loc[3:5], atol=1e-4)
    np.testing.assert_allclose(alone.scale, together.scale[3:5], atol=1e-4)


def test_unconstrained_parameters_make_the_density_they_came_from():
    generator = np.random.default_rng(0)
    tril = np.tril(generator.normal(size=(3, 2, 2)), -1) + np.eye(2) * generator.uniform(0.1, 2)
    z = jnp.asarray(generator.normal(size=(3, 2)))
    for q in (
        Normal(z + 1, jnp.exp(z)),
        Normal(z, jnp.ones(2)),
        MultivariateNormal(z - 1, jnp.asarray(tril)),
    ):
        theta, make = unconstrained(q)
        np.testing.assert_allclose(make(theta).log_prob(z), q.log_prob(z), rtol=1e-5)


def test_the_tighter_bound_on_the_likelihood_counts():
    """On average over images, for each seed by itself."""
    nll = np.array([[1.0, 2.0], [5.0, 6.0]])
    values = {"nll": nll, "nll_ais": np.array([[0.5, 2.2], [5.1, 6.0]])}
    bounds = {"elbo": -nll - 3, "elbo_optimal": -nll - 1}
    gaps = inference_gaps(values | bounds)
    np.testing.assert_allclose(gaps["approximation_gap"], [[1.5, 0.8], [1.0, 1.0]])
    np.testing.assert_allclose(gaps["amortization_gap"], 2)
    np.testing.assert_allclose(inference_gaps({"nll": nll} | bounds)["approximation_gap"], 1)


@pytest.mark.slow
@pytest.mark.parametrize("posterior", [DiagonalGaussian(2), PlanarFlow(2), SylvesterFlow(2, 2)])
def test_evaluation(posterior, tmp_path):
    """In the evaluation both gaps add up to what the ELBO loses against the best bound."""
    experiment = tiny.experiment().with_model(tiny.model().clone(posterior=posterior))
    variables = jax.jit(partial(init_state, experiment))(0).variables
    run = make_run(experiment, tmp_path, jax.tree.map(lambda leaf: leaf[None], variables))
    mean = evaluate(run, num_samples=64, num_images=5, gaps=True).mean
    total = mean["approximation_gap"] + mean["amortization_gap"]
    assert total == pytest.approx(-mean["elbo"] - mean["nll"], abs=1e-3)
    assert mean["amortization_gap"] > 0.01
    assert mean["elbo"] == pytest.approx(-mean["neg_elbo"], abs=0.5)


FLOWS = {
    "householder": HouseholderFlow(D, num_flows=2),
    "planar": PlanarFlow(D, num_flows=4),
    "sylvester": SylvesterFlow(D, num_ortho=2, num_flows=4),
    "householder_sylvester": HouseholderSylvesterFlow(D, num_flows=4),
    "triangular_sylvester": TriangularSylvesterFlow(D, num_flows=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FLOWS.values(), ids=FLOWS)
def test_the_best_flow_is_between_the_best_diagonal_gaussian_and_the_exact_value(
    ppca, correlated, x, family
):
    """Every flow holds the diagonal Gaussians; two reflections hold all Gaussians of two numbers.

    The bounds of the exact value and of the best diagonal Gaussian are closed forms.
    """
    variables, precision = correlated
    images = np.float32(x[:N])
    q, _ = family.init_with_output(jax.random.key(1), jnp.asarray(images.reshape(N, -1)))
    found = jax.jit(partial(best, ppca.model))(variables, q, images, keys(N))
    z, log_qz = found.sample_and_log_prob(keys(N), (4096,))
    np.testing.assert_allclose(found.log_prob(z[:50]), log_qz[:50], rtol=1e-4, atol=1e-3)
    px: Any = ppca.model.apply(variables, (z,), None, method="decode")
    log_pz = jax.scipy.stats.norm.logpdf(z).sum(-1)
    elbo = np.float64(px.log_prob(images) + log_pz - log_qz).mean(0)
    exact = ppca.log_likelihood(x[:N])
    diagonal = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert np.all(elbo < exact + 0.05)
    assert np.all(elbo > exact - diagonal - 0.05)
    if isinstance(family, HouseholderFlow):  # an ascent may end where a turn changes nothing
        assert (np.abs(elbo - exact) < 0.05).mean() > 0.9


def test_parameters_of_a_flow_and_of_the_sphere_make_the_density_they_came_from():
    features = jax.random.normal(jax.random.key(0), (3, 5))
    for family in (FLOWS["planar"], FLOWS["sylvester"], VonMisesFisher(3)):
        q, _ = family.init_with_output(jax.random.key(1), features)
        theta, make = unconstrained(q)
        assert all(len(leaf) == 3 for leaf in theta)
        first, *others = theta
        same, key = (
            make((3 * first, *others) if q.event_shape == (3,) else theta),
            jax.random.key(2),
        )
        for made, given in zip(
            same.sample_and_log_prob(key, (4,)), q.sample_and_log_prob(key, (4,)), strict=True
        ):
            np.testing.assert_allclose(made, given, rtol=1e-4, atol=1e-4)


def test_a_flow_that_all_images_share_is_refused():
    shared = Planar(jnp.ones(D), jnp.ones(D), jnp.zeros(()))
    q = Transformed(Normal(jnp.zeros((3, D)), jnp.ones((3, D))), (shared,))
    with pytest.raises(VaeJaxError, match="flows whose parameters are each image's own"):
        unconstrained(q)


def test_families_whose_images_share_parameters_are_refused():
    model = tiny.model().clone(posterior=InverseAutoregressiveFlow(2))
    experiment = tiny.experiment().with_model(model)
    state = jax.eval_shape(partial(init_state, experiment), 0)
    variables = jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape)), state.variables)
    with pytest.raises(VaeJaxError, match="flows whose parameters are each image's own"):
        make_gaps_evaluator(experiment, "test", 2, 1)(variables)
