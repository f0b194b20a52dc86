"""Posteriors on the hypersphere."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float

from vae_jax.distributions import VonMisesFisherDistribution
from vae_jax.flows import direction
from vae_jax.given import Bounds
from vae_jax.interfaces import Posterior


class VonMisesFisher(Posterior):
    """q(z|x) = vMF(mu(h), kappa(h)) on unit vectors.

    mu is a normalized affine map; kappa is one plus the softplus of another.

    Attributes:
        dim: the number of components d >= 2 of the vectors, which have d - 1 degrees of freedom.
        kernel_init: the initializer of both affine maps.

    References:
        Davidson et al. (2018), "Hyperspherical variational auto-encoders".
    """

    dim: Annotated[int, Bounds(least=2)]
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    space = "sphere"
    traits = frozenset({"density", "path", "amortized", "noise"})

    @nn.compact
    def __call__(self, features: Float[Array, "N ..."]) -> VonMisesFisherDistribution:
        """q(z|x), batch `[N]` and event `[d]`."""
        h = features.reshape(features.shape[0], -1)
        loc = nn.Dense(self.dim, kernel_init=self.kernel_init, name="loc")(h)
        kappa = nn.Dense(1, kernel_init=self.kernel_init, name="kappa")(h)[:, 0]
        # With zero biases a black image gives the zero vector, which has no direction: take e_1.
        loc = direction(loc, jnp.eye(1, self.dim, dtype=loc.dtype)[0])
        return VonMisesFisherDistribution(loc, 1 + jax.nn.softplus(kappa))
