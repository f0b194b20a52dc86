"""Batches in parts, and networks in bfloat16, against the plain float32 batch."""

import dataclasses
from typing import Any

import gradients
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vae_jax import (
    VQVAE,
    FreeBits,
    LookupFree,
    OptimalGaussian,
    UniformCodes,
    VaeJaxError,
    VectorQuantized,
)
from vae_jax.parallel import Layout
from vae_jax.step import TrainState

CODES = tiny.model().clone(posterior=VectorQuantized(4, 3), prior=UniformCodes((1, 1)))


def one_batch(devices: int, state: TrainState | None = None, **changes: Any) -> Any:
    """Loss, metrics, model state and gradients of 16 images."""
    experiment = dataclasses.replace(tiny.experiment(), **changes)
    (result,) = gradients.one_batch(experiment, devices, state=state)
    return result


@pytest.fixture(scope="module")
def state() -> TrainState:
    return gradients.begun(tiny.experiment())


@pytest.fixture(scope="module")
def plain(state: TrainState) -> Any:
    """The same at once, in float32."""
    return one_batch(1, state)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_batch_in_parts_has_the_gradients_of_the_batch(
    devices: int, state: TrainState, plain: Any
) -> None:
    parts = one_batch(devices, state, accumulate=4)
    assert jax.tree.structure(parts) == jax.tree.structure(plain)
    for part, whole in zip(jax.tree.leaves(parts), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(part, whole, rtol=1e-4, atol=1e-6)


def test_networks_in_bfloat16_have_nearly_the_same_gradients_in_float32(
    state: TrainState, plain: Any
) -> None:
    """Within what 8 bits of mantissa leave, and not the same: something was rounded."""
    half = one_batch(1, state, compute_dtype=jnp.bfloat16)
    for rounded, exact in zip(jax.tree.leaves(half), jax.tree.leaves(plain), strict=True):
        assert rounded.dtype == jnp.float32
        assert np.linalg.norm(rounded - exact) <= 0.05 * np.linalg.norm(exact) + 1e-6
    assert half[0] != plain[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": FreeBits(0.1)}, "FreeBits looks at the batch as a whole"),
        (
            {
                "data": tiny.data("grey"),
                "model": tiny.model().clone(likelihood=OptimalGaussian()),
            },
            "OptimalGaussian looks at the batch as a whole",
        ),
        (
            {"model": CODES.clone(posterior=LookupFree(3)), "objective": VQVAE()},
            "LookupFree looks at the batch as a whole",
        ),
        ({"model": CODES, "objective": VQVAE()}, "The model counts over batches"),
    ],
)
def test_what_cannot_be_taken_in_parts_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VaeJaxError, match=sentence):
        dataclasses.replace(tiny.experiment(), accumulate=2, **changes)


def test_parts_of_unequal_size_are_refused() -> None:
    """128 on 8 devices are 16 on each."""
    with pytest.raises(VaeJaxError, match="16 images, which accumulate=3 does not divide"):
        Layout.of(num_seeds=1, batch_size=128, accumulate=3)
