"""The same model, loss and update as ours, one jitted and donated step at a time.

No scan, no pmap, no metrics but the loss, no checkpoint: what `vae-jax train` must not be slower
than. Prints the operations of a step as XLA counts them, then lines of steps and times.
"""

import json
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import linen as nn
from ours import Work, experiment

from vae_jax import threefry
from vae_jax.data import batch_indices
from vae_jax.train import loss_and_metrics


def main(work: Work, batch_size: int = 128, k: int = 1, log_every: int = 100) -> None:
    """Trains until it is killed."""
    this = experiment(work=work, batch_size=batch_size, k=k, log_every=log_every)
    protocol, images = this.data.protocol, jnp.asarray(this.data.train.images)

    def loss_of(params, x, keys):
        loss = nn.apply(loss_and_metrics, this.model)
        return loss({"params": params}, this.objective, x, keys, jnp.zeros((), jnp.int32))[0]

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, indices, key):
        keys = jax.random.split(key, 2 * batch_size)
        x = protocol.apply(images[indices], keys[:batch_size])
        loss, gradients = jax.value_and_grad(loss_of)(params, x, keys[batch_size:])
        updates, opt_state = this.optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    loss = jnp.zeros(())
    first = jnp.zeros((1, *this.data.image_shape))
    keys = jax.random.split(threefry.key(0), 1)
    params = this.model.init(threefry.key(0), first, keys, k)["params"]
    opt_state = this.optimizer.init(params)
    indices = jnp.zeros(batch_size, jnp.int32)
    key = threefry.key(1)
    compiled: Any = step.lower(params, opt_state, indices, key).compile()
    print(json.dumps({"flops": compiled.cost_analysis()["flops"] / batch_size}), flush=True)
    for done in range(0, 10**8, log_every):
        rows = batch_indices(0, done, log_every, len(images), batch_size)
        for number, indices in enumerate(rows):
            step_key = jax.random.fold_in(key, done + number)
            params, opt_state, loss = compiled(params, opt_state, indices, step_key)
        assert jnp.isfinite(loss)
        print(json.dumps({"step": done + log_every, "time": time.time()}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
