"""Diffusion and flow matching as densities: where the velocity is known, everything is exact.

The data are mixtures of Gaussians, the velocity of whose paths has a closed form; so no network has
to learn before a density can be compared with SciPy's.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats
from scipy.special import logsumexp

import vae_jax as vj
from vae_jax import random
from vae_jax.bounds import per_image
from vae_jax.evaluation.ais import make_ais_evaluator
from vae_jax.evaluation.gaps import make_gaps_evaluator
from vae_jax.evaluation.information import make_information_evaluator
from vae_jax.flows import solve, solve_with_log_det
from vae_jax.priors.diffusion import NoiseSchedule

WEIGHTS = np.array([0.2, 0.5, 0.3])
LOC = np.array([[-1.2, 0.3], [0.6, -0.8], [0.5, 1.1]])
SCALE = np.array([[0.3, 0.5], [0.5, 0.25], [0.4, 0.4]])


def velocity(prior: Any, z: Any, s: Any, weights: Any = WEIGHTS) -> Any:
    """alpha' E[z|z_s] + sigma' E[e|z_s] of the mixture, in units of the network's output."""
    alpha, sigma = (jnp.reshape(each, (-1, 1, 1)) for each in prior.alpha_sigma(s))
    variance = (alpha * SCALE) ** 2 + sigma**2
    off = z[:, None] - alpha * LOC
    log_p = jnp.log(weights) - 0.5 * (off**2 / variance + jnp.log(variance)).sum(-1)
    data, noise = LOC + alpha * SCALE**2 / variance * off, sigma / variance * off
    one, other = (alpha, -sigma) if isinstance(prior, vj.Diffusion) else (1.0, -1.0)
    return (jax.nn.softmax(log_p)[..., None] * (one * noise + other * data)).sum(1)


class ExactDiffusion(vj.Diffusion):
    def predict(self, z, s, y):
        super().predict(z, s, y)
        return velocity(self, z, s)


class ExactFlow(vj.FlowMatching):
    def predict(self, z, s, y):
        super().predict(z, s, y)
        return velocity(self, z, s)


EXACT = {"Diffusion": ExactDiffusion, "FlowMatching": ExactFlow}
NETWORK = vj.AdaptiveMLP(8, 1)
MODEL = tiny.model()


@partial(jax.jit, static_argnums=0)
def made(prior: Any) -> Any:
    return prior.apply(prior.init(jax.random.key(0), MODEL), MODEL)


def log_density(z: Any) -> np.ndarray:
    each = [
        np.log(w) + stats.multivariate_normal(m, np.diag(s**2)).logpdf(z)  # pyright: ignore
        for w, m, s in zip(WEIGHTS, LOC, SCALE, strict=True)
    ]
    return np.logaddexp.reduce(each)


def draws(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    which = generator.choice(3, count, p=WEIGHTS)
    return (LOC[which] + SCALE[which] * generator.normal(size=(count, 2))).astype(np.float32)


@partial(jax.jit, static_argnums=2)
def bound(p: Any, z: Any, count: int) -> Any:
    """The prior's bound at times in equal steps, each with noise of its own: `[count, N]`."""
    uniform = (jnp.arange(count) + 0.5) / count
    noise = jax.random.normal(jax.random.key(1), (count, *z.shape))
    one = lambda u, e: p.prior.bound(p, z, e, jnp.full(len(z), u), None)  # noqa: E731
    return jax.lax.map(lambda each: one(*each), (uniform, noise), batch_size=64)


@pytest.mark.parametrize("name", EXACT)
def test_the_odes_density_is_the_mixtures_and_the_bound_below_it(name):
    """Within 0.02 nats at 40 points; with the true velocity the bound is tight to 0.03 nats."""
    p = made(EXACT[name](2, NETWORK))
    z = draws(40)
    found = jax.jit(lambda p, z: p.log_prob(z))(p, z)
    np.testing.assert_allclose(found, log_density(z), atol=0.02)
    estimates = np.asarray(bound(p, z, 8192))
    error = estimates.std() / np.sqrt(estimates.size)
    gap = (log_density(z) - estimates.mean(0)).mean()
    assert -4 * error < gap < 0.03 + 4 * error
    assert error < 0.05


@pytest.mark.parametrize(
    ("name", "sampler"), [("Diffusion", "ode"), ("Diffusion", "ancestral"), ("FlowMatching", "ode")]
)
def test_draws_pass_two_sample_tests(name, sampler):
    """Kolmogorov and Smirnov's of 2,000 draws against as many true ones, on four lines."""
    p = made(EXACT[name](2, NETWORK, sampler=sampler))
    found = np.asarray(jax.jit(lambda p, key: p.sample(key, (2000,)))(p, jax.random.key(3)))
    true = draws(2000, seed=5)
    for angle in np.linspace(0, np.pi, 4, endpoint=False):
        line = np.array([np.cos(angle), np.sin(angle)])
        result: Any = stats.ks_2samp(found @ line, true @ line)
        assert result.pvalue > 1e-3


@pytest.mark.others_slow
@pytest.mark.parametrize("name", ["Diffusion", "FlowMatching"])
def test_before_training_the_density_is_the_standard_normals(name):
    """And diffusion's bound is its closed form, tight to the ends of the schedule."""
    p = made(getattr(vj, name)(2, NETWORK))
    z = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    normal = stats.norm.logpdf(z).sum(-1)
    np.testing.assert_allclose(jax.jit(lambda p, z: p.log_prob(z))(p, z), normal, atol=0.01)
    estimates = np.asarray(bound(p, z, 1024))
    if name == "Diffusion":  # whatever the time and the noise
        np.testing.assert_allclose(estimates, np.broadcast_to(normal, estimates.shape), atol=1e-3)
    else:
        assert (normal - estimates.mean(0)).mean() > 1


def test_the_error_is_least_at_the_true_velocity():
    """E |e - z - v - d|² is that of the true v plus |d|²: flow matching fits that velocity."""

    class Off(ExactFlow):
        def predict(self, z, s, y):
            return super().predict(z, s, y) + jnp.array([0.3, -0.4])

    z = jnp.asarray(draws(40_000))
    keys = random.indexed(random.key(0), jnp.arange(len(z)))
    right, wrong = (
        jax.jit(lambda p: p.fit_objective(z, keys))(made(kind(2, NETWORK)))
        for kind in (ExactFlow, Off)
    )
    difference = np.asarray(right - wrong)
    error = difference.std() / np.sqrt(len(z))
    assert error < 0.01
    assert abs(difference.mean() - 0.25) < 4 * error


# The continuous flow


@pytest.mark.parametrize("size", [3, 100])
def test_the_log_determinant_of_a_linear_flow_is_its_trace(size):
    """dz/dt = A z; above 64 dimensions A is such that Hutchinson's estimate has no noise."""
    generator = np.random.default_rng(0)
    skew = generator.normal(size=(size, size)) / size
    a = np.diag(generator.normal(size=size)) + skew - skew.T
    if size == 3:
        a += generator.normal(size=(size, size))
    z = generator.normal(size=size).astype(np.float32)
    matrix = jnp.asarray(a, jnp.float32)
    end, log_det = jax.jit(
        lambda z: solve_with_log_det(lambda z, _: matrix @ z, z, (0.2, 1.0), 1e-5)
    )(z)
    assert log_det == pytest.approx(0.8 * np.trace(a), abs=1e-3)
    values, vectors = np.linalg.eig(a)
    expected = (vectors * np.exp(0.8 * values)) @ np.linalg.solve(vectors, z)
    np.testing.assert_allclose(end, expected.real, rtol=1e-3, atol=1e-3)


def test_a_path_without_end_is_nan():
    """dz/dt = z² from 1 is infinite at t = 1."""
    end = solve(lambda z, _: z**2, jnp.ones(1), (0.0, 2.0), 1e-5)
    assert np.isnan(end).all()


# The schedule


def test_a_schedule_increases_from_0_to_1():
    """Whatever its parameters; at first it is close to a line."""
    t = jnp.linspace(0, 1, 101)
    schedule: Any = NoiseSchedule(4)
    params = schedule.init(jax.random.key(0), t)
    np.testing.assert_allclose(schedule.apply(params, t), t, atol=0.05)
    for seed in range(5):
        other = jax.tree.map(
            lambda leaf, seed=seed: leaf + 3 * jax.random.normal(jax.random.key(seed), leaf.shape),
            params,
        )
        gamma: Any = schedule.apply(other, t)
        assert (np.diff(gamma) > 0).all()
        np.testing.assert_allclose(gamma[jnp.array([0, -1])], [0, 1], atol=1e-6)


@pytest.mark.slow
def test_the_schedule_moves_to_a_lower_variance():
    """Steps down its gradient leave the mean of the bound and take a tenth of its spread."""
    p = made(ExactDiffusion(2, NETWORK))
    z = jnp.asarray(draws(4000))
    keys = random.indexed(random.key(0), jnp.arange(len(z)))

    def moved(schedule: Any) -> Any:
        params = p.variables["params"] | {"schedule": schedule}
        return p.replace(variables={"params": params})

    @jax.jit
    def spread(schedule: Any) -> Any:
        values = moved(schedule).elbo(z, keys)
        return values.mean(), values.std()

    @jax.jit
    def step(schedule: Any, seed: Any) -> Any:
        own = random.indexed(keys, seed)
        slope = jax.grad(lambda schedule: -moved(schedule).elbo(z, own).mean())(schedule)
        norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(slope)))
        return jax.tree.map(lambda leaf, by: leaf - 0.3 * by / norm, schedule, slope)

    schedule = p.variables["params"]["schedule"]
    (mean, before), start = spread(schedule), schedule
    for seed in range(100):
        schedule = step(schedule, seed)
    after_mean, after = spread(schedule)
    assert jax.tree.structure(start) == jax.tree.structure(schedule)
    assert after < 0.9 * before
    assert abs(after_mean - mean) < 4 * before / np.sqrt(len(z))


# Classes


class OfClass(vj.FlowMatching):
    """Draws of class y are those of a Gaussian around (y, -y); of none, around 0."""

    def predict(self, z: Any, s: Any, y: Any) -> Any:
        super().predict(z, s, y)
        loc = jnp.where(y < 3, y, 0)[:, None] * jnp.array([1.0, -1.0])
        alpha, sigma = ((each)[:, None] for each in self.alpha_sigma(s))
        variance = (0.5 * alpha) ** 2 + sigma**2
        return (sigma - alpha * 0.25) / variance * (z - alpha * loc) - loc


@pytest.mark.slow
def test_guidance_moves_away_from_no_class():
    """Without it draws are those of the class; with w their mean is (1 + w) times as far."""
    y = jnp.array([1, 2])
    key = jax.random.key(0)

    @partial(jax.jit, static_argnums=0)
    def sample(prior: Any, variables: Any) -> Any:
        return prior.apply(variables, MODEL, y).sample(key, (500,))

    prior = OfClass(2, NETWORK, num_classes=3)
    variables = jax.jit(lambda key: prior.init(key, MODEL))(jax.random.key(0))
    plain, more = (np.asarray(sample(prior.clone(guidance=w), variables)) for w in (0.0, 1.0))
    expected = np.array([[1, -1], [2, -2]])
    np.testing.assert_allclose(plain.mean(0), expected, atol=0.1)
    np.testing.assert_allclose(plain.std(0), 0.5, atol=0.07)
    np.testing.assert_allclose(more.mean(0), 2 * expected, atol=0.1)


@pytest.mark.slow
def test_a_label_is_dropped_as_often_as_is_asked_for():
    """What the network is told, counted over 4,000 examples."""

    class Counts(vj.FlowMatching):
        def predict(self, z, s, y):
            super().predict(z, s, y)
            return jnp.where(y == 3, 100.0, 0.0)[:, None] * jnp.ones(2)

    prior = Counts(2, NETWORK, num_classes=3, drop_labels=0.2)
    p = prior.apply(prior.init(jax.random.key(0), MODEL), MODEL, jnp.array([0, 1, 2, 0]))
    keys = random.indexed(random.key(0), jnp.arange(4000).reshape(1000, 4))
    error: Any = jax.jit(lambda p, keys: -p.fit_objective(jnp.zeros((1000, 4, 2)), keys))(p, keys)
    assert (np.asarray(error) > 1000).mean() == pytest.approx(0.2, abs=0.03)


# In a model


@pytest.mark.slow
def test_a_joint_bound_is_that_of_the_standard_normal_at_first():
    """Training knows the bound, evaluation ln p(z): with v = 0 both are known."""
    x = jnp.asarray(tiny.images(3, 0) / 255.0, jnp.float32)
    keys = random.indexed(random.key(0), jnp.arange(3))
    model: Any = tiny.model().clone(prior=vj.Diffusion(2, NETWORK))

    @jax.jit
    def found() -> Any:
        variables = model.init(jax.random.key(0), x, keys)
        few = model.apply(variables, x, random.indexed(keys, 0), 8)
        many = model.apply(variables, x, keys, 4000)
        return few, many, per_image(model, variables, x, keys, 8)

    few, many, values = found()
    normal = np.asarray(jax.scipy.stats.norm.logpdf(many.z[0]).sum(-1))
    difference = np.asarray(many.log_pz[0]) - normal
    error = difference.std(0) / np.sqrt(4000)
    assert (np.abs(difference.mean(0)) < 4 * error + 1e-3).all()
    log_pz = jax.scipy.stats.norm.logpdf(few.z[0]).sum(-1)
    log_w = few.log_px + log_pz - few.log_qz[0]
    nll = np.log(8) - jax.nn.logsumexp(log_w, 0)
    np.testing.assert_allclose(values["nll"], nll, atol=1e-3)


@pytest.mark.slow
def test_where_a_density_is_only_estimated_evaluation_has_the_bound():
    """Above 64 dimensions: at first that of N(0, I), and no tighter with more samples."""
    assert not vj.Diffusion(64).bound_alone
    assert vj.FlowMatching((5, 13)).bound_alone
    prior = vj.Diffusion(65, NETWORK)
    model: Any = tiny.model().clone(posterior=vj.DiagonalGaussian(65), prior=prior)
    x = jnp.asarray(tiny.images(3, 0) / 255.0, jnp.float32)
    keys = random.indexed(random.key(0), jnp.arange(3))

    @jax.jit
    def found() -> Any:
        variables = model.init(jax.random.key(0), x, keys)
        drawn = model.apply(variables, x, random.indexed(keys, 0), 8)
        return drawn, per_image(model, variables, x, keys, 8)

    drawn, values = found()
    log_pz = stats.norm.logpdf(drawn.z[0]).sum(-1)
    log_w = np.asarray(drawn.log_px) + log_pz - np.asarray(drawn.log_qz[0])
    np.testing.assert_allclose(values["nll"], -log_w.mean(0), atol=0.01)
    assert (logsumexp(log_w, 0) - np.log(8) - log_w.mean(0)).min() > 0.1
    experiment = dataclasses.replace(tiny.experiment(), model=model)
    for make in (
        partial(make_ais_evaluator, settings=vj.AIS(2)),
        partial(make_gaps_evaluator, num_samples=2),
        make_information_evaluator,
    ):
        with pytest.raises(vj.VaeJaxError, match=r"needs ln p\(z\), on which Diffusion has only"):
            make(experiment, "test")


NETWORKS = {
    "UNet": (vj.UNet((4, 8), 1, 2), (5, 4, 2)),
    "DiT": (vj.DiT(8, 1, 2, patch_size=2), (5, 4, 2)),
    "DiT of a set": (vj.DiT(8, 1, 2), (3, 2)),
    "AdaptiveMLP": (vj.AdaptiveMLP(8, 1), (3,)),
}


@pytest.mark.others_slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_begins_at_zero_and_hears_its_condition(name):
    """Zero at first, where parameters move it depends on latents and condition, of each alone."""
    network, event = NETWORKS[name]
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    z, condition = normal(3, *event), normal(3, 8)
    apply = jax.jit(network.apply)
    params = jax.jit(network.init)(jax.random.key(2), z, condition)
    assert not np.asarray(apply(params, z, condition)).any()
    moved = jax.tree.map(lambda x: np.asarray(x) + 0.3 * normal(*x.shape), params)
    out: Any = apply(moved, z, condition)
    assert out.shape == z.shape
    first, second, _ = np.eye(3, dtype=np.float32)
    other: Any = apply(moved, (z.T + first).T, (condition.T + second).T)
    changed = np.abs(np.asarray(other - out)).reshape(3, -1).max(-1)
    assert (changed[:2] > 1e-3).all()
    assert changed[2] < 1e-5


def test_guidance_away_from_what_is_not_learned_is_refused():
    with pytest.raises(vj.VaeJaxError, match="drop_labels is 0: give drop_labels"):
        vj.Diffusion(2, num_classes=3, drop_labels=0.0, guidance=1.0)
