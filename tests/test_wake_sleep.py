"""Wake-sleep: two losses for two groups of parameters, and its values where all is known."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax import Array
from test_parallel import assert_close

from vae_jax import GaussianMixture, WakeSleep
from vae_jax.train import loss_and_metrics

STEP = jnp.int32(0)
B, K = 5, 3
X = jnp.asarray(tiny.images(B, 0), jnp.float32) / 255
KEYS = jax.random.split(jax.random.key(1), B)
GENERATIVE, INFERENCE = ("decoder", "likelihood", "prior"), ("encoder", "posterior")


def test_each_phase_moves_its_own_parameters() -> None:
    """One scalar against two losses, each a function of its own copy of its parameters.

    -ln p(x, z) at fixed z from q, and -ln q(z|x) at a fixed dream. No stop_gradient: what is no
    argument is a constant.
    """
    model = tiny.model().clone(prior=GaussianMixture(3, 2))

    def ours(params: Any) -> tuple[Array, Any]:
        apply = nn.apply(loss_and_metrics, model)
        return apply({"params": params}, WakeSleep(K), X, KEYS, STEP)

    @jax.jit
    def everything() -> Any:
        init = nn.init(loss_and_metrics, model)
        params = init(jax.random.key(0), WakeSleep(K), X, KEYS, STEP)["params"]
        params = jax.tree.map(lambda p: 1.5 * p + 0.1, params)

        def apply(own: Any, method: str, *arguments: Any) -> Any:
            return model.apply({"params": params | own}, *arguments, method=method)

        z = apply({}, "encode", X).sample(KEYS, (K,))
        keys = jax.vmap(jax.random.fold_in, (0, None))(KEYS, 1)
        z_dream, px = apply({}, "sample", keys)
        x_dream = px.sample(jax.vmap(jax.random.fold_in, (0, None))(keys, 1))

        def wake(own: Any) -> Array:
            return -apply(own, "log_joint", X, z).mean()

        def sleep(own: Any) -> Array:
            return -apply(own, "encode", x_dream).log_prob(z_dream).mean()

        groups = [{name: params[name] for name in names} for names in (GENERATIVE, INFERENCE)]
        awake, asleep = jax.value_and_grad(wake)(groups[0]), jax.value_and_grad(sleep)(groups[1])
        return jax.grad(ours, has_aux=True)(params), awake, asleep

    (gradient, metrics), (wake, generative), (sleep, inference) = everything()
    expected = generative | inference
    assert gradient.keys() == expected.keys()
    assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(expected))
    assert_close(gradient, expected, 1e-5)
    assert metrics["wake"] == pytest.approx(float(wake), rel=1e-6)
    assert metrics["sleep"] == pytest.approx(float(sleep), rel=1e-6)


def test_at_the_exact_posterior(fit_linear_gaussian: Any) -> None:
    """Probabilistic PCA: sleep is the entropy of z given x, wake less that the exact NLL.

    The dreams, 4000 of them, also say that q needs no change: the gradient is 0, within 4 standard
    errors, which it would not be for dreams whose x has no noise.
    """
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 3)) @ rng.normal(size=(3, 6))).reshape(50, 2, 3, 1)
    x += 0.5 * rng.normal(size=x.shape)
    exact = fit_linear_gaussian(x, latents=2)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), exact.variables["params"])
    count = 4000
    images = jnp.asarray(np.tile(x, (count // 50, 1, 1, 1)), jnp.float32)

    @jax.jit
    def each() -> Any:
        def one(x: Array, key: Array) -> Any:
            def loss(posterior: Any) -> tuple[Array, Any]:
                apply = nn.apply(loss_and_metrics, exact.model)
                variables = {"params": params | {"posterior": posterior}}
                return apply(variables, WakeSleep(), x[None], key[None], STEP)

            gradient, metrics = jax.grad(loss, has_aux=True)(params["posterior"])
            return gradient, metrics["wake"], metrics["sleep"]

        return jax.vmap(one)(images, jax.random.split(jax.random.key(0), count))

    gradients, wake, sleep = jax.tree.map(np.asarray, each())
    log_scale = exact.variables["params"]["posterior"]["log_scale"]["bias"]
    entropy = (0.5 * np.log(2 * np.pi * np.e) + log_scale).sum()

    def agrees(values: np.ndarray, expected: Any) -> None:
        error = values.std(0) / np.sqrt(count)
        assert (np.abs(values.mean(0) - expected) < 4 * error).all()

    agrees(sleep, entropy)
    agrees(wake - entropy, -exact.log_likelihood(x).mean())
    jax.tree.map(lambda gradient: agrees(gradient, 0.0), gradients)
    assert optax.tree.norm(gradients["loc"]) > 1.0
