"""Gaussian posteriors."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.distributions import MultivariateNormal, Normal, Shape
from vae_jax.interfaces import Posterior, latent_shape


class DiagonalGaussian(Posterior):
    """q(z|x) = N(mu(h), diag sigma(h)²) with affine mu and ln sigma (Kingma & Welling 2013, eq. 9).

    Also p(z_l | z_{l+1}) inside hierarchical models.

    Attributes:
        shape: of z: d, (n, d) or (h, w, c); see `affine` for the features that fit.
        kernel_init: initializer of both affine maps.
        log_scale_range: limits that ln sigma is clipped to.
    """

    shape: int | Shape
    kernel_init: Initializer = nn.initializers.glorot_uniform()
    log_scale_range: tuple[float, float] = (-jnp.inf, jnp.inf)

    traits = frozenset({"density", "path", "factors", "amortized", "noise"})

    @property
    def event_ndims(self) -> int:
        """Axes of z."""
        return len(latent_shape(self.shape))

    @nn.compact
    def __call__(self, features: Array) -> Normal:
        """Features `[B, ...]` to a Normal with batch `[B]` and event `[*shape]`.

        Raises:
            VaeJaxError: features that do not fit the shape.
        """
        loc = self.affine(features, self.shape, "loc", self.kernel_init)
        log_scale = self.affine(features, self.shape, "log_scale", self.kernel_init)
        scale = jnp.exp(jnp.clip(log_scale, *self.log_scale_range))
        return Normal(loc, scale, event_ndims=self.event_ndims)


class FullCovarianceGaussian(Posterior):
    """q(z|x) = N(mu(h), L(h) L(h)ᵀ), all entries of the Cholesky factor L affine but for an exp.

    The exponential keeps the diagonal of L positive.

    Attributes:
        dim: latent dimensions d.
        kernel_init: initializer of the affine maps.
    """

    dim: int
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    traits = frozenset({"density", "path", "amortized", "noise"})

    @nn.compact
    def __call__(self, features: Array) -> MultivariateNormal:
        """Features `[B, ...]`, flattened, to batch `[B]` and event `[d]`."""
        h = features.reshape(features.shape[0], -1)
        loc = nn.Dense(self.dim, kernel_init=self.kernel_init, name="loc")(h)
        log_diagonal = nn.Dense(self.dim, kernel_init=self.kernel_init, name="log_diagonal")(h)
        rows, columns = np.tril_indices(self.dim, -1)
        below = nn.Dense(len(rows), kernel_init=self.kernel_init, name="below")(h)
        scale_tril = jnp.exp(log_diagonal)[..., None] * jnp.eye(self.dim)
        return MultivariateNormal(loc, scale_tril.at[:, rows, columns].set(below))
