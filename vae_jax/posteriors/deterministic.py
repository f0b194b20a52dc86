"""A posterior without noise: the encoder of an autoencoder."""

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float, Key, Num
from typing_extensions import override

from vae_jax.distributions import Elementwise, Shape
from vae_jax.given import LatentShape
from vae_jax.interfaces import Posterior, latent_shape


@struct.dataclass
class Delta(Elementwise):
    """All mass at `loc`.

    It has no density. By convention `log_prob` is 0, the logarithm of the point's mass, so that
    `Terms` can be computed; importance weights and rates then have no meaning, and objectives that
    need a density of q are refused.
    """

    @property
    @override
    def std(self) -> Float[Array, "..."]:
        return jnp.zeros_like(self.loc)

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """The point: all draws are equal."""
        del key
        return jnp.broadcast_to(self.loc, sample_shape + self.loc.shape)

    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """Zeros; the value is assumed to be a draw."""
        return jnp.zeros_like(value)


class Deterministic(Posterior):
    """z = mu(h), an affine map, for objectives that need neither a density of q nor noise.

    Attributes:
        shape: the shape of z: d, (n, d) or (h, w, c); see `affine` for the features that fit.
        kernel_init: the initializer of the affine map.
    """

    shape: LatentShape
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    traits = frozenset({"amortized"})

    @property
    @override
    def event_ndims(self) -> int:
        return len(latent_shape(self.shape))

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."]) -> Delta:
        loc = self.affine(features, self.shape, "loc", self.kernel_init)
        return Delta(loc, event_ndims=self.event_ndims)
