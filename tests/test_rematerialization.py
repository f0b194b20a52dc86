"""Blocks computed again: the same gradients, and less memory by the compiler's own account."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import Array
from running import on_devices
from test_precision import one_batch

from vae_jax import parallel, random
from vae_jax.compute import rematerialized
from vae_jax.cpu.compiler import KEEP_BARRIERS
from vae_jax.experiment import Experiment
from vae_jax.step import Batch, init_state, loss_and_gradients, make_train_chunk
from vae_jax.train import chunks_of_batches


class Block(nn.Module):
    """x + W_2 tanh(W_1 x), eight times as wide within; it counts its calls."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array, scale: float = 1.0, *, double: bool = False) -> Array:
        """`[N, F]` to the same shape."""
        update = nn.Dense(x.shape[-1])(jnp.tanh(nn.Dense(8 * x.shape[-1])(x)))
        if self.is_mutable_collection("calls"):
            count = self.variable("calls", "count", jnp.zeros, ())
            count.value += 1
        return x + self.scale * (2 if double else scale) * update


class Deep(nn.Module):
    """Blocks, which are given numbers as well as arrays, and one of which is used twice."""

    blocks: int

    @nn.compact
    def __call__(self, x: Array, image_shape: Any = None) -> Array:
        """`[N, ...]`, flattened, to `[N, 16]`."""
        h = nn.Dense(16)(x.reshape(len(x), -1))
        for _ in range(self.blocks - 1):
            h = Block()(h, 0.5)
        last = Block()
        return last(last(h, double=True), scale=0.5)


def experiment(blocks: int, **changes: Any) -> Experiment:
    """MLPs of 4x4 images."""
    model = tiny.model().clone(encoder=Deep(blocks), decoder=Deep(blocks))
    return dataclasses.replace(tiny.experiment(), model=model, **changes)


@pytest.mark.slow
def test_gradients_are_the_same_in_half_precision_too() -> None:
    model = experiment(2).model
    plain, again = (
        one_batch(1, model=model, compute_dtype=jnp.bfloat16, remat=remat)
        for remat in (False, jax.checkpoint_policies.dots_saveable)
    )
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_what_a_block_remembers_is_kept_and_counted_once_in_a_call() -> None:
    model, x = experiment(2).model, jnp.ones((3, *tiny.IMAGE_SHAPE))
    keys = random.indexed(random.key(0), np.arange(3))
    variables: Any = model.init(keys[0], x, keys)

    def calls(params: Any) -> tuple[Array, Any]:
        with rematerialized():
            terms, state = model.apply(variables | {"params": params}, x, keys, mutable=["calls"])
        return terms.log_px.mean(), state["calls"]

    _, after = jax.grad(calls, has_aux=True)(variables["params"])
    counts = jax.tree.map(jnp.subtract, after, variables["calls"])
    assert sorted(map(float, jax.tree.leaves(counts))) == [1, 1, 2, 2]


@pytest.mark.slow
def test_a_deep_network_takes_less_memory() -> None:
    """Ten blocks on either side, of which it keeps the inputs, an eighth of a block's width.

    With a policy that keeps products, it takes more again.
    """

    def temporary(remat: Any) -> int:
        made = experiment(10, remat=remat)
        state = jax.eval_shape(partial(init_state, made), 0)
        images = jax.ShapeDtypeStruct((256, *tiny.IMAGE_SHAPE), jnp.uint8)
        rows = jax.ShapeDtypeStruct((256,), jnp.int32)
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        batch = Batch(rows=rows, images=None, y=None)  # pyright: ignore[reportArgumentType]
        function = jax.jit(partial(loss_and_gradients, made, axis=None))
        lowered = function.lower(state, images, batch, seed)
        memory: Any = lowered.compile(compiler_options=KEEP_BARRIERS).memory_analysis()
        return memory.temp_size_in_bytes

    of_inputs = temporary(remat=True)
    assert of_inputs < 0.5 * temporary(remat=False)
    assert of_inputs < 0.5 * temporary(remat=jax.checkpoint_policies.dots_saveable)


@pytest.mark.slow
def test_training_is_the_same() -> None:
    """Ten steps as `train` takes them, in chunks of two lengths."""
    seeds = np.zeros(1, np.uint32)

    def trained(remat: bool) -> Any:
        made = experiment(2, remat=remat, num_steps=10, log_every=7, checkpoint_every=7)
        layout = parallel.Layout.of(1, made.batch_size)
        train_chunk = make_train_chunk(made, layout)
        state = layout.place(jax.jit(jax.vmap(partial(init_state, made)))(seeds))
        images = parallel.replicate(made.data.train.images)
        for batches in chunks_of_batches(made, layout, seeds, 0, streamed=False):
            state, _ = train_chunk(state, images, batches, layout.place(seeds))
        return layout.collect(state)

    with on_devices(1):
        plain, again = trained(False), trained(True)
    assert again.step == 10
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)
