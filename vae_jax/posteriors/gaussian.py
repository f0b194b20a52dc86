"""Gaussian posteriors."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float
from typing_extensions import override

from vae_jax.distributions import LOG_SCALE_RANGE, MultivariateNormal, Normal, limited
from vae_jax.errors import VaeJaxError
from vae_jax.given import Dim, LatentShape, Limit
from vae_jax.interfaces import Posterior, latent_shape


class DiagonalGaussian(Posterior):
    """q(z|x) = N(mu(h), diag sigma(h)²) with affine mu and ln sigma.

    Hierarchical models also use it for p(z_l | z_{l+1}).

    Attributes:
        shape: the shape of z: d, (n, d) or (h, w, c); see `affine` for the features that fit.
        kernel_init: the initializer of both affine maps.
        log_scale_range: the limits to which ln sigma is clipped, without a gradient outside. Before
            that, it is always limited softly, with a gradient everywhere, to (-11, 8).

    Raises:
        VaeJaxError: the first limit is not below the second.

    References:
        Kingma & Welling (2013), "Auto-encoding variational Bayes", equation 9.
    """

    shape: LatentShape
    kernel_init: Initializer = nn.initializers.glorot_uniform()
    log_scale_range: tuple[Limit, Limit] = (-jnp.inf, jnp.inf)

    traits = frozenset({"density", "path", "factors", "amortized", "noise"})

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        low, high = self.log_scale_range
        if low >= high:
            raise VaeJaxError(
                f"log_scale_range of DiagonalGaussian is {self.log_scale_range}: give the lower "
                "limit first."
            )

    @property
    @override
    def event_ndims(self) -> int:
        return len(latent_shape(self.shape))

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."]) -> Normal:
        loc = self.affine(features, self.shape, "loc", self.kernel_init)
        log_scale = self.affine(features, self.shape, "log_scale", self.kernel_init)
        log_scale = jnp.clip(limited(log_scale, *LOG_SCALE_RANGE), *self.log_scale_range)
        scale = jnp.exp(log_scale)
        return Normal(loc, scale, event_ndims=self.event_ndims)


class FullCovarianceGaussian(Posterior):
    """q(z|x) = N(mu(h), L(h) L(h)ᵀ) with affine mu and an affine Cholesky factor L.

    The diagonal of L is the exponential of an affine map, which keeps it positive; its logarithm is
    limited softly, as ln sigma of `DiagonalGaussian` is.

    Attributes:
        dim: the number of latent dimensions d.
        kernel_init: the initializer of the affine maps.

    References:
        Kingma & Welling (2019), "An introduction to variational autoencoders".
    """

    dim: Dim
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    traits = frozenset({"density", "path", "amortized", "noise"})

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."]) -> MultivariateNormal:
        h = features.reshape(features.shape[0], -1)
        loc = nn.Dense(self.dim, kernel_init=self.kernel_init, name="loc")(h)
        log_diagonal = nn.Dense(self.dim, kernel_init=self.kernel_init, name="log_diagonal")(h)
        diagonal = jnp.exp(limited(log_diagonal, *LOG_SCALE_RANGE))
        scale_tril = diagonal[..., None] * jnp.eye(self.dim)
        if self.dim > 1:
            rows, columns = np.tril_indices(self.dim, -1)
            below = nn.Dense(len(rows), kernel_init=self.kernel_init, name="below")(h)
            scale_tril = scale_tril.at[:, rows, columns].set(below)
        return MultivariateNormal(loc, scale_tril)
