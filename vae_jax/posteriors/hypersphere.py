"""Posteriors on the hypersphere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.distributions import VonMisesFisherDistribution
from vae_jax.interfaces import Posterior


class VonMisesFisher(Posterior):
    """q(z|x) = vMF(mu(h), kappa(h)) on unit vectors (Davidson et al. 2018).

    mu is an affine map, normalised; kappa is 1 + softplus of another.

    Attributes:
        dim: of the vectors, d >= 2; they have d - 1 degrees of freedom.
        kernel_init: initializer of both affine maps.
    """

    dim: int
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    space = "sphere"
    traits = frozenset({"density", "path", "amortized", "noise"})

    @nn.compact
    def __call__(self, features: Array) -> VonMisesFisherDistribution:
        """Features `[B, ...]`, flattened, to batch `[B]`, event `[d]`.

        Raises:
            ValueError: d < 2.
        """
        if self.dim < 2:
            raise ValueError(f"unit vectors have at least 2 dimensions, not {self.dim}")
        h = features.reshape(features.shape[0], -1)
        loc = nn.Dense(self.dim, kernel_init=self.kernel_init, name="loc")(h)
        kappa = nn.Dense(1, kernel_init=self.kernel_init, name="kappa")(h)[:, 0]
        # The zero vector, which zero biases make of a black image, has no direction: e_1 then.
        has_direction = (loc**2).sum(-1, keepdims=True) > 0
        loc = jnp.where(has_direction, loc, jnp.eye(1, self.dim))
        loc = loc / jnp.linalg.norm(loc, axis=-1, keepdims=True)
        return VonMisesFisherDistribution(loc, 1 + jax.nn.softplus(kappa))
