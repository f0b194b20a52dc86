"""The norm of the gradients against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_jax.cpu import choices
from vae_jax.cpu.norm import norm


@pytest.mark.parametrize("there", [True, False], ids=["cpu", "elsewhere"])
def test_the_norm_of_a_tree(there: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choices, "adds_one_by_one", lambda: there)
    rng = np.random.default_rng(0)
    shapes = (), (0, 3), (1,), (31,), (32,), (33,), (3, 3, 5, 7), (784, 500)
    tree = {str(shape): rng.normal(size=shape).astype(np.float32) for shape in shapes}
    exact = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in tree.values()))
    np.testing.assert_allclose(jax.jit(norm)(tree), exact, rtol=1e-6)
    np.testing.assert_allclose(norm(tree), exact, rtol=1e-6)
    assert norm({}) == optax.tree.norm({}) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 17, 99])
def test_one_number_that_is_not_finite_is_found(value: float, position: int):
    x = jnp.zeros(100).at[position].set(value)
    assert not np.isfinite(norm([jnp.ones(3), x]))
