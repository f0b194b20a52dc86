"""The sigma-VAE's scale: the batch's optimum in training, remembered for everything else."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gradients import assert_close, one_batch
from running import on_devices

from vae_jax import (
    IWAE,
    MLP,
    PIWAE,
    DiagonalGaussian,
    HierarchicalVAE,
    OptimalGaussian,
    StandardNormal,
    evaluate,
    train,
)

MODEL = tiny.model().clone(likelihood=OptimalGaussian())
HIERARCHY = HierarchicalVAE(
    encoders=(MLP((6,)), MLP((6,))),
    posteriors=(DiagonalGaussian(3), DiagonalGaussian(2)),
    prior=StandardNormal(2),
    decoders=(MLP((6,)), MLP((6,))),
    conditionals=(DiagonalGaussian(3),),
    likelihood=OptimalGaussian(),
    image_shape=tiny.IMAGE_SHAPE,
)
X = np.random.default_rng(0).uniform(size=(5, *tiny.IMAGE_SHAPE)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(1), 5)


@pytest.mark.parametrize("model", [MODEL, HIERARCHY], ids=["VAE", "HierarchicalVAE"])
def test_training_scores_with_the_batchs_optimum_and_remembers_it(model: nn.Module):
    """At its optimum the mean log-likelihood of D pixels is -(D/2) [ln(2 pi MSE) + 1]."""

    @jax.jit
    def both():
        variables = model.init(jax.random.key(0), X, KEYS)
        trained, state = model.apply(variables, X, KEYS, 3, mutable=["running"])
        return variables, trained, state, model.apply(variables, X, KEYS, 3)

    variables, trained, state, evaluated = both()
    error = np.square(X - np.asarray(trained.reconstruction)).mean(dtype=np.float64)
    best = -X[0].size / 2 * (np.log(2 * np.pi * error) + 1)
    assert trained.log_px.mean() == pytest.approx(best, rel=1e-5)
    assert variables["running"]["likelihood"]["variance"] == 1
    expected = 1 + (error - 1) / 20
    assert state["running"]["likelihood"]["variance"] == pytest.approx(expected, rel=1e-5)
    errors = np.square(X - np.asarray(evaluated.reconstruction)).sum((-3, -2, -1))
    density = -0.5 * (errors + X[0].size * np.log(2 * np.pi))  # the remembered scale is one still
    np.testing.assert_allclose(evaluated.log_px, density, rtol=1e-5)


def test_its_gradient_is_that_of_the_log_of_the_squared_error():
    """-ln p at the optimum is (D/2) ln MSE and a constant, so the scale's part is in the gradient.

    Held constant, the scale has the derivative zero there (the envelope theorem).
    """
    likelihood, x = OptimalGaussian(), X
    features = jax.random.normal(jax.random.key(2), (5, 3))
    variables: Any = likelihood.init(jax.random.key(0), features, tiny.IMAGE_SHAPE)

    def errors(params):
        px: Any = likelihood.apply({**variables, "params": params}, features, tiny.IMAGE_SHAPE)
        return jnp.square(x - px.mean).mean()

    def loss(params):
        def score(module):
            return module.observe(module(features, tiny.IMAGE_SHAPE), x).log_prob(x).mean()

        log_px, _ = nn.apply(score, likelihood, mutable=["running"])(
            {**variables, "params": params}
        )
        return -log_px

    expected = jax.jit(jax.grad(lambda params: X[0].size / 2 * jnp.log(errors(params))))
    params = variables["params"]
    assert_close(jax.jit(jax.grad(loss))(params), expected(params), 1e-4)


@pytest.mark.slow
def test_it_is_the_same_on_1_and_8_devices():
    """One scale for the whole batch: an optimum of each share alone would differ."""
    experiment = dataclasses.replace(
        tiny.experiment(), data=tiny.data("grey"), model=MODEL, objective=IWAE(3), batch_size=8
    )
    one, eight = one_batch(experiment, 1, 8)
    assert_close(eight, one, 1e-5)
    assert one[2]["running"]["likelihood"]["variance"] < 1


def test_a_second_density_of_the_same_step_moves_nothing():
    """PIWAE scores its samples twice: the running variance is that of IWAE, which does so once."""
    experiments = (
        dataclasses.replace(
            tiny.experiment(), data=tiny.data("grey"), model=MODEL, objective=objective
        )
        for objective in (IWAE(3), PIWAE(1, 3))
    )
    once, twice = (one_batch(experiment, 1)[0][2] for experiment in experiments)
    assert_close(twice, once, 1e-6)


@pytest.mark.slow
def test_evaluation_has_the_scale_of_the_last_batches(tmp_path):
    """After 400 steps the remembered variance is the training images' within a tenth."""
    experiment = dataclasses.replace(
        tiny.experiment(num_steps=400, log_every=50, checkpoint_every=400),
        data=tiny.data("grey"),
        model=MODEL,
    )
    with on_devices(1):
        run = train(experiment, tmp_path / "run")
        result = evaluate(run, split="train", num_samples=8)
    variance = float(run.seed_variables["running"]["likelihood"]["variance"])
    pixels = np.prod(tiny.IMAGE_SHAPE)
    # The distortion is (D/2) [ln(2 pi v) + MSE / v].
    ratio = 2 * result.mean["distortion"][0] / pixels - np.log(2 * np.pi * variance)
    assert ratio == pytest.approx(1, abs=0.1)
    assert variance < 0.1
    assert result.bits_per_dim is None
