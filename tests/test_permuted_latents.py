"""FactorVAE's permutations, and the total correlation that its critic finds."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gradients import assert_close, loss_and_metrics, params_of
from jax import Array, lax
from scipy import stats

from vae_jax import MLP, VAE, DiagonalGaussian, FactorVAE, Gaussian, LatentCritic, StandardNormal
from vae_jax.objectives.factor_vae import permute_dims
from vae_jax.optimizers import by_group


def test_permute_dims_keeps_marginals_and_breaks_dependence() -> None:
    """Three equal columns become independent: correlations within 4 standard errors of 0."""
    count = 4000
    z = jnp.tile(jax.random.normal(jax.random.key(0), (count, 1)), 3)
    permuted = permute_dims(z, jax.random.uniform(jax.random.key(1), z.shape))
    np.testing.assert_array_equal(np.sort(permuted, 0), np.sort(z, 0))
    correlation = np.corrcoef(permuted.T)[np.triu_indices(3, 1)]
    assert (np.abs(correlation) < 4 / np.sqrt(count)).all()


def test_every_pair_of_permutations_is_as_likely() -> None:
    """Two columns of three, permuted apart: chi-square over the 6 x 6 outcomes, p > 1e-4."""
    noise = jax.random.uniform(jax.random.key(0), (7200, 3, 2))
    columns = jnp.tile(jnp.arange(3.0)[:, None], 2)
    permuted = jax.vmap(permute_dims, (None, 0))(columns, noise)
    outcomes, counts = np.unique(permuted, axis=0, return_counts=True)
    assert len(outcomes) == 36
    assert stats.chisquare(counts).pvalue > 1e-4


class Products(nn.Module):
    """1, z and its products: a log-ratio of normal densities is linear in them."""

    @nn.compact
    def __call__(self, z: Array) -> Array:
        return jnp.concatenate([z, (z[:, :, None] * z[:, None, :]).reshape(len(z), -1)], -1)


def test_the_critic_finds_the_total_correlation_of_a_normal() -> None:
    """z normal with correlation r: TC = -1/2 ln(1 - r^2), and the log-ratio by SciPy.

    x has that distribution up to the posterior's noise; only the critic is trained. It can
    represent the log-ratio, so that what is left is noise of the optimizer.
    """
    scale, r, batch = 0.3, 0.7, 1024
    covariance = np.array([[1.0, r], [r, 1.0]])
    root = np.linalg.cholesky(covariance - scale**2 * np.eye(2)).astype(np.float32)
    model = VAE(
        encoder=MLP(()),
        posterior=DiagonalGaussian(2),
        prior=StandardNormal(2),
        decoder=MLP(()),
        likelihood=Gaussian(1.0),
        critic=LatentCritic(Products()),
        image_shape=(1, 2, 1),
    )
    optimizer = by_group(
        optax.set_to_zero(), critic=optax.adam(optax.cosine_decay_schedule(0.1, 300))
    )
    objective = FactorVAE(gamma=1.0)

    def batch_of(key: Array) -> tuple[Array, Array]:
        key_x, key_z = jax.random.split(key)
        x = jax.random.normal(key_x, (batch, 2)) @ root.T
        return x.reshape(batch, 1, 2, 1), jax.random.split(key_z, batch)

    @jax.jit
    def run() -> Any:
        x, keys = batch_of(jax.random.key(0))
        params = params_of(model, objective, x, keys)
        zeros, log_scale = jnp.zeros((2, 2)), jnp.full(2, jnp.log(scale))
        params["posterior"] = {
            "loc": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
            "log_scale": {"kernel": zeros, "bias": log_scale},
        }

        def step(carry: Any, key: Array) -> tuple[Any, Any]:
            params, state = carry
            of_params = jax.grad(loss_and_metrics, has_aux=True)
            gradients, metrics = of_params(params, model, objective, *batch_of(key))
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), metrics

        keys = jax.random.split(jax.random.key(2), 350)  # the last 50 at a rate of zero
        (trained, _), metrics = lax.scan(step, (params, optimizer.init(params)), keys)
        return params, trained, metrics

    start, trained, metrics = run()
    assert_close(trained | {"critic": None}, start | {"critic": None}, 0.0)
    estimates = metrics["total_correlation"][300:]
    exact = -0.5 * np.log(1 - r**2)
    assert estimates.mean() == pytest.approx(exact, abs=0.03)

    z = np.random.default_rng(0).multivariate_normal([0, 0], covariance, size=1000)
    normal: Any = stats.multivariate_normal
    log_ratio = normal.logpdf(z, cov=covariance) - stats.norm.logpdf(z).sum(1)
    logits = model.apply(
        {"params": trained}, jnp.asarray(z, jnp.float32), method=lambda model, z: model.critic(z)
    )
    assert np.std(log_ratio) > 0.5
    assert np.sqrt(np.mean((logits - log_ratio) ** 2)) < 0.1
