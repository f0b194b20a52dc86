"""Our keys against JAX's own: every draw has the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.cpu import threefry


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_draws_are_jaxs(seed):
    ours, theirs = threefry.key(jnp.uint32(seed)), jax.random.key(jnp.uint32(seed))

    def draws(key):
        each = jax.random.split(jax.random.fold_in(key, 2**31), 3)
        return (
            jax.random.key_data(each),
            jax.vmap(lambda k: jax.random.uniform(k, (5, 3)))(each),
            jax.random.normal(key, (4,)),
            jax.random.permutation(key, 9),
            jax.random.bits(key, (7,), jnp.uint8),
            jax.random.bits(key, (7,), jnp.uint16),
            jax.random.bernoulli(jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(3))[1]),
        )

    for a, b in zip(draws(ours), jax.jit(draws)(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_draws_of_64_bits_are_jaxs():
    """In double precision a uniform number takes both words of a counter."""
    with jax.enable_x64(True):
        ours, theirs = (
            (jax.random.bits(key, (5,), jnp.uint64), jax.random.uniform(key, (5,)))
            for key in (threefry.key(7), jax.random.key(7))
        )
    assert ours[1].dtype == jnp.float64
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
