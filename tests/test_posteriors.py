"""Posteriors over real vectors: densities, samplers, gradients along z, closed-form divergences."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import special, stats

from vae_jax import (
    DiagonalGaussian,
    FullCovarianceGaussian,
    HouseholderFlow,
    HouseholderSylvesterFlow,
    InverseAutoregressiveFlow,
    PlanarFlow,
    SylvesterFlow,
    TriangularSylvesterFlow,
    VaeJaxError,
)
from vae_jax.distributions import MultivariateNormal, Normal, exact_kl, limited

B, D, F, DRAWS = 3, 2, 4, 4000  # examples, latents, features, draws per example
LIMIT, CELLS = 16.0, 320
EPS = 1e-5

POSTERIORS: dict[str, Any] = {
    "diagonal": DiagonalGaussian(D),
    "full": FullCovarianceGaussian(D),
    "planar": PlanarFlow(D, num_flows=1),
    "householder": HouseholderFlow(D, num_flows=2),
    "sylvester": SylvesterFlow(D, num_ortho=2, num_flows=1),
    "householder_sylvester": HouseholderSylvesterFlow(D, num_reflections=2, num_flows=1),
    "triangular_sylvester": TriangularSylvesterFlow(D, num_flows=2),
    "iaf": InverseAutoregressiveFlow(D, num_flows=2, features=(6,)),
}
FEATURES = 0.6 * np.random.default_rng(0).normal(size=(B, F))


EDGES = np.linspace(-LIMIT, LIMIT, CELLS + 1)


def spread(variables: Any, dtype: Any) -> Any:
    """Parameters far from where training starts, the same on every call."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), dtype), variables
    )


@pytest.fixture(scope="module", params=POSTERIORS)
def q(request) -> dict[str, Any]:
    """A posterior for three examples, in float64, with all that the tests look at."""
    posterior = POSTERIORS[request.param]
    start = jax.jit(posterior.init)(jax.random.key(0), jnp.asarray(FEATURES, jnp.float32))

    @jax.jit
    def drawn(variables, features, keys):
        q = posterior.apply(variables, features)
        return q, q.mean, *q.sample_and_log_prob(keys, (DRAWS,))

    @jax.jit
    def density(q, z):
        return q.log_prob(z)

    @jax.jit
    def gradients(variables, z):
        def held(variables, z):
            q = posterior.apply(variables, jnp.asarray(FEATURES))
            return jax.tree.map(jax.lax.stop_gradient, q).log_prob(z).sum()

        return jax.grad(held, (0, 1))(variables, z)

    middles = (EDGES[1:] + EDGES[:-1]) / 2
    points = np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).reshape(-1, 1, D)
    points = np.broadcast_to(points, (CELLS**2, B, D))
    with jax.enable_x64(True):
        variables = spread(start, jnp.float64)
        keys = jax.random.split(jax.random.key(2), B)
        q, mean, z, log_q = drawn(variables, jnp.asarray(FEATURES), keys)
        others = jnp.asarray(FEATURES).at[::2].add(1.0)  # all but the second example
        other_keys = jax.random.split(jax.random.key(3), B).at[1].set(keys[1])
        steps = EPS * np.concatenate([np.eye(D), -np.eye(D)])[:, None, None]
        near = (z[:8] + steps[:, None, 0]).reshape(-1, B, D)
        by_inverses, around, grid = np.split(
            density(q, np.concatenate([z, near, points])), [DRAWS, DRAWS + len(near)]
        )
        ahead, behind = around.reshape(2, D, 8, B)
        of_parameters, path = gradients(variables, z[:8])
        found = {
            "mean": mean,
            "z": z,
            "log_q": log_q,
            "log_q_by_inverses": by_inverses,
            "with_others": drawn(variables, others, other_keys)[2],
            "grid": grid,
            "of_parameters": of_parameters,
            "path": path,
            "differences": np.moveaxis((ahead - behind) / (2 * EPS), 0, -1),
        }
    return {"name": request.param, "posterior": posterior, "start": start, "q": q, **found}


# --- Every posterior ------------------------------------------------------------------------------


def test_shapes(q):
    assert q["z"].shape == (DRAWS, B, D)
    assert q["log_q"].shape == q["log_q_by_inverses"].shape == (DRAWS, B)
    assert q["q"].batch_shape == (B,)
    assert q["q"].event_shape == (D,)
    assert q["mean"].shape == (B, D)


def test_a_draw_has_the_density_that_is_given_with_it(q):
    """The forward pass that made z and the inverses from z agree."""
    np.testing.assert_allclose(q["log_q"], q["log_q_by_inverses"], rtol=1e-7, atol=1e-7)


def test_densities_integrate_to_one_and_are_sampled_from(q):
    """Midpoint rule over a square, all examples at the same points; KS of marginals at 1e-4."""
    cell = (2 * LIMIT / CELLS) ** 2
    mass = np.exp(np.asarray(q["grid"])).reshape(CELLS, CELLS, B) * cell
    np.testing.assert_allclose(mass.sum((0, 1)), np.ones(B), atol=1e-3)
    for b in range(B):
        for d in range(D):
            cumulative = np.append(0, mass[..., b].sum(1 - d).cumsum())
            uniform = np.interp(q["z"][:, b, d], EDGES, cumulative / cumulative[-1])
            assert stats.kstest(uniform, "uniform").pvalue > 1e-4


def test_components_depend_on_each_other_unless_diagonal(q):
    """The correlation of ranks of the draws; with independence |rho| < 0.08 in 4 sigma."""
    rho: Any = [stats.spearmanr(q["z"][:, b])[0] for b in range(B)]
    assert (np.abs(rho).max() < 0.08) == (q["name"] == "diagonal")


def test_an_examples_draws_depend_on_its_key_and_features_alone(q):
    """Other features and keys around it leave the second example's draws as they are."""
    np.testing.assert_array_equal(q["with_others"][:, 1], q["z"][:, 1])
    assert np.all(q["with_others"][:, ::2] != q["z"][:, ::2])


def test_path_gradients_are_finite_differences(q):
    """d ln q / dz with q held, in float64; nothing reaches the parameters, networks included."""
    np.testing.assert_allclose(q["path"], q["differences"], rtol=1e-5, atol=1e-6)
    assert "path" in q["posterior"].traits
    for leaf in jax.tree.leaves(q["of_parameters"]):
        np.testing.assert_array_equal(leaf, 0)


def test_amortized_posteriors_can_be_indexed(q):
    """As mixtures of q(z|u_c) do: every array has the batch's axis. An IAF's networks have not."""
    leads = all(leaf.shape[:1] == (B,) for leaf in jax.tree.leaves(q["q"]))
    assert leads == ("amortized" in q["posterior"].traits)


def test_training_starts_and_stays_finite(q):
    """Float32, at the start and with features of a hundred and a thousand."""
    keys = jax.random.split(jax.random.key(2), B)

    @jax.jit
    def loss_and_gradients(variables, features):
        def loss(variables):
            q_z = q["posterior"].apply(variables, features)
            z, log_q = q_z.sample_and_log_prob(keys, (5,))
            held = jax.tree.map(jax.lax.stop_gradient, q_z)
            return (log_q + 0.5 * (z**2).sum(-1) - held.log_prob(z)).mean(), (z, log_q)

        return jax.value_and_grad(loss, has_aux=True)(variables)

    features = jnp.asarray(FEATURES, jnp.float32)
    for scale in (1, 100, 1000):
        found = loss_and_gradients(q["start"], scale * features)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_the_limits_of_a_scale_leave_others_alone_and_can_be_left():
    """ln sigma as it was within the range, less than one beyond it, with a gradient everywhere."""
    x = jnp.asarray([-1e4, -11.0, -10.0, -3.0, 0.0, 7.0, 9.0, 1e4])
    y, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda x: limited(x, -10.0, 7.0))))(x)
    np.testing.assert_array_equal(y[2:6], x[2:6])
    np.testing.assert_allclose(y[jnp.array([1, 6])], [-10.5, 7 + 2 / 3], rtol=1e-6)
    assert np.all(np.diff(y) > 0)
    assert -11 <= y[0] < y[-1] <= 8
    np.testing.assert_allclose(slope, [1e4**-2, 1 / 4, 1, 1, 1, 1, 1 / 9, 1e4**-2], rtol=3e-3)


@pytest.mark.parametrize("posterior", [DiagonalGaussian(20), FullCovarianceGaussian(20)])
def test_the_elbos_of_wide_features_and_their_gradients_are_finite(posterior):
    """Features times 100, twenty dimensions: both forms of the KL."""
    features = 100 * np.random.default_rng(3).normal(size=(B, F)).astype(np.float32)
    keys = jax.random.split(jax.random.key(2), B)
    prior = Normal(jnp.zeros(20), jnp.ones(20))

    def losses(variables):
        q = posterior.apply(variables, features)
        z, log_q = q.sample_and_log_prob(keys, (5,))
        kl: Any = exact_kl(q, prior)
        return jnp.stack([(log_q - prior.log_prob(z)).mean(), kl.mean()])

    variables = jax.jit(posterior.init)(jax.random.key(0), features)
    found, gradients = jax.jit(lambda v: (losses(v), jax.jacrev(losses)(v)))(variables)
    assert np.isfinite(found).all()
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() < 1e18  # whose squares have a finite sum


def test_a_full_covariance_of_one_dimension_is_a_normal():
    posterior = FullCovarianceGaussian(1)
    features = jnp.asarray(FEATURES, jnp.float32)
    (q, (z, log_q)), variables = jax.jit(
        lambda key: nn.init_with_output(
            lambda module: (module(features), module(features).sample_and_log_prob(key)), posterior
        )(key)
    )(jax.random.key(0))
    assert set(variables["params"]) == {"loc", "log_diagonal"}
    scale = np.asarray(q.scale_tril)[:, 0, 0]
    np.testing.assert_allclose(
        log_q, stats.norm.logpdf(z[:, 0], q.loc[:, 0], scale), rtol=1e-4, atol=1e-4
    )


def test_a_flow_starts_near_its_base(q):
    """Where the base's draws go; IAF's two gates start at sigmoid(2) = 0.88, as in its paper."""
    if not q["name"].endswith(("planar", "sylvester", "iaf")):
        return
    start = q["posterior"].apply(q["start"], jnp.asarray(FEATURES, jnp.float32))
    x, z = (p.sample(jax.random.key(1), (100,)) for p in (start.base, start))
    if q["name"] == "iaf":
        x = x[..., ::-1] * special.expit(2) ** 2  # one reversal between the flows
    assert np.abs(z - x).mean() < 0.05 * np.abs(x).mean()


def test_a_sylvester_flow_cannot_be_wider_than_its_space():
    with pytest.raises(VaeJaxError, match="num_ortho <= 2"):
        SylvesterFlow(2, num_ortho=3).init(jax.random.key(0), jnp.zeros((1, F)))


def test_a_householder_flow_is_the_gaussian_that_it_is(q):
    """N(H m, H diag(s²) Hᵀ) by SciPy, H the product of two reflections in NumPy."""
    if q["name"] != "householder":
        return
    loc, scale, vs = jax.tree.map(np.asarray, jax.tree.leaves(q["q"]))
    for b in range(B):
        first, second = (np.eye(D) - 2 * np.outer(v, v) / (v @ v) for v in vs[b])
        h = second @ first
        gaussian = stats.multivariate_normal(h @ loc[b], h @ np.diag(scale[b] ** 2) @ h.T)
        np.testing.assert_allclose(q["log_q"][:, b], gaussian.logpdf(q["z"][:, b]), rtol=1e-6)


# --- Gaussians with a full covariance -------------------------------------------------------------


def multivariate(seed: int, *batch: int, dim: int = 3) -> MultivariateNormal:
    rng = np.random.default_rng(seed)
    tril = np.tril(rng.normal(size=(*batch, dim, dim)), -1) + np.eye(dim) * rng.uniform(
        0.4, 1.5, (*batch, 1, dim)
    )
    return MultivariateNormal(
        jnp.asarray(rng.normal(size=(*batch, dim)), jnp.float32), jnp.asarray(tril, jnp.float32)
    )


def test_multivariate_normal_is_scipys():
    """The density, and the distribution of a linear combination of draws (KS at 1e-4)."""
    p = multivariate(0, 2)
    z, log_p = p.sample_and_log_prob(jax.random.split(jax.random.key(0), 2), (4000,))
    direction = np.array([1.0, -2.0, 0.5])
    for b in range(2):
        tril = np.asarray(p.scale_tril[b], np.float64)
        scipys: Any = stats.multivariate_normal
        expected = scipys(p.loc[b], tril @ tril.T).logpdf(z[:, b])
        np.testing.assert_allclose(log_p[:, b], expected, rtol=1e-4, atol=1e-4)
        combined = stats.norm(direction @ p.loc[b], np.linalg.norm(tril.T @ direction))
        assert stats.kstest(np.asarray(z[:, b]) @ direction, combined.cdf).pvalue > 1e-4


@pytest.mark.parametrize("batch", [(2,), ()])
def test_exact_kl_of_multivariate_normals(batch):
    """NumPyro's, for p with a batch and without, and the mean of sampled log-ratios (4 s.e.)."""
    q, p = multivariate(0, 2), multivariate(1, *batch)
    diagonal = Normal(p.loc, jnp.diagonal(p.scale_tril, axis1=-2, axis2=-1))
    full: Any = dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril)
    for other, covariance in [
        (p, p.scale_tril),
        (diagonal, jnp.eye(3) * diagonal.scale[..., None]),
    ]:
        numpyros: Any = dist.MultivariateNormal(other.loc, scale_tril=covariance)
        expected = dist.kl_divergence(full, numpyros.expand((2,)))
        kl = jax.jit(exact_kl)(q, other)
        assert kl is not None
        np.testing.assert_allclose(kl, expected, rtol=1e-5)
        z, log_q = q.sample_and_log_prob(jax.random.key(2), (20000,))
        ratios = np.asarray(log_q - other.log_prob(z), np.float64)
        error = ratios.std(0) / np.sqrt(len(ratios))
        np.testing.assert_array_less(np.abs(ratios.mean(0) - kl), 4 * error)
