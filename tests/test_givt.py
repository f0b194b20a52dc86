"""GIVT: densities against SciPy and quadrature, draws against their conditional distributions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import Array
from scipy import stats
from scipy.special import logsumexp

import vae_jax as vj
from vae_jax.priors.givt import AutoregressiveMixture
from vae_jax.priors.standardized import Standardized

SMALL: dict[str, Any] = {"width": 8, "num_layers": 1, "num_heads": 2, "num_components": 3}
K = 3
MODEL = tiny.model()


def made(prior: vj.GIVT, y: Array | None = None) -> AutoregressiveMixture:
    """The density of a prior all of whose variables are drawn from a normal."""
    shapes = jax.eval_shape(lambda: prior.init(jax.random.key(0), MODEL, y))
    generator = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: generator.normal(0, 0.5, x.shape).astype("f4"), shapes)
    found: Any = prior.apply(variables, MODEL, y)
    return found


def parameters(outputs: Any, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-weights `[..., K]`, means and standard deviations `[..., K, d]`, float64."""
    outputs = np.asarray(outputs, np.float64)
    logits, rest = outputs[..., :K], outputs[..., K:].reshape(*outputs.shape[:-1], K, 2 * d)
    return logits - logsumexp(logits, -1, keepdims=True), rest[..., :d], np.exp(rest[..., d:])


def outputs_of(p: AutoregressiveMixture, z: Any, label: int | None = None) -> np.ndarray:
    """The network's at every position of vectors `[N, n, d]`, in one pass without a cache."""
    before = np.pad(z[:, :-1], ((0, 0), (1, 0), (0, 0)))
    y = None if label is None else jnp.full(len(z), label)
    return np.asarray(jax.jit(p.outputs)(before, y)[0])


@pytest.mark.others_slow
@pytest.mark.parametrize("shape", [3, (4, 2), (2, 3, 2)])
def test_the_density_is_that_of_mixtures_row_by_row(shape: Any) -> None:
    """By SciPy in float64; of a vector it is one mixture."""
    p = made(vj.GIVT(shape, **SMALL))
    event = (shape,) if isinstance(shape, int) else shape
    z = np.random.default_rng(1).normal(size=(2, 5, *event)).astype(np.float32)
    tokens = z.reshape(10, -1, event[-1])
    log_weights, loc, scale = parameters(outputs_of(p, tokens), event[-1])
    each: Any = stats.norm.logpdf(tokens[:, :, None], loc, scale)
    expected = np.asarray(logsumexp(log_weights + each.sum(-1), -1)).sum(-1)
    found, middle, drawn = jax.jit(
        lambda z: (p.log_prob(z), p.mean, p.sample(jax.random.key(0), (2,)))
    )(z)
    np.testing.assert_allclose(found, expected.reshape(2, 5), rtol=2e-5)
    assert p.shape == middle.shape == event
    assert drawn.shape == (2, *event)


def test_the_density_integrates_to_one() -> None:
    """By the trapezoidal rule over two vectors of one component, and of one of two."""
    grid = np.linspace(-10, 10, 201, dtype=np.float32)
    z = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    for shape in ((2, 1), (1, 2)):
        p = made(vj.GIVT(shape, **SMALL))
        density = np.exp(jax.jit(p.log_prob)(z.reshape(*z.shape[:2], *shape)))
        integral = np.trapezoid(np.trapezoid(density, grid), grid)
        assert integral == pytest.approx(1.0, abs=2e-3)


def test_a_vector_depends_on_those_before_alone() -> None:
    p = made(vj.GIVT((3, 2), **SMALL))
    x = jax.random.normal(jax.random.key(1), (3, 2))
    influence = jax.jit(jax.jacobian(lambda x: p.outputs(x[None], None)[0][0]))(x)
    influence = np.abs(influence).max((1, 3))  # [to, from]
    assert (influence[np.triu_indices(3, 1)] == 0).all()
    assert (influence[np.tril_indices(3)] > 1e-4).all()


def test_draws_are_from_each_conditional_distribution() -> None:
    """With the cache: F(z_i | z_1, ..., z_i-1), by one pass without it, is even in [0, 1]."""
    p = made(vj.GIVT((3, 1), **SMALL))
    z = np.asarray(jax.jit(lambda k: p.sample(k, (3000,)))(jax.random.key(2)))
    log_weights, loc, scale = parameters(outputs_of(p, z), 1)
    u = (np.exp(log_weights) * stats.norm(loc[..., 0], scale[..., 0]).cdf(z)).sum(-1)
    for each in u.T:
        assert stats.kstest(each, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 4 / np.sqrt(3000)


@pytest.mark.others_slow
@pytest.mark.parametrize("temperature", [0.5, 0.0])
def test_the_temperature_scales_every_gaussian(temperature: float) -> None:
    """And leaves their weights and the density alone; at 0 draws are means of components."""
    prior = vj.GIVT((1, 1), **SMALL, temperature=temperature)
    p = made(prior)
    z = np.asarray(jax.jit(lambda k: p.sample(k, (3000,)))(jax.random.key(3)))
    log_weights, loc, scale = (each[0, 0] for each in parameters(outputs_of(p, z[:1]), 1))
    if temperature == 0:
        near = np.abs(z[:, 0] - loc.T).min(-1)
        assert near.max() < 1e-5
        shares = np.bincount(np.abs(z[:, 0] - loc.T).argmin(-1), minlength=K)
        assert stats.chisquare(shares, 3000 * np.exp(log_weights)).pvalue > 1e-3
    else:
        cold = stats.norm(loc[:, 0], temperature * scale[:, 0])
        u = (np.exp(log_weights) * cold.cdf(z[:, 0])).sum(-1)
        assert stats.kstest(u, "uniform").pvalue > 1e-3
    one = made(prior.clone(temperature=1.0))
    found, expected = jax.jit(lambda z: (p.log_prob(z), one.log_prob(z)))(z[:20])
    np.testing.assert_array_equal(found, expected)


def test_guidance_of_two_gaussians_is_a_gaussian() -> None:
    """N(m, s²)^(1 + w) / N(m', s'²)^w by its precision, within 5 percent; none to the bit."""
    weight, y, n = 0.8, jnp.array([0]), 4000
    m, s, m_none, s_none = 1.0, 0.8, 0.4, 1.1

    class Known(AutoregressiveMixture):
        def outputs(self, inputs: Any, y: Any, cache: Any = None, start: Any = 0) -> Any:
            told = jnp.array([0.0, m, math.log(s)]), jnp.array([0.0, m_none, math.log(s_none)])
            return jnp.where((y == 2)[:, None, None], told[1], told[0]), cache

    prior = vj.GIVT((1, 1), **{**SMALL, "num_components": 1}, num_classes=2)
    p = made(prior, y)
    precision = (1 + weight) / s**2 - weight / s_none**2
    mean = ((1 + weight) * m / s**2 - weight * m_none / s_none**2) / precision
    std = precision**-0.5
    guided = Known(p.variables, y, p.network, prior.clone(guidance=weight), event_ndims=2)
    keys = jax.random.split(jax.random.key(4), (n, 1))
    z = np.asarray(jax.jit(jax.vmap(guided.sample))(keys)).ravel()
    assert mean - m > 0.2 * std
    assert z.mean() == pytest.approx(mean, abs=0.05 * std + 4 * std / math.sqrt(n))
    assert z.std() == pytest.approx(std, rel=0.07)
    alike = p, made(prior.clone(drop_labels=0.0), y)
    draw = jax.jit(lambda key: [each.sample(key, (5,)) for each in alike])
    np.testing.assert_array_equal(*draw(jax.random.key(5)))


def test_over_standardized_latents() -> None:
    """ln p of (z - m) / s, less sum ln s; its draws have m and s."""
    prior = Standardized(vj.GIVT((2, 1), **SMALL))
    loc, scale = np.array([[3.0], [-2.0]], "f4"), np.array([[0.1], [5.0]], "f4")
    inner = made(vj.GIVT((2, 1), **SMALL))
    variables = {"loc": loc, "scale": scale, "prior": inner.variables["params"]}
    variables["prior"] = {"network": variables["prior"]}
    u = np.random.default_rng(2).normal(size=(6, 2, 1)).astype(np.float32)

    @jax.jit
    def found(u: Any, key: Any) -> Any:
        p: Any = prior.apply({"params": variables}, tiny.model())
        densities = p.log_prob(loc + scale * u), inner.log_prob(u) - np.log(scale).sum()
        return densities, (p.sample(key, (3,)), loc + scale * inner.sample(key, (3,)))

    densities, draws = found(u, jax.random.key(6))
    np.testing.assert_allclose(*densities, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(*draws, rtol=1e-5)
