"""The ladder VAE against NumPy, quadrature and an exact marginal; ln p(x, z) of every model."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gradients import assert_close, one_batch
from running import on_devices
from scipy import special, stats
from test_hierarchical import (
    WIDTHS,
    assert_standard_and_independent,
    conditionals,
    dense,
    gaussian,
    keys,
    log_normal,
)
from test_hierarchical import make as make_hierarchical

from vae_jax import (
    ELBO,
    IWAE,
    MLP,
    Bernoulli,
    DiagonalGaussian,
    FullCovarianceGaussian,
    Gaussian,
    GaussianMixture,
    LadderVAE,
    StandardNormal,
    VaeJaxError,
    VampPrior,
    evaluate,
    generate,
    train,
)
from vae_jax.distributions import MultivariateNormal, Normal
from vae_jax.hierarchical.ladder import merge

SHAPE, B, K = (3, 2, 1), 4, 2000


def make(widths: tuple[int, ...], hidden: tuple[int, ...], likelihood: Any, shape=SHAPE):
    return LadderVAE(
        encoders=[MLP(hidden) for _ in widths],
        posteriors=[DiagonalGaussian(d) for d in widths],
        prior=StandardNormal(widths[-1]),
        decoders=[MLP(hidden) for _ in widths],
        conditionals=[DiagonalGaussian(d) for d in widths[:-1]],
        likelihood=likelihood,
        image_shape=shape,
    )


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).integers(0, 2, (B, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def built(x):
    """A model of three layers, its variables, its Terms for K samples, and the mean of `encode`."""
    model = make(WIDTHS, (5,), Bernoulli())
    variables = jax.jit(model.init)(jax.random.key(2), x, keys(0, B))

    @jax.jit
    def apply(x, keys):
        q = model.apply(variables, x, method="encode")
        terms: Any = model.apply(variables, x, keys, K)
        return terms, q, model.apply(variables, x, terms.z, method="log_joint")

    return variables["params"], *apply(x, keys(1, B))


def bottom_up(params, x):
    """(loc, scale) of each layer's Gaussian: every network goes on where the one below ended."""
    h, found = x.reshape(len(x), -1), []
    for i in range(len(WIDTHS)):
        found.append(gaussian(params, f"encoders_{i}", f"posteriors_{i}", h))
        h = np.tanh(dense(params[f"encoders_{i}"]["Dense_0"], h))
    return found


def merged(first, second):
    """Mean and scale of the product of two normal densities, weighted by precisions."""
    (a, s), (b, t) = first, second
    variance = s**2 * t**2 / (s**2 + t**2)
    return (a * t**2 + b * s**2) / (s**2 + t**2), np.sqrt(variance)


def kl_normal(q, p):
    (m, s), (a, t) = q, p
    return (np.log(t / s) + (s**2 + (m - a) ** 2) / (2 * t**2) - 0.5).sum(-1)


def test_merge_is_the_normalized_product():
    """Quadrature of N(z; m, s²) N(z; a, t²), its mean and its standard deviation."""
    z = np.linspace(-12, 12, 20001)
    cases = [((-1.0, 0.5), (2.0, 1.5)), ((0.3, 2.0), (0.1, 0.2)), ((1.0, 1.0), (3.0, 1.0))]
    for first, second in cases:
        product = stats.norm.pdf(z, *first) * stats.norm.pdf(z, *second)
        product /= product.sum()
        mean = product @ z
        q = merge(*(Normal(jnp.array([loc]), jnp.array([s])) for loc, s in (first, second)))
        np.testing.assert_allclose(q.loc, [mean], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(q.scale, [np.sqrt(product @ (z - mean) ** 2)], rtol=1e-4)


def test_terms_in_numpy(built, x):
    """The way up, the merged way down and all densities written out (Sønderby et al. 2016)."""
    params, terms, _, _ = built
    params = jax.tree.map(np.float64, params)
    z = [np.asarray(layer, np.float64) for layer in terms.z]
    p = [*conditionals(params, z), (np.zeros(WIDTHS[-1]), np.ones(WIDTHS[-1]))]
    *evidence, top = bottom_up(params, x)
    q = [*(merged(*pair) for pair in zip(evidence, p[:-1], strict=True)), top]

    log_qz = [log_normal(layer, *args) for layer, args in zip(z, q, strict=True)]
    log_pz = [log_normal(layer, *args) for layer, args in zip(z, p, strict=True)]
    np.testing.assert_allclose(terms.log_qz, log_qz, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(terms.log_pz, log_pz, rtol=1e-4, atol=1e-4)
    hidden = np.tanh(dense(params["decoders_0"]["Dense_0"], z[0]))
    probabilities = special.expit(dense(params["likelihood"]["logits"], hidden))
    log_px = stats.bernoulli.logpmf(x.reshape(B, -1), probabilities).sum(-1)
    np.testing.assert_allclose(terms.log_px, log_px, rtol=1e-4)

    kl = [kl_normal(*pair).reshape(-1, B).mean(0) for pair in zip(q, p, strict=True)]
    np.testing.assert_allclose(terms.kl, kl, rtol=1e-4)
    # The noise of the K samples: each layer's standardized residuals.
    noise = [(layer - loc) / scale for layer, (loc, scale) in zip(z, q, strict=True)]
    assert_standard_and_independent(np.concatenate([n.reshape(K * B, -1) for n in noise], 1))


def test_exact_and_sampled_kl_agree_in_every_layer(built):
    """E_q[ln q - ln p] of each layer, given those above: within 4 standard errors of K samples."""
    _, terms, _, _ = built
    sampled = np.asarray(terms.log_qz - terms.log_pz, np.float64)
    error = sampled.std(1) / np.sqrt(K)
    assert (np.abs(terms.kl_sampled - terms.kl) < 4 * error + 1e-4).all()
    assert (np.asarray(terms.kl) > 0.01).all()


def test_encode_goes_down_through_the_means(built, x):
    params, _, q, _ = built
    params = jax.tree.map(np.float64, params)
    *evidence, (z, _) = bottom_up(params, x)
    for layer in (1, 0):
        p = gaussian(params, f"decoders_{layer + 1}", f"conditionals_{layer}", z)
        z, scale = merged(evidence[layer], p)
    np.testing.assert_allclose(q.mean, z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q.scale, scale, rtol=1e-4)


@pytest.mark.parametrize("kind", ["vae", "hierarchical", "ladder"])
def test_log_joint_is_that_of_terms(built, x, kind):
    """ln p(x, z) = ln p(x|z) + sum of ln p(z_l | z_{l+1})."""
    if kind == "ladder":
        _, terms, _, log_joint = built
    else:
        model: Any = tiny.model() if kind == "vae" else make_hierarchical(2, (5,), Bernoulli())
        x = np.random.default_rng(0).integers(0, 2, (B, *model.image_shape)).astype(np.float32)
        variables = jax.jit(model.init)(jax.random.key(0), x, keys(0, B))

        @jax.jit
        def both(x, keys):
            terms: Any = model.apply(variables, x, keys, 3)
            return terms, model.apply(variables, x, terms.z, method="log_joint")

        terms, log_joint = both(x, keys(1, B))
    np.testing.assert_allclose(log_joint, terms.log_px + terms.log_pz.sum(0), rtol=1e-5)


def test_importance_weights_are_unbiased():
    """E_q[w] = p(x), exact for a linear-Gaussian ladder: x's covariance adds up layer by layer.

    4 standard errors of 100,000 weights.
    """
    model = make(WIDTHS, (), Gaussian(scale=0.8, squash=lambda x: x))
    generator = np.random.default_rng(1)
    x = generator.normal(size=(1, *SHAPE)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, keys(0, 1))["params"]
    params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape) * 0.3, shapes)
    for head, log_scale in (("conditionals", -0.3), ("posteriors", 0.3)):
        for name in (name for name in params if name.startswith(head)):
            params[name]["log_scale"]["kernel"] *= 0
            params[name]["log_scale"]["bias"][:] = log_scale

    mean, covariance = np.zeros(WIDTHS[-1]), np.eye(WIDTHS[-1])
    heads = [params[name]["loc"] for name in ("conditionals_1", "conditionals_0", "likelihood")]
    for head, noise in zip(heads, [np.exp(-0.6), np.exp(-0.6), 0.64], strict=True):
        kernel = head["kernel"]
        mean = mean @ kernel + head["bias"]
        covariance = kernel.T @ covariance @ kernel + noise * np.eye(kernel.shape[1])
    marginal: Any = stats.multivariate_normal
    log_px = marginal.logpdf(x.reshape(-1), mean, covariance)

    count = 100_000
    terms: Any = jax.jit(model.apply, static_argnums=3)({"params": params}, x, keys(4, 1), count)
    weights = np.exp(np.asarray(terms.log_w, np.float64)[:, 0] - log_px)
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(count)
    assert weights.std() / np.sqrt(count) < 0.02


LADDER = make((3, 2), (6,), Bernoulli(), tiny.IMAGE_SHAPE)


@pytest.mark.slow
def test_gradients_are_the_same_on_1_and_8_devices():
    """Of IWAE, whose weights hold the densities of both layers; every part has a gradient."""
    experiment = dataclasses.replace(
        tiny.experiment(batch_size=8), model=LADDER, objective=IWAE(num_samples=3)
    )
    one, eight = one_batch(experiment, 1, 8)
    assert all(np.abs(leaf).max() > 1e-7 for leaf in jax.tree.leaves(one[3]))
    assert_close(eight, one, 1e-5)


@pytest.mark.slow
def test_it_trains_evaluates_and_draws(tmp_path: Path):
    """The ELBO falls in 40 steps; evaluation has an exact rate and two layers; pictures exist."""
    experiment = dataclasses.replace(tiny.experiment(), model=LADDER, objective=ELBO(2))
    with on_devices(1):
        run = train(experiment, tmp_path / "run")
        evaluation = evaluate(run, num_samples=64)
    losses = [row["loss"] for row in run.folder.read_metrics() if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
    assert evaluation.mean["nll"] < evaluation.mean["neg_elbo"]
    np.testing.assert_allclose(
        evaluation.mean["kl"], evaluation.mean["kl_sampled"], atol=0.1, rtol=0.05
    )
    assert len(evaluation.active_units) == 2
    x, shown = generate.reconstruct(run, "test", 5)
    assert x.shape == shown.shape == (5, *tiny.IMAGE_SHAPE)
    assert generate.sample(run, 3).shape == (3, *tiny.IMAGE_SHAPE)


def refused(model: LadderVAE, match: str) -> None:
    x = jnp.zeros((1, *model.image_shape))
    with pytest.raises(VaeJaxError, match=match):
        jax.eval_shape(model.init, jax.random.key(0), x, keys(0, 1))


def test_what_has_no_meaning_is_refused():
    """A prior made of `encode`, and layers that are no diagonal Gaussians, but for the top."""
    refused(LADDER.clone(prior=VampPrior(3)), "StandardNormal")
    full, diagonal = FullCovarianceGaussian(3), DiagonalGaussian(2)
    refused(LADDER.clone(posteriors=[full, diagonal]), "MultivariateNormal and a Normal")
    refused(LADDER.clone(conditionals=[full]), "Normal and a MultivariateNormal")


def test_the_top_layer_may_be_anything():
    """A full covariance on top has an exact KL; a mixture prior has none, so `kl` is None."""
    full = LADDER.clone(posteriors=[DiagonalGaussian(3), FullCovarianceGaussian(2)])
    for model, exact in ((full, True), (full.clone(prior=GaussianMixture(2, 2)), False)):
        x = jnp.zeros((1, *model.image_shape))
        terms, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x, keys(0, 1))
        assert (terms.kl is not None) == exact
        assert isinstance(terms.q[1], MultivariateNormal)
