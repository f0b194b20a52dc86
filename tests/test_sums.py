"""Sums against NumPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from vae_jax.cpu import platform
from vae_jax.cpu.sums import add_bias, norm, repeated_rows, sum_of_last_axes, sum_of_rows


@pytest.mark.parametrize("there", [True, False], ids=["cpu", "elsewhere"])
def test_the_norm_of_a_tree(there: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "adds_one_by_one", lambda: there)
    rng = np.random.default_rng(0)
    shapes = (), (0, 3), (1,), (3, 3, 5, 7), (2**15 - 1,), (2**15,), (2**15 + 1,), (784, 500)
    tree = {str(shape): rng.normal(size=shape).astype(np.float32) for shape in shapes}
    exact = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in tree.values()))
    np.testing.assert_allclose(jax.jit(norm)(tree), exact, rtol=1e-6)
    np.testing.assert_allclose(norm(tree), exact, rtol=1e-6)
    assert norm({}) == optax.tree.norm({}) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 30_001, 2**16])
def test_one_number_that_is_not_finite_is_found(value: float, position: int):
    x = jnp.zeros(2**16 + 1).at[position].set(value)
    assert not np.isfinite(norm([jnp.ones(3), x]))


@pytest.mark.parametrize("shape", [(7, 5), (3, 1, 4), (2, 32, 32, 64)])
def test_sums_of_rows_and_their_gradients(shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    x, ct = rng.normal(size=shape), rng.normal(size=(*shape[:-2], shape[-1]))
    for compiled in (lambda f: f, jax.jit):
        summed, back = jax.vjp(compiled(sum_of_rows), jnp.float32(x))
        repeated, gradient = jax.vjp(
            compiled(partial(repeated_rows, num=shape[-2])), jnp.float32(ct)
        )
        np.testing.assert_allclose(summed, x.sum(-2), atol=1e-4)
        np.testing.assert_allclose(gradient(jnp.float32(x))[0], x.sum(-2), atol=1e-4)
        for copy in (repeated, back(jnp.float32(ct))[0]):
            expected = np.broadcast_to(ct.astype(np.float32)[..., None, :], shape)
            np.testing.assert_array_equal(copy, expected)


def test_every_derivative_and_mapping_of_sums_and_copies():
    """Both modes, twice, against finite differences; mapped over an axis that is not the first."""
    x = np.random.default_rng(0).normal(size=(2, 48, 3))
    with jax.enable_x64(True):
        check_grads(lambda x: jnp.sin(sum_of_rows(x)), (x,), order=2, rtol=1e-6)
        check_grads(lambda x: jnp.sin(repeated_rows(x, 6)), (x[0],), order=2, rtol=1e-6)
        mapped = jax.vmap(sum_of_rows, 2)(jnp.asarray(x)[..., None])
        np.testing.assert_allclose(mapped[..., 0], x.sum(1).T, rtol=1e-12)
        copies = jax.vmap(partial(repeated_rows, num=5), 1)(jnp.asarray(x[0]))
        np.testing.assert_array_equal(copies, np.broadcast_to(x[0].T[:, None], (3, 5, 48)))


def test_sums_of_many_bfloat16_numbers_are_of_float32():
    x = jnp.ones((1, 4096, 3), jnp.bfloat16)  # added one by one, 256 + 1 is 256
    for summed in (sum_of_rows(x), jax.jit(sum_of_rows)(x)):
        np.testing.assert_array_equal(np.float32(summed), np.full((1, 3), 4096))


def test_a_bias_and_its_gradient():
    rng = np.random.default_rng(0)
    y, bias = (np.float32(rng.normal(size=shape)) for shape in ((64, 16, 16, 24), (24,)))
    found, back = jax.vjp(jax.jit(add_bias), y, bias)
    np.testing.assert_array_equal(found, y + bias)
    of_y, of_bias = back(jnp.asarray(y))
    np.testing.assert_array_equal(of_y, y)
    np.testing.assert_allclose(of_bias, y.astype(np.float64).sum((0, 1, 2)), rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("shape", [(128, 64, 64, 3), (5, 20, 28, 28, 1), (129, 255), (2, 1, 7)])
def test_sums_of_events_and_their_gradients(shape: tuple[int, ...]):
    x = np.random.default_rng(0).normal(size=shape)
    axes = tuple(range(1, len(shape)))
    for compiled in (lambda f: f, jax.jit):
        summed, back = jax.vjp(
            compiled(partial(sum_of_last_axes, axes=len(axes))), jnp.asarray(x, jnp.float32)
        )
        np.testing.assert_allclose(summed, x.sum(axes), atol=2e-6 * np.prod(shape[1:]) ** 0.75)
        np.testing.assert_array_equal(back(jnp.ones(shape[0]))[0], np.ones(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_event_with_a_number_that_is_not_finite(value: float):
    x = jnp.zeros((64, 784)).at[3, 500].set(value)
    summed = jax.jit(partial(sum_of_last_axes, axes=1))(x)
    np.testing.assert_array_equal(summed, jnp.zeros(64).at[3].set(value))
