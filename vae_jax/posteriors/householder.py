"""A diagonal Gaussian, rotated by Householder reflections."""

import flax.linen as nn
from jax import Array
from jaxtyping import Float
from typing_extensions import override

from vae_jax.distributions import Transformed
from vae_jax.flows import Householder
from vae_jax.given import Count, Dim
from vae_jax.interfaces import Posterior
from vae_jax.posteriors.gaussian import DiagonalGaussian

GLOROT = nn.initializers.glorot_uniform()
NORMAL = nn.initializers.normal(1.0)


class HouseholderFlow(Posterior):
    """Reflections whose vectors come from the features.

    q(z|x) is thus a Gaussian with a full covariance matrix, whose eigenvectors are learned
    separately from its eigenvalues. In the paper v_t is an affine map of v_{t-1}; here all v_t are
    affine maps of the features.

    Attributes:
        dim: the number of latent dimensions d.
        num_flows: the number of reflections T; d of them can form any orthogonal matrix.

    References:
        Tomczak & Welling (2016), "Improving variational auto-encoders using Householder flow".
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
        v = nn.DenseGeneral(shape, kernel_init=GLOROT, bias_init=NORMAL, name="v")(h)
        return Transformed(base, (Householder(v),))
