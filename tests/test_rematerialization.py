"""Blocks computed again: the same gradients, and less memory by the compiler's own account."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_precision import one_batch

from vae_jax import ConvDecoder, ConvEncoder
from vae_jax.train import init_state, loss_and_gradients

DEEP = tiny.model().clone(
    encoder=ConvEncoder((4,), dense=8, residual_blocks=6),
    decoder=ConvDecoder((4, 4), dense=8, residual_blocks=6),
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_the_same(dtype: Any) -> None:
    plain, again = (
        one_batch(1, model=DEEP, compute_dtype=dtype, remat=remat) for remat in (False, True)
    )
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


def test_a_deep_network_takes_less_memory() -> None:
    """Six blocks on either side, of which it keeps the inputs and not the patches."""

    def temporary(remat: bool) -> int:
        experiment = dataclasses.replace(tiny.experiment(), model=DEEP, remat=remat)
        state = jax.eval_shape(partial(init_state, experiment), 0)
        images = jax.ShapeDtypeStruct((256, *tiny.IMAGE_SHAPE), jnp.uint8)
        rows = jax.ShapeDtypeStruct((256,), jnp.int32)
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        lowered = jax.jit(partial(loss_and_gradients, experiment)).lower(state, images, rows, seed)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(remat=True) < 0.5 * temporary(remat=False)
