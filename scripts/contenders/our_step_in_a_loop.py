"""The same model, loss and update as ours, one jitted and donated step at a time.

There is no scan, no pmap, no metric but the loss, and no checkpoint; `vae-jax train` must not be
slower than this. Prints the operations of a step as XLA counts them, then lines of steps and times.
"""

import json
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn
from ours import Work, experiment

from vae_jax import random
from vae_jax.data import batch_indices
from vae_jax.step import init_state, loss_at_terms


def main(work: Work, batch_size: int = 128, k: int = 1, log_every: int = 100) -> None:
    """Train until it is killed."""
    this = experiment(work=work, batch_size=batch_size, k=k, log_every=log_every)
    protocol, images = this.data.protocol, jnp.asarray(this.data.train.images)

    def loss_of(params, x, keys):
        loss = nn.apply(loss_at_terms, this.model)
        return loss({"params": params}, this.objective, x, keys, None, jnp.zeros((), jnp.int32))[0]

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, images, indices, number):
        keys = jax.random.split(jax.random.fold_in(random.key(1), number), 2 * batch_size)
        x = protocol.apply(images[indices], keys[:batch_size])
        loss, gradients = jax.value_and_grad(loss_of)(params, x, keys[batch_size:])
        updates, opt_state = this.optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    loss = jnp.zeros(())
    state = jax.jit(partial(init_state, this))(0)
    params, opt_state = state.params, state.opt_state
    indices = np.zeros(batch_size, np.int32)
    compiled: Any = step.lower(params, opt_state, images, indices, np.int32(0)).compile()
    print(json.dumps({"flops": compiled.cost_analysis()["flops"] / batch_size}), flush=True)
    for done in range(0, 10**8, log_every):
        rows = batch_indices(0, done, log_every, len(images), batch_size)
        for number, indices in enumerate(rows, done):
            taken = images, indices, np.int32(number)
            params, opt_state, loss = compiled(params, opt_state, *taken)
        assert jnp.isfinite(loss)
        print(json.dumps({"step": done + log_every, "time": time.time()}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
