"""A plain Flax loop as a user would write it: nn.Dense, nn.Conv, one jitted step at a time."""

import json
import time
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn


class MLPVAE(nn.Module):
    """784-500-20-500-784."""

    @nn.compact
    def __call__(self, x, key):
        """Images `[B, 28, 28, 1]` to logits `[B, 28, 28, 1]`, means and log-variances `[B, d]`."""
        h = nn.tanh(nn.Dense(500)(x.reshape(len(x), -1)))
        mean, logvar = nn.Dense(20)(h), nn.Dense(20)(h)
        z = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
        return nn.Dense(784)(nn.tanh(nn.Dense(500)(z))).reshape(x.shape), mean, logvar


class ConvVAE(nn.Module):
    """Strided convolutions, 32 and 64, and a dense layer of 256; 32 latents; mirrored."""

    @nn.compact
    def __call__(self, x, key):
        """Images `[B, 28, 28, 1]` to logits `[B, 28, 28, 1]`, means and log-variances `[B, d]`."""
        h = nn.relu(nn.Conv(32, (4, 4), strides=2)(x))
        h = nn.relu(nn.Conv(64, (4, 4), strides=2)(h))
        h = nn.relu(nn.Dense(256)(h.reshape(len(x), -1)))
        mean, logvar = nn.Dense(32)(h), nn.Dense(32)(h)
        z = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
        h = nn.relu(nn.Dense(7 * 7 * 64)(nn.relu(nn.Dense(256)(z)))).reshape(-1, 7, 7, 64)
        h = nn.relu(nn.ConvTranspose(32, (4, 4), strides=(2, 2))(h))
        return nn.ConvTranspose(1, (4, 4), strides=(2, 2))(h), mean, logvar


def main(work: Literal["mlp", "conv"], batch_size: int = 128, log_every: int = 100) -> None:
    """Train until it is killed."""
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.integers(0, 256, (50_000, 28, 28, 1), np.uint8))
    model: Any = MLPVAE() if work == "mlp" else ConvVAE()
    optimizer = optax.adam(1e-3)

    apply: Any = model.apply

    def loss_of(params, x, key):
        logits, mean, logvar = apply({"params": params}, x, key)
        distortion = optax.sigmoid_binary_cross_entropy(logits, x).sum((1, 2, 3))
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum(-1)
        return (distortion + kl).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, indices, key):
        binarize, draw = jax.random.split(key)
        probabilities = images[indices] / 255.0
        x = jax.random.bernoulli(binarize, probabilities).astype(jnp.float32)
        loss, gradients = jax.value_and_grad(loss_of)(params, x, draw)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    params = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jax.random.key(0))["params"]
    opt_state, key = optimizer.init(params), jax.random.key(1)
    for done in range(1, 10**8):
        indices = generator.integers(0, len(images), batch_size)
        params, opt_state, loss = step(params, opt_state, indices, jax.random.fold_in(key, done))
        if done % log_every == 0:
            assert jnp.isfinite(loss)
            print(json.dumps({"step": done, "time": time.time()}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
