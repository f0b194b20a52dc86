"""A Gaussian prior for each class."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Integer
from typing_extensions import override

from vae_jax.conditional import labels_or_zero
from vae_jax.distributions import Normal
from vae_jax.given import Count, LatentShape
from vae_jax.interfaces import Model, Prior, latent_shape


class ClassGaussian(Prior):
    """p(z|y) = N(z; m_y, diag s_y²), learned with the rest of a conditional model.

    It starts from scales of one and means drawn from N(0, I).

    Attributes:
        num_classes: the number of classes.
        shape: the shape of z: d, (n, d) or (h, w, c).

    References:
        Sohn et al. (2015), "Learning structured output representation using deep conditional
            generative models", for a prior that depends on the condition.
    """

    num_classes: Count
    shape: LatentShape

    factors = True

    def setup(self):
        """`loc` and `log_scale`: `[num_classes, *shape]`."""
        event = latent_shape(self.shape)
        self.loc = self.param("loc", nn.initializers.normal(1.0), (self.num_classes, *event))
        self.log_scale = self.param("log_scale", nn.initializers.zeros, self.loc.shape)

    @property
    @override
    def label_classes(self) -> int:
        return self.num_classes

    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Normal:
        y = labels_or_zero(y, self)
        loc, log_scale = jnp.asarray(self.loc)[y], jnp.asarray(self.log_scale)[y]
        return Normal(loc, jnp.exp(log_scale), event_ndims=self.loc.ndim - 1)

    def carry(
        self,
        z: Float[Array, "*latents"],
        source: Integer[ArrayLike, ""],
        target: Integer[ArrayLike, ""],
    ) -> Float[Array, "*latents"]:
        """Move z from one class to another: m_b + s_b (z - m_a) / s_a keeps its deviation.

        Args:
            z: latents `[..., *shape]`; if they are distributed as p(z|a), the result is distributed
                as p(z|b).
            source: the class a.
            target: the class b.
        """
        loc, log_scale = jnp.asarray(self.loc), jnp.asarray(self.log_scale)
        ratio = jnp.exp(log_scale[target] - log_scale[source])
        return loc[target] + ratio * (z - loc[source])
