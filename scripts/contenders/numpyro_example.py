"""NumPyro's VAE, structured as in its example: SVI in a fori_loop on the device.

The example's layers with the benchmark's sizes: 784-500-20-500-784, batches of 128, binarized at
every presentation. Prints its device.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.example_libraries import stax
from numpyro import optim
from numpyro.infer import SVI, Trace_ELBO

HIDDEN, LATENTS, BATCH_SIZE, LOG_EVERY = 500, 20, 128, 100


def encoder():
    """Images `[B, 784]` to the mean and scale of q(z|x)."""
    normal = jax.nn.initializers.normal()
    heads = (
        stax.Dense(LATENTS, W_init=normal),
        stax.serial(stax.Dense(LATENTS, W_init=normal), stax.Exp),
    )
    return stax.serial(
        stax.Dense(HIDDEN, W_init=normal), stax.Softplus, stax.FanOut(2), stax.parallel(*heads)
    )


def decoder():
    """Latents to pixels' probabilities."""
    normal = jax.nn.initializers.normal()
    return stax.serial(
        stax.Dense(HIDDEN, W_init=normal),
        stax.Softplus,
        stax.Dense(784, W_init=normal),
        stax.Sigmoid,
    )


def model(x):
    """p(x, z)."""
    decode = numpyro.module("decoder", decoder(), (len(x), LATENTS))
    with numpyro.plate("batch", len(x)):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENTS]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(decode(z)).to_event(1), obs=x)


def guide(x):
    """q(z|x)."""
    encode = numpyro.module("encoder", encoder(), (len(x), 784))
    loc, scale = encode(x)
    with numpyro.plate("batch", len(x)):
        numpyro.sample("z", dist.Normal(loc, scale).to_event(1))


def main() -> None:
    """Train until it is killed."""
    print(json.dumps({"device": jax.devices()[0].device_kind}), flush=True)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50_000, 784), np.uint8).astype(np.float32) / 255
    images = jnp.asarray(images)
    svi = SVI(model, guide, optim.Adam(1e-3), Trace_ELBO())
    state = svi.init(jax.random.key(0), images[:BATCH_SIZE])

    @jax.jit
    def many(state, rows, key):
        def step(i, carry):
            state, total = carry
            x = jax.random.bernoulli(jax.random.fold_in(key, i), images[rows[i]])
            state, loss = svi.update(state, x.astype(jnp.float32))
            return state, total + loss

        return lax.fori_loop(0, LOG_EVERY, step, (state, 0.0))

    for done in range(LOG_EVERY, 10**8, LOG_EVERY):
        rows = generator.integers(0, len(images), (LOG_EVERY, BATCH_SIZE))
        state, loss = many(state, rows, jax.random.key(done))
        assert jnp.isfinite(loss)
        print(json.dumps({"step": done, "time": time.time()}), flush=True)


if __name__ == "__main__":
    main()
