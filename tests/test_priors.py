"""Heavy-tailed, mixture and exemplar priors against SciPy, quadrature and what training moves."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from running import on_devices
from scipy import integrate, special, stats

from vae_jax import (
    ELBO,
    DiagonalGaussian,
    GaussianMixture,
    StandardLaplace,
    StandardStudentT,
    VaeJaxError,
    VampPrior,
    VonMisesFisher,
    evaluate,
    train,
)
from vae_jax.distributions import LaplaceDistribution, Normal, StudentT, exact_kl
from vae_jax.step import init_state

B, D = 4, 3
LOC = np.linspace(-1.5, 2.0, B * D).reshape(B, D).astype(np.float32)
SCALE = np.linspace(0.3, 1.7, B * D).reshape(B, D).astype(np.float32)
MODEL = tiny.model()
X = jnp.asarray(tiny.images(6, 0) / 255, jnp.float32)
KEYS = jax.random.split(jax.random.key(1), 6)


def within_standard_errors(samples: Any, expected: Any) -> bool:
    """Whether Monte Carlo means over the first axis are within 4 standard errors."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(0) / np.sqrt(len(samples))
    return bool(np.all(np.abs(samples.mean(0) - expected) <= 4 * error))


# --- Laplace and Student's t --------------------------------------------------------------------


@pytest.mark.parametrize("event", [(D,), (1, D, 1)])
def test_laplace_density_is_scipys(event):
    x = np.random.default_rng(0).normal(size=(5, B, *event)).astype(np.float32) * 3
    loc, scale = (a.reshape(B, *event) for a in (LOC, SCALE))
    expected = stats.laplace.logpdf(x, loc, scale).reshape(5, B, D).sum(-1)
    p = LaplaceDistribution(jnp.asarray(loc), jnp.asarray(scale), event_ndims=len(event))
    np.testing.assert_allclose(p.log_prob(jnp.asarray(x)), expected, rtol=1e-5)


@pytest.mark.parametrize("dof", [0.5, 1.0, 4.0, 100.0, 1e6])
def test_student_t_density_is_scipys(dof):
    """Also where ln Gamma is so large that a difference of two would have no digits left."""
    x = np.random.default_rng(0).normal(size=(5, B, D)).astype(np.float32) * [0.1, 3.0, 1e3]
    expected = stats.t.logpdf(x, dof, LOC, SCALE).sum(-1)
    p = StudentT(jnp.asarray(LOC), jnp.asarray(SCALE), jnp.asarray(dof))
    np.testing.assert_allclose(p.log_prob(jnp.asarray(x)), expected, rtol=2e-5)


def test_student_t_tails_and_their_slopes():
    """Where t² is beyond float32, against SciPy in float64; at t = 0 and at its corner too."""
    x = np.array([0.0, 1.0, 1e5, 1e19, 1e30, -3e37])
    for dof in (0.5, 1.0, 30.0):
        p = StudentT(jnp.zeros(()), jnp.ones(()), jnp.asarray(dof), event_ndims=0)
        log_p, slope = jax.vmap(jax.value_and_grad(p.component_log_prob))(jnp.asarray(x))
        # -(dof + 1)/2 ln(1 + x²/dof) in float64, whose squares do not overflow.
        constant = stats.t.logpdf(0, dof)
        expected = constant - (dof + 1) / 2 * np.log1p(x**2 / dof)
        np.testing.assert_allclose(log_p, expected, rtol=1e-5)
        np.testing.assert_allclose(slope, -(dof + 1) * x / (dof + x**2), rtol=1e-5, atol=1e-37)


@jax.jit
@partial(jax.value_and_grad, has_aux=True)
def of_dof(log_dof):
    p: Any = StandardStudentT(2).apply({"params": {"log_dof": log_dof}}, MODEL)
    return p.log_prob(jnp.array([0.3, 50.0])), (p.dof, p.sample(jax.random.key(0), (100,)))


@pytest.mark.parametrize("log_dof", [-1e3, -50.0, 0.0, math.log(5), 80.0, 1e3])
def test_learned_degrees_of_freedom_have_limits(log_dof):
    """Density, draws and gradients are finite wherever training takes the parameter."""
    (log_p, (dof, z)), slope = of_dof(jnp.asarray(log_dof, jnp.float32))
    assert np.isfinite([log_p, slope]).all()
    assert np.isfinite(z).all()
    if 0 <= log_dof <= 10:
        np.testing.assert_allclose(dof, math.exp(log_dof), rtol=1e-5)
    assert 0.36 < dof.min() <= dof.max() < 6e4


def test_heavy_tailed_samples():
    """Kolmogorov-Smirnov of each component against SciPy; noise is each example's own."""
    loc, scale, dof = jnp.asarray(LOC), jnp.asarray(SCALE), np.array([0.8, 3.0, 30.0], np.float32)
    pairs: list[tuple[Any, Any]] = [
        (LaplaceDistribution(loc, scale), stats.laplace(LOC, SCALE)),
        (StudentT(loc, scale, jnp.asarray(dof)), stats.t(dof, LOC, SCALE)),
    ]
    keys, order = jax.random.split(jax.random.key(2), B), np.array([2, 0, 3, 1])
    for p, scipys in pairs:
        sample = jax.jit(lambda p, keys: p.sample(keys, (2000,)))
        z = sample(p, keys)
        uniform = scipys.cdf(np.asarray(z, np.float64)).reshape(2000, -1)
        assert min(stats.kstest(u, "uniform").pvalue for u in uniform.T) > 1e-4
        moved = sample(p.replace(loc=p.loc[order], scale=p.scale[order]), keys[order])
        np.testing.assert_array_equal(moved, z[:, order])


def test_exact_kl_from_a_normal_to_a_laplace():
    """Quadrature of q ln(q/p) by SciPy, component by component; locations that coincide too."""
    q = Normal(jnp.asarray(LOC), jnp.asarray(SCALE))
    p = LaplaceDistribution(jnp.array([0.0, 0.5, float(LOC[0, 2])]), jnp.array([0.7, 1.0, 2.0]))
    kl: Any = exact_kl(q, p)
    expected = np.zeros((B, D))
    for b in range(B):
        for d in range(D):
            normal: Any = stats.norm(LOC[b, d], SCALE[b, d])
            laplace: Any = stats.laplace(float(p.loc[d]), float(p.scale[d]))
            expected[b, d] = integrate.quad(
                lambda x, q=normal, p=laplace: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)),
                LOC[b, d] - 12 * SCALE[b, d],
                LOC[b, d] + 12 * SCALE[b, d],
                points=[float(p.loc[d])],
                limit=200,
            )[0]
    np.testing.assert_allclose(kl, expected.sum(-1), rtol=1e-4)
    z, log_q = q.sample_and_log_prob(jax.random.key(3), (20000,))
    assert within_standard_errors(log_q - p.log_prob(z), kl)


# --- Mixtures -----------------------------------------------------------------------------------


def test_gaussian_mixture_is_scipys():
    """Density by SciPy's log-sum-exp, samples by Kolmogorov-Smirnov, with parameters given."""
    log_scale, logits = np.log(SCALE[:3]), np.array([0.3, -1.0, 1.2], np.float32)
    params = {"loc": LOC[:3], "log_scale": log_scale, "logits": logits}
    p: Any = GaussianMixture(3, D).apply({"params": params}, MODEL)
    z = np.random.default_rng(0).normal(size=(5, B, D)).astype(np.float32) * 2
    components = stats.norm.logpdf(z[..., None, :], LOC[:3], SCALE[:3]).sum(-1)
    expected = np.asarray(special.logsumexp(components + special.log_softmax(logits), axis=-1))
    np.testing.assert_allclose(p.log_prob(z), expected, rtol=1e-5)
    samples = np.asarray(p.sample(jax.random.key(4), (4000,)))
    for d in range(D):

        def cdf(x, d=d):
            return stats.norm.cdf(x[:, None], LOC[:3, d], SCALE[:3, d]) @ special.softmax(logits)

        assert stats.kstest(samples[:, d], cdf).pvalue > 1e-4


def log_prior(model: Any, z: Any) -> Any:
    return model.prior(model).log_prob(z)


@pytest.mark.parametrize("posterior", [DiagonalGaussian(3), VonMisesFisher(3)], ids=["R", "S"])
def test_weighted_vamp_prior_is_the_weighted_sum_of_posteriors(posterior):
    """ln sum_c w_c q(z|u_c), one posterior at a time, w the softmax of the learned logits."""
    model = MODEL.clone(posterior=posterior, prior=VampPrior(4, learned_weights=True))
    variables: Any = jax.jit(model.init)(jax.random.key(0), X, KEYS)
    np.testing.assert_array_equal(variables["params"]["prior"]["logits"], np.zeros(4))
    logits = np.array([0.0, 1.0, -2.0, 0.5], np.float32)
    inputs = np.random.default_rng(0).uniform(size=(4, 4, 4, 1)).astype(np.float32)
    variables["params"]["prior"] = {"pseudo_inputs": inputs, "logits": logits}
    z = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)

    @jax.jit
    def found(variables, z):
        q: Any = model.apply(variables, inputs, method="encode")
        return q.log_prob(z[:, None]), model.apply(variables, z, method=log_prior)

    log_q, log_p = found(variables, z)
    log_q = np.asarray(log_q, np.float64)
    expected = np.asarray(special.logsumexp(log_q + special.log_softmax(logits), axis=-1))
    np.testing.assert_allclose(log_p, expected, rtol=1e-5)


def test_exemplars_are_different_training_images_of_each_seeds_own():
    images = tiny.images(30, 0)
    for fixed in (False, True):
        model = MODEL.clone(prior=VampPrior(20, images=images, fixed=fixed))
        init = jax.jit(lambda seed, model=model: model.init(jax.random.key(seed), X, KEYS))
        chosen = []
        for seed in (0, 1):
            variables = init(seed)
            assert ("exemplars" in variables) == fixed
            assert ("prior" in variables["params"]) == (not fixed)
            found = variables["exemplars" if fixed else "params"]["prior"]["pseudo_inputs"]
            near = np.abs(np.asarray(found)[:, None] * 255 - images).max((2, 3, 4)) < 1e-3
            assert np.all(near.sum(1) == 1)
            chosen.append(sorted(near.argmax(1)))
            assert len(set(chosen[-1])) == 20
        assert chosen[0] != chosen[1]
    with pytest.raises(VaeJaxError, match="31 components from 30 images"):
        VampPrior(31, images=images)


@pytest.mark.slow
def test_training_moves_no_exemplars(tmp_path):
    """Weights and encoder move, on two devices; exemplars come back bit by bit, and evaluate."""
    experiment = dataclasses.replace(tiny.experiment(num_steps=10), log_every=10)
    images = experiment.data.train.images
    prior = VampPrior(3, images=images, fixed=True, learned_weights=True)
    experiment = dataclasses.replace(experiment, model=experiment.model.clone(prior=prior))
    before: Any = jax.jit(partial(init_state, experiment))(0).variables
    with on_devices(2):
        run = train(experiment, tmp_path / "run")
        result = evaluate(run, num_samples=2)
    after = run.seed_variables
    jax.tree.map(np.testing.assert_array_equal, after["exemplars"], before["exemplars"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after["params"], before["params"])
    assert all(jax.tree.leaves(moved)), moved
    assert moved["prior"].keys() == {"logits"}
    assert np.isfinite(result.mean["nll"]).all()


# --- In a model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "names"),
    [
        (StandardLaplace(2), set()),
        (StandardStudentT(2, dof=3.0), set()),
        (StandardStudentT(2), {"log_dof"}),
        (GaussianMixture(3, 2), {"loc", "log_scale", "logits"}),
        (VampPrior(3, images=tiny.images(9, 1), learned_weights=True), {"pseudo_inputs", "logits"}),
    ],
    ids=["laplace", "student", "student_learned", "mixture", "vamp"],
)
def test_every_parameter_of_a_prior_has_a_gradient(prior, names):
    """Of the ELBO; and `sample` draws from what `log_prob` scores, by importance weights.

    E_p[N(z; 0, 1/16 I) / p(z)] = 1, of bounded variance because p's tails are heavier.
    """
    model = MODEL.clone(prior=prior)

    @jax.jit
    def everything():
        params = model.init(jax.random.key(0), X, KEYS)["params"]

        def loss(params):
            terms: Any = model.apply({"params": params}, X, KEYS, 3)
            return ELBO(3)(terms, jnp.int32(0), tiny.model())[0], terms.kl

        keys = jax.random.split(jax.random.key(5), 4000)
        (z,), _ = model.apply({"params": params}, keys, method="sample")
        log_p = model.apply({"params": params}, z, method=log_prior)
        return jax.value_and_grad(loss, has_aux=True)(params), z, log_p

    ((loss, kl), gradients), z, log_p = everything()
    assert np.isfinite(loss)
    assert (kl is None) == (not isinstance(prior, StandardLaplace))
    assert gradients.get("prior", {}).keys() == names
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradients))
    log_normal = stats.norm.logpdf(np.asarray(z), scale=0.25).sum(-1)
    assert within_standard_errors(np.exp(log_normal - log_p), 1.0)
