"""Monte Carlo EM of linear-Gaussian models, where p(z|x) and ln p(x) have closed forms."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from vae_jax import (
    MLP,
    Bernoulli,
    BottomUp,
    DeepVAE,
    DiagonalGaussian,
    HierarchicalVAE,
    LadderVAE,
    MonteCarloEM,
    OptimalGaussian,
    SkipVAE,
    StandardNormal,
    TopDown,
    VaeJaxError,
    VampPrior,
)
from vae_jax.compatibility import check_objective
from vae_jax.evaluation.ais import log_mean_exp, prior_draws
from vae_jax.step import loss_at_terms

SHAPE, D, STEP = (2, 4, 1), 2, jnp.int32(0)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    noise = np.sqrt([20.0, 4.0, 0.35, 0.3, 0.3, 0.3, 0.3, 0.25])
    return np.float32((generator.normal(size=(100, 8)) * noise) @ basis.T + 0.5).reshape(-1, *SHAPE)


@pytest.fixture(scope="module")
def ppca(fit_linear_gaussian: Any, x: np.ndarray) -> Any:
    return fit_linear_gaussian(x, D)


def loss(
    model: Any, objective: MonteCarloEM, params: Any, x: Any, keys: Any
) -> tuple[jax.Array, Any]:
    bound = nn.apply(loss_at_terms, model)
    return bound({"params": params}, objective, x, keys, None, STEP)


def log_likelihood(generative: Any, x: Any) -> jax.Array:
    """Mean ln p(x), with z integrated out: a Gaussian with covariance W'W + s² I."""
    layer, log_scale = generative["loc"], generative["log_scale"]
    covariance = layer["kernel"].T @ layer["kernel"] + jnp.exp(2 * log_scale) * jnp.eye(8)
    flat = x.reshape(len(x), -1)
    normal: Any = jax.scipy.stats.multivariate_normal
    return normal.logpdf(flat, layer["bias"], covariance).mean()


def moved(params: Any) -> Any:
    """Parameters away from the optimum, where no gradient is zero."""
    layer = {"kernel": 0.6, "bias": 1.5}
    changed = {name: layer[name] * leaf for name, leaf in params["likelihood"]["loc"].items()}
    likelihood = {"loc": changed, "log_scale": params["likelihood"]["log_scale"] + 0.3}
    return jax.tree.map(jnp.float32, params | {"likelihood": likelihood})


def test_the_gradient_is_that_of_the_likelihood(ppca: Any, x: np.ndarray) -> None:
    """Fisher's identity, within the standard errors of thirty gradients; moves are accepted."""
    params, objective = moved(ppca.variables["params"]), MonteCarloEM(40)
    expected = jax.grad(log_likelihood)(params["likelihood"], x)

    @jax.jit
    def gradient(key: jax.Array) -> tuple[Any, Any]:
        keys = jax.random.split(key, len(x))
        return jax.grad(partial(loss, ppca.model, objective), has_aux=True)(params, x, keys)

    found, metrics = jax.lax.map(gradient, jax.random.split(jax.random.key(1), 30))
    for ours, exact in zip(
        jax.tree.leaves(found["likelihood"]), jax.tree.leaves(expected), strict=True
    ):
        error = ours.std(0, ddof=1) / 30**0.5
        assert np.abs(exact).max() > 10 * error.max()
        np.testing.assert_array_less(np.abs(-ours.mean(0) - exact), 5 * error + 1e-3)
    assert 0.88 < metrics["acceptance"].mean() < 0.98
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["posterior"]))


def test_training_reaches_the_highest_likelihood(ppca: Any, x: np.ndarray) -> None:
    """That of the data's eigenvalues (Tipping & Bishop 1999)."""
    adam = optax.adam(optax.cosine_decay_schedule(0.05, 300))

    @jax.jit
    def trained(params: Any) -> Any:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            keys = jax.random.split(key, len(x))
            of_loss = partial(loss, ppca.model, MonteCarloEM(40, 5), x=x, keys=keys)
            gradient, _ = jax.grad(of_loss, has_aux=True)(params)
            updates, state = adam.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        every = jax.random.split(jax.random.key(2), 300)
        return jax.lax.scan(step, (params, adam.init(params)), every)[0][0]

    begun = moved(ppca.variables["params"])
    assert log_likelihood(begun["likelihood"], x) < ppca.optimum - 0.5
    reached = log_likelihood(trained(begun)["likelihood"], x)
    assert reached == pytest.approx(ppca.optimum, abs=0.02)


@pytest.mark.parametrize(("prior", "learns"), [(StandardNormal(2), False), (VampPrior(3), True)])
def test_the_encoder_learns_only_where_the_prior_depends_on_it(prior: Any, learns: bool) -> None:
    model, objective = tiny.model().clone(prior=prior), MonteCarloEM(2, 2)
    x = jnp.asarray(tiny.images(5, 0), jnp.float32) / 255
    keys = jax.random.split(jax.random.key(1), 5)

    @jax.jit
    def gradients() -> Any:
        begun = nn.init(loss_at_terms, model)(jax.random.key(0), objective, x, keys, None, STEP)
        return jax.grad(loss, 2, has_aux=True)(model, objective, begun["params"], x, keys)

    gradient, _ = gradients()
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["decoder"]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["encoder"])) == learns


def of_three_layers(kind: Any) -> Any:
    return kind(
        encoders=[MLP((4,)) for _ in range(3)],
        posteriors=[DiagonalGaussian(2) for _ in range(3)],
        prior=StandardNormal(2),
        decoders=[MLP((4,)) for _ in range(3)],
        conditionals=[DiagonalGaussian(2) for _ in range(2)],
        likelihood=Bernoulli(),
        image_shape=tiny.IMAGE_SHAPE,
    )


HIERARCHIES = {
    "hierarchical": of_three_layers(HierarchicalVAE),
    "ladder": of_three_layers(LadderVAE),
    "skip": of_three_layers(SkipVAE),
    "deep": DeepVAE(
        encoder=BottomUp((1, 1), 8),
        decoder=TopDown((2, 1), 8, 2),
        likelihood=Bernoulli(),
        image_shape=tiny.IMAGE_SHAPE,
    ),
}


@pytest.mark.others_slow
@pytest.mark.parametrize("model", HIERARCHIES.values(), ids=HIERARCHIES)
def test_a_hierarchy_learns_from_draws_of_all_its_layers(model: Any) -> None:
    """After sixty steps ln p(x), here the mean of p(x|z) over the prior, is higher."""
    x, objective = jnp.asarray(tiny.images(5, 0), jnp.float32) / 255, MonteCarloEM(5, 5)
    keys = jax.random.split(jax.random.key(1), 5)

    def log_likelihood(params: Any) -> jax.Array:
        zs = prior_draws(model, {"params": params}, keys, 1000)
        log_px, _ = model.apply({"params": params}, x, zs, method="log_densities")
        return log_mean_exp(log_px).mean()

    @jax.jit
    def trained() -> Any:
        def step(params: Any, key: jax.Array) -> tuple[Any, None]:
            of_step = partial(loss, model, objective, x=x, keys=jax.random.split(key, len(x)))
            gradient, _ = jax.grad(of_step, has_aux=True)(params)
            return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), None

        begun = nn.init(loss_at_terms, model)(jax.random.key(0), objective, x, keys, None, STEP)
        every = jax.random.split(jax.random.key(2), 60)
        after = jax.lax.scan(step, begun["params"], every)[0]
        return log_likelihood(begun["params"]), log_likelihood(after)

    before, after = trained()
    assert after > before + 1


def test_pixels_that_depend_on_the_batch_are_refused() -> None:
    model = tiny.model().clone(likelihood=OptimalGaussian())
    with pytest.raises(VaeJaxError, match="needs p\\(x\\|z\\) of each image by itself"):
        check_objective(MonteCarloEM(), model)
