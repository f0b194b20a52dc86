"""Models with two and three stochastic layers against NumPy, SciPy and an exact marginal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vae_jax import (
    MLP,
    Bernoulli,
    DiagonalGaussian,
    Gaussian,
    HierarchicalVAE,
    StandardNormal,
    VaeJaxError,
    VampPrior,
)

SHAPE, B, K = (3, 2, 1), 4, 6
WIDTHS = (4, 3, 2)  # d_1, d_2, d_3
depths = pytest.mark.parametrize("depth", [2, 3])


def keys(seed: int, n: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def make(depth: int, hidden: tuple[int, ...], likelihood) -> HierarchicalVAE:
    widths = WIDTHS[:depth]
    return HierarchicalVAE(
        encoders=[MLP(hidden) for _ in widths],
        posteriors=[DiagonalGaussian(d) for d in widths],
        prior=StandardNormal(widths[-1]),
        decoders=[MLP(hidden) for _ in widths],
        conditionals=[DiagonalGaussian(d) for d in widths[:-1]],
        likelihood=likelihood,
        image_shape=SHAPE,
    )


@pytest.fixture(scope="module")
def built():
    """For each depth a model, its parameters and compiled `apply` and `sample`."""
    made: Any = {}
    for depth in (2, 3):
        model = make(depth, (5,), Bernoulli())
        x = jnp.zeros((1, *SHAPE))
        variables = jax.jit(model.init)(jax.random.key(depth), x, keys(0, 1))

        def apply(x, keys, num_samples, model=model, variables=variables):
            return model.apply(variables, x, keys, num_samples)

        def sample(keys, model=model, variables=variables):
            return model.apply(variables, keys, method="sample")

        params = jax.tree.map(np.float64, variables["params"])
        made[depth] = params, jax.jit(apply, static_argnums=2), jax.jit(sample)
    return made


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).integers(0, 2, (B, *SHAPE)).astype(np.float32)


def dense(parameters, h):
    return h @ parameters["kernel"] + parameters["bias"]


def gaussian(params, network: str, head: str, h):
    """(loc, scale) of a conditional from its network's and its head's parameters, in NumPy."""
    hidden = np.tanh(dense(params[network]["Dense_0"], h))
    return dense(params[head]["loc"], hidden), np.exp(dense(params[head]["log_scale"], hidden))


def log_normal(z, loc: Any = 0.0, scale: Any = 1.0):
    return stats.norm.logpdf(z, loc, scale).sum(-1)


def posteriors(params, x, z):
    """(loc, scale) of q(z_1|x), q(z_2|z_1), ..."""
    below = [x.reshape(len(x), -1), *z[:-1]]
    return [gaussian(params, f"encoders_{i}", f"posteriors_{i}", h) for i, h in enumerate(below)]


def conditionals(params, z):
    """(loc, scale) of p(z_1|z_2), p(z_2|z_3), ..."""
    return [
        gaussian(params, f"decoders_{i + 1}", f"conditionals_{i}", h) for i, h in enumerate(z[1:])
    ]


@depths
def test_terms_in_numpy(built, x, depth):
    """q(z_1|x) q(z_2|z_1) ..., p(z_L) ... p(z_1|z_2) p(x|z_1) written out (Burda et al.)."""
    params, apply, _ = built[depth]
    terms = apply(x, keys(1, B), K)
    z = [np.asarray(layer, np.float64) for layer in terms.z]
    assert [layer.shape for layer in z] == [(K, B, d) for d in WIDTHS[:depth]]
    log_qz = [log_normal(*args) for args in zip(z, *zip(*posteriors(params, x, z)))]  # noqa: B905
    p = [*conditionals(params, z), (0.0, 1.0)]
    log_pz = [log_normal(layer, *args) for layer, args in zip(z, p, strict=True)]
    hidden = np.tanh(dense(params["decoders_0"]["Dense_0"], z[0]))
    probabilities = special.expit(dense(params["likelihood"]["logits"], hidden))
    log_px = stats.bernoulli.logpmf(x.reshape(B, -1), probabilities).sum(-1)
    np.testing.assert_allclose(terms.log_qz, log_qz, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(terms.log_pz, log_pz, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(terms.log_px, log_px, rtol=1e-4)
    expected = log_px + np.sum(log_pz, 0) - np.sum(log_qz, 0)
    np.testing.assert_allclose(terms.log_w, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        terms.kl_sampled, np.subtract(log_qz, log_pz).mean(1), rtol=1e-4, atol=1e-4
    )
    assert terms.kl is None
    shown = terms.reconstruction.reshape(K, B, -1)
    np.testing.assert_allclose(shown, probabilities, rtol=1e-4)


@depths
def test_parameter_groups(built, depth):
    """One entry for each layer's part, the bottom first."""
    parts = {f"{part}_{i}" for part in ("encoders", "posteriors", "decoders") for i in range(depth)}
    parts |= {f"conditionals_{i}" for i in range(depth - 1)}
    assert set(built[depth][0]) == parts | {"likelihood"}


@depths
def test_an_example_does_not_see_its_batch(built, x, depth):
    _, apply, _ = built[depth]
    example_keys = keys(1, B)
    together, alone = apply(x, example_keys, K), apply(x[3:4], example_keys[3:4], K)
    for all_z, z in zip(together.z, alone.z, strict=True):
        np.testing.assert_allclose(all_z[:, 3], z[:, 0], rtol=1e-4, atol=1e-5)


@depths
def test_posterior_noise_is_standard_and_independent_between_layers(built, x, depth):
    """(z_l - loc) / scale: Kolmogorov-Smirnov at 1e-4, and correlations within 5/sqrt(n).

    A key used for two layers, or for two samples, would correlate them.
    """
    params, apply, _ = built[depth]
    z = [np.asarray(layer, np.float64) for layer in apply(x, keys(2, B), 1000).z]
    noise = [
        (layer - loc) / scale
        for layer, (loc, scale) in zip(z, posteriors(params, x, z), strict=True)
    ]
    assert_standard_and_independent(np.concatenate([n.reshape(1000 * B, -1) for n in noise], 1))


@depths
def test_sampling_is_ancestral(built, depth):
    """z_L ~ N(0, I), then (z_l - loc(z_{l+1})) / scale standard normal; p(x|z_1) last."""
    params, _, sample = built[depth]
    z, px = sample(keys(3, 4000))
    z = [np.asarray(layer, np.float64) for layer in z]
    assert [layer.shape for layer in z] == [(4000, d) for d in WIDTHS[:depth]]
    noise = [
        (layer - loc) / scale
        for layer, (loc, scale) in zip(z, conditionals(params, z), strict=False)
    ]
    assert_standard_and_independent(np.concatenate([*noise, z[-1]], 1))
    hidden = np.tanh(dense(params["decoders_0"]["Dense_0"], z[0]))
    probabilities = special.expit(dense(params["likelihood"]["logits"], hidden))
    np.testing.assert_allclose(px.mean.reshape(4000, -1), probabilities, rtol=1e-4)
    np.testing.assert_allclose(sample(keys(3, 4000)[5:6])[0][0][0], z[0][5], rtol=1e-4, atol=1e-5)


def assert_standard_and_independent(noise):
    """Noise `[n, d]`: each column standard normal, no two correlated."""
    for column in noise.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    correlation = np.corrcoef(noise.T) - np.eye(noise.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(len(noise))


@depths
def test_importance_weights_are_unbiased(depth):
    """E_q[w] = p(x), exact for a linear-Gaussian hierarchy: x's covariance adds up layer by layer.

    The posterior is a wrong one; 4 standard errors of 400,000 weights.
    """
    model = make(depth, (), Gaussian(scale=0.8, squash=lambda x: x))
    generator = np.random.default_rng(1)
    x = generator.normal(size=(1, *SHAPE)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(x), keys(0, 1))
    params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape) * 0.3, variables["params"])
    for i in range(depth):  # scales that do not depend on what they are conditioned on
        for head in ("posteriors", "conditionals"):
            if (name := f"{head}_{i}") in params:
                params[name]["log_scale"]["kernel"] *= 0
                params[name]["log_scale"]["bias"][:] = 0.0 if head == "posteriors" else -0.3

    mean, covariance = np.zeros(WIDTHS[depth - 1]), np.eye(WIDTHS[depth - 1])
    heads = [params[f"conditionals_{i}"]["loc"] for i in reversed(range(depth - 1))]
    noises = [np.exp(-0.6)] * (depth - 1) + [0.64]
    for head, noise in zip([*heads, params["likelihood"]["loc"]], noises, strict=True):
        kernel = head["kernel"]
        mean = mean @ kernel + head["bias"]
        covariance = kernel.T @ covariance @ kernel + noise * np.eye(kernel.shape[1])
    marginal: Any = stats.multivariate_normal
    log_px = marginal.logpdf(x.reshape(-1), mean, covariance)

    count = 400_000
    terms: Any = jax.jit(model.apply, static_argnums=3)({"params": params}, x, keys(4, 1), count)
    weights = np.exp(np.asarray(terms.log_w, np.float64)[:, 0] - log_px)
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(count)
    assert weights.std() / np.sqrt(count) < 0.02


def test_a_prior_made_of_q_is_refused_on_top() -> None:
    """q(z_L|x) has no density when the layers below are sampled, so a VampPrior has no meaning."""
    model = make(2, (), Bernoulli()).clone(prior=VampPrior(3))
    with pytest.raises(VaeJaxError, match="StandardNormal"):
        model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), keys(0, 1))
