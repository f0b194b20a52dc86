"""Gaussian pixels with the best-fitting scale."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer
from jaxtyping import Float

from vae_jax.distributions import Distribution, Normal, Shape
from vae_jax.given import Positive
from vae_jax.interfaces import Likelihood
from vae_jax.parallel import batch_mean

# The number of batches over which OptimalGaussian's running variance averages.
MEMORY = 20


class OptimalGaussian(Likelihood):
    """p(x|z) = prod N(x_i; m_i, s²) with the best-fitting s, the optimal sigma-VAE.

    In training s² is the mean squared error over all images, samples and pixels of the batch on
    all devices, which maximizes their log-likelihood. It enters the loss as a constant, since the
    derivative with respect to s is zero at this maximum. In evaluation the variance is a running
    mean of s², in the collection `running`, so that the density does not depend on the images.

    Attributes:
        min_scale: the lower limit of s in units of the data.
        squash: the map from the affine output to the mean.
        kernel_init: the initializer of the affine map.

    References:
        Rybkin et al. (2021), "Simple and effective VAE training with calibrated decoders".
    """

    min_scale: Positive = 1e-3
    squash: Callable[[Array], Array] = jax.nn.sigmoid
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    whole_batch = True

    @nn.compact
    def __call__(self, features: Float[Array, "N ..."], image_shape: Shape) -> Normal:
        """p(x|z) with the running variance, batch `[N]` and event `[H, W, C]`."""
        loc = self.squash(self.per_pixel(features, image_shape, "loc", self.kernel_init))
        variance = self.variable("running", "variance", jnp.ones, ())
        return self._of_variance(loc, variance.value)

    def observe(
        self, px: Distribution, x: Float[Array, "B H W C"], remember: bool = True
    ) -> Distribution:
        """In training, p(x|z) with the scale that best fits the images of the whole batch.

        Args:
            px: the distribution that `__call__` returned, batch `[K, B]`.
            x: this device's share of the batch.
            remember: whether the running mean is updated.
        """
        if self.is_initializing() or not self.is_mutable_collection("running"):
            return px
        variance = batch_mean(jnp.square(lax.stop_gradient(x - px.mean)).mean())
        if remember:
            before = self.get_variable("running", "variance")
            self.put_variable("running", "variance", before + (variance - before) / MEMORY)
        return self._of_variance(px.mean, variance)

    def _of_variance(self, loc: Float[Array, "... H W C"], variance: Float[Array, ""]) -> Normal:
        scale = jnp.maximum(jnp.sqrt(variance), self.min_scale)
        return Normal(loc, jnp.broadcast_to(scale, loc.shape), event_ndims=3)
