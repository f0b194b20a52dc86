"""A posterior without noise: the encoder of an autoencoder."""

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.distributions import Elementwise, Shape
from vae_jax.interfaces import Posterior, latent_shape


@struct.dataclass
class Delta(Elementwise):
    """All mass at `loc`.

    It has no density. `log_prob` is 0 by convention, the logarithm of the point's mass, so that
    Terms can be made; with it, importance weights and rates mean nothing, and what needs a density
    of q is refused.
    """

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """The point, `sample_shape` times."""
        del key
        return jnp.broadcast_to(self.loc, sample_shape + self.loc.shape)

    def component_log_prob(self, value: Array) -> Array:
        """Zeros: every value is taken for a draw."""
        return jnp.zeros_like(value)


class Deterministic(Posterior):
    """z = mu(h), affine: for objectives that ask for no density of q and no noise.

    Attributes:
        shape: of z: d, (n, d) or (h, w, c); see `affine` for the features that fit.
        kernel_init: of the affine map.
    """

    shape: int | Shape
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    traits = frozenset({"amortized"})

    @property
    def event_ndims(self) -> int:
        """Axes of z."""
        return len(latent_shape(self.shape))

    @nn.compact
    def __call__(self, features: Array) -> Delta:
        """Features `[B, ...]` to batch `[B]`, event `[*shape]`.

        Raises:
            VaeJaxError: features that do not fit the shape.
        """
        loc = self.affine(features, self.shape, "loc", self.kernel_init)
        return Delta(loc, event_ndims=self.event_ndims)
