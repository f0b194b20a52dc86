"""The linear-Gaussian VAE, where everything has a closed form (Lucas et al. 2019).

It is probabilistic PCA: the data's covariance gives the best likelihood, and the posterior there is
a diagonal Gaussian that the model can represent, so that the ELBO is tight.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from vae_jax import ELBO, IWAE, Terms
from vae_jax.bounds import per_image
from vae_jax.distributions import exact_kl

SHAPE, D, N = (2, 4, 1), 2, 100


@pytest.fixture(scope="module")
def x():
    """Images whose covariance has the eigenvalues 4, 2 and, six times, about 0.3."""
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    noise = np.sqrt([4.0, 2.0, 0.35, 0.3, 0.3, 0.3, 0.3, 0.25])
    return ((generator.normal(size=(N, 8)) * noise) @ basis.T + 0.5).reshape(N, *SHAPE)


@pytest.fixture(scope="module")
def ppca(fit_linear_gaussian, x):
    return fit_linear_gaussian(x, D)


def example_keys(n: int = N) -> jax.Array:
    return jax.random.split(jax.random.key(0), n)


def exact_terms(model, variables, x) -> Terms:
    """Terms whose mean over the samples is exact: 2d sigma points instead of noise.

    ln p(x|z) is quadratic in z; the points loc ± sqrt(d) scale e_i have q's mean and covariance.
    """
    q = model.apply(variables, x, method="encode")
    offsets = math.sqrt(D) * jnp.concatenate([jnp.eye(D), -jnp.eye(D)])
    z = q.loc + q.scale * offsets[:, None]
    px = model.apply(variables, (z,), method="decode")
    p = model.apply(variables, method=lambda model: model.prior(model))
    kl = exact_kl(q, p)
    assert kl is not None
    return Terms(
        x=x,
        y=None,
        keys=example_keys(len(x)),
        z=(z,),
        path=None,
        log_px=px.log_prob(x),
        log_pz=p.log_prob(z)[None],
        log_qz=q.log_prob(z)[None],
        kl=kl[None],
        q=(q,),
        p=(p,),
        reconstruction=px.mean,
    )


def test_optimum_has_two_closed_forms(ppca, x):
    """SciPy's density and -1/2 [d ln 2pi + sum ln lambda_j + (d - q) ln sigma² + d] agree."""
    assert ppca.log_likelihood(x).mean() == pytest.approx(ppca.optimum, abs=1e-10)


def test_the_elbo_is_tight_at_the_optimum(ppca, x):
    """-ELBO with the exact KL = -ln p(x), to 1e-6 nats, in float64."""
    with jax.enable_x64(True):
        terms = jax.jit(partial(exact_terms, ppca.model))(ppca.variables, jnp.asarray(x))
        loss, metrics = ELBO()(terms, jnp.int32(0), tiny.model())
    assert float(loss) == pytest.approx(-ppca.optimum, abs=1e-6)
    assert float(metrics["neg_elbo"]) == pytest.approx(-ppca.optimum, abs=1e-6)


def test_every_weight_is_the_likelihood_at_the_optimum(ppca, x):
    """q is the exact posterior, so w = p(x) for any z: image by image to 1e-6 nats."""
    with jax.enable_x64(True):
        apply = jax.jit(ppca.model.apply, static_argnums=3)
        terms = apply(ppca.variables, x, example_keys(), 20)
        log_w, loss = np.asarray(terms.log_w), IWAE(20)(terms, jnp.int32(0), tiny.model())[0]
    expected = np.broadcast_to(ppca.log_likelihood(x), (20, N))
    np.testing.assert_allclose(log_w, expected, atol=1e-6)
    assert np.ptp(np.asarray(terms.z[0]), axis=0).min() > 0.1
    assert float(loss) == pytest.approx(-ppca.optimum, abs=1e-6)


@pytest.mark.parametrize("num_samples", [1, 2, 50])
def test_the_importance_bound_is_exact_for_every_k_at_the_optimum(ppca, x, num_samples):
    with jax.enable_x64(True):
        evaluated = jax.jit(partial(per_image, ppca.model, num_samples=num_samples))
        result = evaluated(ppca.variables, jnp.asarray(x), example_keys())
    np.testing.assert_allclose(result["nll"], -ppca.log_likelihood(x), atol=1e-6)
    np.testing.assert_allclose(result["neg_elbo"], -ppca.log_likelihood(x), atol=1e-6)


def test_training_reaches_the_optimum(ppca, x):
    """From a random start with Adam, full batch and 4 samples: within 0.01 nats per image.

    What is compared is the exact ELBO, which cannot exceed the optimum.
    """
    model, images = ppca.model, jnp.asarray(x, jnp.float32)
    steps = 3000
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, steps))
    objective = ELBO(num_samples=4)

    def loss(params, step):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), step), N)
        terms = model.apply({"params": params}, images, keys, objective.num_samples)
        return objective(terms, step, tiny.model())[0]

    def update(carry, step):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, step), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train():
        params = model.init(jax.random.key(0), images, example_keys())["params"]
        carry = params, optimizer.init(params)
        return params, jax.lax.scan(update, carry, jnp.arange(steps))[0][0]

    @jax.jit
    def elbo(params):
        terms = exact_terms(model, {"params": params}, images)
        return -ELBO()(terms, jnp.int32(0), tiny.model())[0]

    start, end = train()
    assert elbo(start) < ppca.optimum - 3
    assert ppca.optimum - 1e-2 < elbo(end) < ppca.optimum + 1e-4


@pytest.fixture(scope="module")
def wrong(ppca):
    """The best decoder with a posterior that is off in place and width."""
    posterior = ppca.variables["params"]["posterior"]
    shifted = {
        "loc": {**posterior["loc"], "bias": posterior["loc"]["bias"] + 0.5},
        "log_scale": {**posterior["log_scale"], "bias": posterior["log_scale"]["bias"] + 0.3},
    }
    params = {**ppca.variables["params"], "posterior": shifted}
    return {"params": jax.tree.map(np.float32, params)}


def assert_rising_to(exact, bounds):
    """Each bound `[N]` is above the one before, all below the exact ln p(x), by standard errors."""
    for lower, higher in itertools.pairwise(bounds):
        gain = higher - lower
        assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))
    for bound in bounds:
        short = exact - bound
        assert short.mean() > -4 * short.std() / np.sqrt(len(short))
    assert (exact - bounds[0]).mean() > 10 * (exact - bounds[-1]).mean()


def test_the_importance_bound_rises_to_the_likelihood(ppca, wrong, x):
    """L_1 < L_5 < L_50 <= ln p(x) = L_1000 by `per_image`, of 5 copies of each image."""
    copies = np.tile(x, (5, 1, 1, 1)).astype(np.float32)
    exact = ppca.log_likelihood(copies)
    evaluated = jax.jit(partial(per_image, ppca.model), static_argnums=3)
    results = [evaluated(wrong, copies, example_keys(len(copies)), k) for k in (1, 5, 50, 1000)]
    bounds = [-np.float64(result["nll"]) for result in results]
    assert_rising_to(exact, bounds[:3])
    np.testing.assert_allclose(bounds[3].mean(), exact.mean(), atol=0.02)


def test_objectives_are_ordered_bounds(ppca, wrong, x):
    """ELBO < IWAE-5 < IWAE-50 <= ln p(x) in expectation: 40 draws of each batch's loss."""
    images = jnp.asarray(x, jnp.float32)

    def losses(objective):
        def loss(key):
            keys = jax.random.split(key, N)
            terms = ppca.model.apply(wrong, images, keys, objective.num_samples)
            return objective(terms, jnp.int32(0), tiny.model())[0]

        return np.float64(jax.jit(jax.vmap(loss))(jax.random.split(jax.random.key(5), 40)))

    bounds = [-losses(objective) for objective in (ELBO(), IWAE(5), IWAE(50))]
    assert_rising_to(ppca.optimum, bounds)
