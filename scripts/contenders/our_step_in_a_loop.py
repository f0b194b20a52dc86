"""The same model, loss and update as ours, one jitted and donated step at a time.

There is no scan, no pmap, no metric but the loss, and no checkpoint; `vae-jax train` must not be
slower than this. Prints lines of steps and times, and after the first of them the operations of an
image as XLA counts them.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn
from jax import lax
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]
from ours import Work, experiment

from vae_jax import compute, random
from vae_jax.data import batch_indices
from vae_jax.step import init_state, loss_at_terms


def operations(function: Callable[..., Any], *arguments: Any) -> float:
    """The floating-point operations of a function, as XLA counts them before it compiles it.

    Afterwards it knows nothing of what a GPU's libraries compute. Loops are unrolled, because it
    counts one iteration. The CPU's client counts, because `Lowered.cost_analysis` has no answer for
    a GPU.
    """
    scan = lax.scan

    def unrolled(*arguments: Any, **named: Any) -> Any:
        return scan(*arguments, **named | {"unroll": True})

    with mock.patch.object(lax, "scan", unrolled):
        lowered: Any = jax.jit(lambda *arguments: function(*arguments)).lower(*arguments)
    # Nothing public counts with the client of another platform.
    module = lowered.compiler_ir("hlo").as_hlo_module()
    return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)["flops"]


def main(
    work: Work,
    batch_size: int = 128,
    k: int = 1,
    log_every: int = 100,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Train until it is killed."""
    this = experiment(
        work=work, batch_size=batch_size, k=k, log_every=log_every, compute_dtype=compute_dtype
    )
    protocol, images = this.data.protocol, jnp.asarray(this.data.train.images)

    def loss_of(params, x, keys):
        apply = nn.apply(loss_at_terms, this.model)
        loss = compute.with_policy(apply, this.compute_dtype, remat=False)
        return loss({"params": params}, this.objective, x, keys, None, jnp.zeros((), jnp.int32))[0]

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
    given = params, opt_state, images, indices, np.int32(0)
    compiled: Any = jax.jit(step, donate_argnums=(0, 1)).lower(*given).compile()
    for done in range(0, 10**8, log_every):
        rows = batch_indices(0, done, log_every, len(images), batch_size)
        for number, indices in enumerate(rows, done):
            taken = images, indices, np.int32(number)
            params, opt_state, loss = compiled(params, opt_state, *taken)
        assert jnp.isfinite(loss)
        print(json.dumps({"step": done + log_every, "time": time.time()}), flush=True)
        if done == 0:  # so that it is no part of the start
            flops = operations(step, params, opt_state, images, indices, np.int32(0))
            print(json.dumps({"flops": flops / batch_size}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
