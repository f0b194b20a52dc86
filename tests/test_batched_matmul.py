"""Batched products in parts: values by NumPy, every derivative that JAX can ask for, mapping."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vae_jax.cpu.batched_matmul import NUM_PARTS, batched_matmul
from vae_jax.parallel import on_every_device


def operands(count: int) -> list[Any]:
    """Standard normal `[count, 3, 4]` and `[count, 4, 5]`."""
    generator = np.random.default_rng(0)
    return [generator.normal(size=(count, *shape)) for shape in ((3, 4), (4, 5))]


@pytest.mark.parametrize("count", [1, 9, 16, 25, 64])
def test_values_and_derivatives(count: int) -> None:
    """More and fewer matrices than parts; both modes, twice, against finite differences."""
    with jax.enable_x64(True):
        a, b = operands(count)
        np.testing.assert_allclose(jax.jit(batched_matmul)(a, b), a @ b, rtol=1e-12)
        check_grads(batched_matmul, (a, b), order=2, rtol=1e-6)


def test_mapped_over_either_operand_or_both() -> None:
    """And its gradient, whose operands have the mapped axis at other positions."""
    a, b = (jnp.stack([one, 2 * one, -one], 1, dtype=jnp.float32) for one in operands(9))

    def gradient(a: Any, b: Any) -> Any:
        return jax.grad(lambda a, b: (batched_matmul(a, b) ** 2).sum(), (0, 1))(a, b)

    for axes, left, right in (((1, None), a, b[:, 0]), ((None, 1), a[:, 0], b), ((1, 1), a, b)):
        mapped = jax.vmap(batched_matmul, axes)(left, right)
        slopes = jax.vmap(gradient, axes)(left, right)
        for i in range(3):
            one = left[:, i] if axes[0] == 1 else left
            other = right[:, i] if axes[1] == 1 else right
            np.testing.assert_allclose(mapped[i], one @ other, rtol=1e-5, atol=1e-5)
            twice = 2 * (one @ other)
            expected = twice @ other.swapaxes(1, 2), one.swapaxes(1, 2) @ twice
            for slope, wanted in zip(slopes, expected, strict=True):
                np.testing.assert_allclose(slope[i], wanted, rtol=1e-4, atol=1e-5)


def test_compiled_with_its_barriers() -> None:
    """As training compiles it, which keeps the barriers: the same values, and 16 products."""
    a, b = (one[None].astype(np.float32) for one in operands(25))
    on_devices = on_every_device(batched_matmul)
    np.testing.assert_allclose(on_devices(a, b)[0], a[0] @ b[0], rtol=1e-5)
    text = on_devices.compiled(a, b).as_text() or ""
    assert text.count(" opt-barrier(") == 2
    assert text.count(" dot(") == NUM_PARTS == 16
