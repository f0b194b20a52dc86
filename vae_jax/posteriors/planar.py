"""A diagonal Gaussian, transformed by planar flows, near the identity at initialization."""

import flax.linen as nn
from jax import Array
from jaxtyping import Float
from typing_extensions import override

from vae_jax.distributions import Transformed
from vae_jax.flows import NEAR_ZERO, Planar
from vae_jax.given import Count, Dim
from vae_jax.interfaces import Posterior
from vae_jax.posteriors.gaussian import DiagonalGaussian

GLOROT = nn.initializers.glorot_uniform()
NORMAL = nn.initializers.normal(1.0)


class PlanarFlow(Posterior):
    """Planar flows with all parameters from the features.

    Attributes:
        dim: the number of latent dimensions d.
        num_flows: the number of flows T.

    References:
        Rezende & Mohamed (2015), "Variational inference with normalizing flows", section 4.1.
    """

    dim: Dim
    num_flows: Count = 8

    traits = frozenset({"density", "path", "amortized", "noise"})

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."]) -> Transformed:
        h = features.reshape(features.shape[0], -1)
        base = DiagonalGaussian(self.dim, name="base")(h)
        shape = (self.num_flows, self.dim)
        u = nn.DenseGeneral(shape, kernel_init=NEAR_ZERO, name="u")(h)
        w = nn.DenseGeneral(shape, kernel_init=GLOROT, bias_init=NORMAL, name="w")(h)
        b = nn.Dense(self.num_flows, kernel_init=GLOROT, name="b")(h)
        flows = tuple(Planar(u[:, t], w[:, t], b[:, t]) for t in range(self.num_flows))
        return Transformed(base, flows)
