"""Products of rows, their gradients and mappings, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vae_jax.cpu import choices
from vae_jax.cpu.products import product

# Rows, inputs, outputs: dense layers after 7x7x64 and 4x4x512 maps, an MLP's, one row, one output.
SHAPES = [(128, 3136, 256), (32, 8192, 256), (128, 784, 400), (20, 200, 784), (1, 8, 3), (7, 99, 1)]


@pytest.mark.parametrize("there", [True, False], ids=["cpu", "elsewhere"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_and_its_gradients(
    shape: tuple[int, int, int], there: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(choices, "reads_across_rows", lambda: there)
    num, inputs, outputs = shape
    rng = np.random.default_rng(0)
    x, w, ct = (rng.normal(size=s) for s in ((num, inputs), (inputs, outputs), (num, outputs)))
    for compiled in (lambda f: f, jax.jit):

        def with_gradients(x, w, ct):
            found, back = jax.vjp(product, x, w)
            return found, *back(ct)

        found = compiled(with_gradients)(*map(jnp.float32, (x, w, ct)))
        for each, exact, terms in zip(
            found, (x @ w, ct @ w.T, x.T @ ct), (inputs, outputs, num), strict=True
        ):
            np.testing.assert_allclose(each, exact, atol=2e-5 * np.sqrt(terms))


@pytest.mark.parametrize("num", [2, 6], ids=["fewer rows", "more rows"])
def test_every_derivative_and_mapping(num: int):
    """Both modes, twice, against finite differences; mapped over each operand's every axis."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(num, 40)), rng.normal(size=(40, 3)) / 40
    with jax.enable_x64(True):
        check_grads(lambda x, w: jnp.sin(product(x, w)), (x, w), order=2, rtol=1e-5)
        x, w = jnp.asarray(x), jnp.asarray(w)
        many_x = jnp.asarray(rng.normal(size=(num, 5, 40)))
        many_w = jnp.asarray(rng.normal(size=(40, 3, 5)))
        of_rows = jax.vmap(product, (1, None))(many_x, w)
        np.testing.assert_allclose(of_rows, jnp.einsum("nkd,do->kno", many_x, w), rtol=1e-12)
        of_kernels = jax.vmap(product, (None, 2))(x, many_w)
        np.testing.assert_allclose(of_kernels, jnp.einsum("nd,dok->kno", x, many_w), rtol=1e-12)
        of_both = jax.vmap(product, (1, 2))(many_x, many_w)
        expected = jnp.einsum("nkd,dok->kno", many_x, many_w)
        np.testing.assert_allclose(of_both, expected, rtol=1e-12)

        def gradient(x, w):
            return jax.grad(lambda x: jnp.sin(product(x, w)).sum())(x)

        each = [gradient(many_x[:, i], many_w[..., i]) for i in range(5)]
        np.testing.assert_allclose(jax.vmap(gradient, (1, 2))(many_x, many_w), each, rtol=1e-12)


def test_operands_of_two_types_are_multiplied_in_the_wider_one():
    kernel = jnp.arange(24, dtype=jnp.float32).reshape(8, 3) / 7
    for rows in (jnp.ones((2, 8), jnp.int32), jnp.ones((2, 8), jnp.bfloat16)):
        for found in (product(rows, kernel), jax.jit(product)(rows, kernel)):
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, np.ones((2, 8)) @ kernel, rtol=1e-6)
