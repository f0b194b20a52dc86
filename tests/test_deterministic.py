"""The deterministic posterior: a point without noise, refused where a density is needed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vae_jax import ELBO, Deterministic, StandardNormal, VaeJaxError, VampPrior
from vae_jax.compatibility import check_objective, check_prior
from vae_jax.distributions import exact_kl

MODEL = tiny.model().clone(posterior=Deterministic(2))


def test_terms_at_a_point():
    """Every sample is the affine map of the encoder's features; ln q is 0, and there is no KL."""
    x = jnp.asarray(tiny.images(4, 0) / 255, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    init = jax.jit(MODEL.init_with_output, static_argnums=3)
    terms, variables = init(jax.random.key(1), x, keys, 3)
    terms: Any
    params: Any = jax.tree.map(np.float64, variables["params"])
    dense = params["encoder"]["Dense_0"]
    h = np.tanh(np.asarray(x).reshape(4, -1) @ dense["kernel"] + dense["bias"])
    loc = h @ params["posterior"]["loc"]["kernel"] + params["posterior"]["loc"]["bias"]
    (z,), (q,), (p,) = terms.z, terms.q, terms.p
    np.testing.assert_allclose(z, np.broadcast_to(loc, (3, 4, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(q.mean, loc, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(terms.log_qz, np.zeros((1, 3, 4)))
    np.testing.assert_array_equal(q.log_prob(z + 1), np.zeros((3, 4)))
    assert terms.kl is None
    assert exact_kl(q, p) is None
    assert (q.batch_shape, q.event_shape) == ((4,), (2,))


def test_what_needs_a_density_is_refused():
    check_prior(MODEL.posterior, StandardNormal(2))
    with pytest.raises(VaeJaxError, match="density"):
        check_prior(MODEL.posterior, VampPrior(3))
    with pytest.raises(VaeJaxError, match="density"):
        check_objective(ELBO(), MODEL)
