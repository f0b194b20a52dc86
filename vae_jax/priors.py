"""p(z): called with `encode`, the map from images to q(z|x), and the image shape.

Most priors ignore both; the VampPrior is made of them.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from vae_jax.distributions import Mixture, Normal, Shape

Encode = Callable[[Array], Normal]


class StandardNormal(nn.Module):
    """p(z) = N(0, I) over `[dim]`."""

    dim: int

    def __call__(self, encode: Encode, image_shape: Shape) -> Normal:
        """Batch `[]`, event `[dim]`."""
        return Normal(jnp.zeros(self.dim), jnp.ones(self.dim))


class VampPrior(nn.Module):
    """p(z) = 1/C sum_c q(z | u_c), pseudo-inputs u_c learned (Tomczak & Welling 2018, equation 9).

    Attributes:
        num_components: C.
        mean, stddev: of the normal that pseudo-inputs start from. The paper's code uses 0.05 and
            0.01 for MNIST and keeps u_c in [0, 1] by clipping, as we do.
    """

    num_components: int
    mean: float = 0.05
    stddev: float = 0.01

    @nn.compact
    def __call__(self, encode: Encode, image_shape: Shape) -> Mixture:
        """Batch `[]`, event that of q."""

        def init(key: Array, shape: Shape) -> Array:
            return self.mean + self.stddev * nn.initializers.normal(1.0)(key, shape)

        pseudo_inputs = self.param("pseudo_inputs", init, (self.num_components, *image_shape))
        log_weights = jnp.full(self.num_components, -jnp.log(self.num_components))
        return Mixture(log_weights, encode(jnp.clip(pseudo_inputs, 0.0, 1.0)))
