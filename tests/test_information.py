"""The rate's two parts against enumeration and quadrature."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import special, stats
from test_evaluate import make_run

from vae_jax import (
    MLP,
    Deterministic,
    DiagonalGaussian,
    HierarchicalVAE,
    VaeJaxError,
    evaluate,
)
from vae_jax.distributions import (
    Distribution,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    exact_kl,
)
from vae_jax.evaluation import information as module
from vae_jax.evaluation.information import (
    decompose,
    log_aggregated_posterior,
    make_information_evaluator,
)
from vae_jax.step import init_state

P = Normal(jnp.zeros(1), jnp.ones(1))


def keys(seed: int, n: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def parts(q: Distribution, p: Distribution = P) -> Any:
    return jax.tree.map(np.float64, jax.jit(decompose)(q, q, p, keys(0, q.batch_shape[0])))


def test_posteriors_far_apart_tell_the_image():
    """I = ln N exactly: no z could be of two images."""
    q = Normal(10.0 * jnp.arange(7)[:, None], jnp.full((7, 1), 0.1))
    np.testing.assert_allclose(parts(q)["mutual_information"], math.log(7), rtol=1e-5)


def test_identical_posteriors_tell_nothing():
    """I = 0, and the aggregated posterior is each of them: 0.5 nats from the prior at mean 1.

    E[ln q - ln p] of N(1, 1) and N(0, 1) has the standard deviation 1 for each sample.
    """
    count = 2000
    q = Normal(jnp.ones((count, 1)), jnp.ones((count, 1)))
    found = parts(q)
    np.testing.assert_allclose(found["mutual_information"], 0, atol=1e-5)
    error = 1 / math.sqrt(count * module.SAMPLES)
    assert found["marginal_kl"].mean() == pytest.approx(0.5, abs=4 * error)


def test_parts_against_quadrature():
    """Five normals in one dimension: both integrals on a grid, each part and their sum.

    2000 copies of each; standard errors over the copies; the sum is the rate by its closed form.
    """
    loc, scale = np.array([-1.5, -0.2, 0.0, 0.9, 2.5]), np.array([0.3, 0.5, 1.2, 0.4, 0.8])
    z = np.linspace(-9, 9, 20001)
    densities = stats.norm.pdf(z[:, None], loc, scale)
    mixture = densities.mean(1)
    cell = z[1] - z[0]
    divergences = special.rel_entr(densities, mixture[:, None]).sum(0) * cell
    marginal_kl = special.rel_entr(mixture, stats.norm.pdf(z)).sum() * cell

    def copies(values):
        return jnp.asarray(np.tile(values, 2000)[:, None], jnp.float32)

    q, aggregated = Normal(copies(loc), copies(scale)), Normal(copies(loc)[:5], copies(scale)[:5])
    found: Any = jax.jit(decompose)(q, aggregated, P, keys(1, 10_000))
    information, marginal = (
        np.float64(found[name]) for name in ("mutual_information", "marginal_kl")
    )
    by_image = information.reshape(2000, 5)
    error = by_image.std(0) / math.sqrt(2000)
    assert (np.abs(by_image.mean(0) - divergences) < 4 * error).all()
    assert marginal.mean() == pytest.approx(marginal_kl, abs=4 * stats.sem(marginal))
    total = information + marginal
    rate = exact_kl(aggregated, P)
    assert rate is not None
    assert total.mean() == pytest.approx(float(rate.mean()), abs=4 * stats.sem(total))


def test_parts_of_codes_by_enumeration():
    """One-hot latents: sums over the three codes instead of samples; 4 standard errors."""
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    logits = jnp.log(jnp.asarray(np.tile(probabilities, (1000, 1))[:, None], jnp.float32))
    q = OneHotCategorical(logits, temperature=1.0)
    found = parts(q, OneHotCategorical(jnp.zeros((1, 3)), temperature=1.0))
    mixture = probabilities.mean(0)
    information = special.rel_entr(probabilities, mixture).sum(1).mean()
    marginal_kl = special.rel_entr(mixture, np.full(3, 1 / 3)).sum()
    for name, expected in (("mutual_information", information), ("marginal_kl", marginal_kl)):
        values = found[name]
        assert values.mean() == pytest.approx(expected, abs=4 * stats.sem(values)), name


@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_the_mixture_in_chunks(family, monkeypatch):
    """The mean of SciPy's densities; eleven values in chunks of three."""
    generator = np.random.default_rng(0)
    loc, z = generator.normal(size=(6, 2)), generator.normal(size=(11, 2))
    factor = np.tril(generator.normal(size=(6, 2, 2)), -1) + np.eye(2) * 0.7
    if family == "diagonal":
        factor = np.broadcast_to(np.diag([0.5, 2.0]), (6, 2, 2))
        q = Normal(jnp.asarray(loc), jnp.asarray(np.diagonal(factor, axis1=1, axis2=2)))
    else:
        q = MultivariateNormal(jnp.asarray(loc), jnp.asarray(factor))
    normal: Any = stats.multivariate_normal
    log_q = [normal.logpdf(z, m, f @ f.T) for m, f in zip(loc, factor, strict=True)]
    expected = np.log(np.exp(log_q).mean(0))
    monkeypatch.setattr(module, "floats_at_once", lambda: 3 * 6 * 2)
    found: Any = jax.jit(log_aggregated_posterior)(q, jnp.asarray(z))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_evaluation(tmp_path):
    """21 images over 8 devices: I is at most ln 21, and both parts are the rate's.

    Their sum is a sampled rate, within 4 standard errors of the exact one.
    """
    experiment = tiny.experiment()
    variables = jax.jit(partial(init_state, experiment))(0).variables
    run = make_run(experiment, tmp_path, jax.tree.map(lambda leaf: leaf[None], variables))
    evaluation = evaluate(run, num_samples=2, information=True)
    mean, error = evaluation.mean, evaluation.standard_error
    assert 0 < mean["mutual_information"] < math.log(21)
    total = mean["mutual_information"] + mean["marginal_kl"]
    allowed = 4 * math.hypot(error["mutual_information"][0], error["marginal_kl"][0])
    assert total == pytest.approx(mean["kl"], abs=allowed)


def test_what_cannot_be_divided_is_refused():
    """No density, or several layers."""
    experiment = tiny.experiment()
    other = experiment.with_model(tiny.model().clone(posterior=Deterministic(2)))
    with pytest.raises(VaeJaxError, match="those of Deterministic are not"):
        make_information_evaluator(other, "test")
    model = HierarchicalVAE(
        encoders=(MLP((4,)), MLP((4,))),
        posteriors=(DiagonalGaussian(2), DiagonalGaussian(2)),
        decoders=(MLP((4,)), MLP((4,))),
        conditionals=(DiagonalGaussian(2),),
        prior=tiny.model().prior,
        likelihood=tiny.model().likelihood,
    )
    with pytest.raises(VaeJaxError, match="rate of a HierarchicalVAE"):
        make_information_evaluator(experiment.with_model(model), "test")
