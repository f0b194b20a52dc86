"""The machine's own rate of matrix products: square ones, or those of a training step alone.

Square ones are of 2048² numbers, on accelerators of 8192². Prints the operations of an image and
the device, then lines of steps and times.

For `mlp` a step is the products of 784-500-20-500-784, forward and backward, in a scan: each step's
gradients are the next step's weights, so that nothing can be optimized away and nothing else is
computed. Every device does this on its own.
"""

import json
import time
from typing import Literal

import jax
import jax.numpy as jnp
import tyro
from jax import lax


def square(a, _):
    """One product of square matrices."""
    return a @ a / len(a), None


def mlp(x):
    """The products of a step on images `[B, 784]`."""

    def step(weights, _):
        w1, w2, w3, w4 = weights
        h = x @ w1
        q = h @ w2
        g = q[:, :20] @ w3
        logits = g @ w4
        d_g = logits @ w4.T
        d_q = jnp.concatenate([d_g @ w3.T] * 2, -1)
        d_h = d_q @ w2.T
        return (x.T @ d_h, h.T @ d_q, q[:, :20].T @ d_g, g.T @ logits), None

    return step


def main(
    work: Literal["square", "mlp"],
    batch_size: int = 128,
    log_every: int = 100,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Multiply until it is killed."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    if work == "square":
        step, carry = square, jnp.ones((size, size), compute_dtype)
        flops = 2 * size**3
    else:
        shapes = ((784, 500), (500, 40), (20, 500), (500, 784))
        step = mlp(jnp.ones((batch_size, 784)))
        carry = tuple(jnp.ones(shape) for shape in shapes)
        # Forward, weights' gradients, and inputs' gradients of all layers but the first.
        flops = batch_size * 2 * (3 * sum(m * n for m, n in shapes) - 784 * 500)
    device = jax.devices()[0].device_kind
    print(json.dumps({"flops": flops / batch_size, "size": size, "device": device}), flush=True)
    many = jax.pmap(lambda carry: lax.scan(step, carry, length=log_every)[0])
    devices = jax.local_device_count()
    carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (devices, *leaf.shape)), carry)
    for done in range(log_every, 10**8, log_every):
        carry = jax.block_until_ready(many(carry))
        print(json.dumps({"step": done, "time": time.time()}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
