"""Batched products in parts: values by NumPy, every derivative that JAX can ask for, mapping."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vae_jax.cpu.attention import by_heads
from vae_jax.cpu.batched_matmul import NUM_PARTS, batched_matmul
from vae_jax.networks.layers import attention
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


@pytest.mark.parametrize("shapes", [((2, 5, 3, 4), (2, 7, 3, 4)), ((8, 64, 4, 32),) * 2], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_jaxs(shapes: tuple[tuple[int, ...], ...], masked: bool) -> None:
    """Values and all gradients, compiled, with fewer and more queries than keys and heads."""
    generator = np.random.default_rng(0)
    query, keys, values = (
        generator.normal(size=shape).astype(np.float32) for shape in (*shapes, shapes[1])
    )
    mask = None
    if masked:
        mask = np.arange(shapes[1][1]) <= np.arange(shapes[0][1])[:, None] + 1

    def found(function: Any) -> Any:
        def of(query: Any, keys: Any, values: Any) -> Any:
            return function(query, keys, values, mask=None if mask is None else mask[None, None])

        out, pull_back = jax.vjp(of, query, keys, values)
        return out, pull_back(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    expected = jax.jit(lambda: found(jax.nn.dot_product_attention))()
    for function in (by_heads, attention):
        for ours, theirs in zip(
            jax.tree.leaves(jax.jit(lambda f=function: found(f))()),
            jax.tree.leaves(expected),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_attention_of_no_examples_has_its_shape() -> None:
    none = jnp.zeros((0, 5, 3, 4))
    for function in (by_heads, jax.jit(by_heads)):
        assert function(none, none, none, jnp.ones((1, 1, 5, 5), bool)).shape == none.shape


def test_attention_in_bfloat16_is_the_librarys() -> None:
    query, keys, values = (
        jax.random.normal(jax.random.key(n), (2, 8, 2, 4), jnp.bfloat16) for n in range(3)
    )
    np.testing.assert_array_equal(
        np.float32(by_heads(query, keys, values)),
        np.float32(jax.nn.dot_product_attention(query, keys, values)),
    )
