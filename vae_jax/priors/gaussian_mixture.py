"""A mixture of Gaussians as the prior."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int
from typing_extensions import override

from vae_jax.distributions import Mixture, Normal
from vae_jax.given import Count, LatentShape
from vae_jax.interfaces import Model, Prior, latent_shape


class GaussianMixture(Prior):
    """p(z) = sum_c w_c N(z; m_c, diag s_c²), learned with the rest of the model.

    It is initialized with equal weights, scales of one and means drawn from N(0, I).

    Attributes:
        num_components: the number of components C.
        shape: the shape of z: d, (n, d) or (h, w, c).
    """

    num_components: Count
    shape: LatentShape

    @nn.compact
    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Mixture:
        event = latent_shape(self.shape)
        shape = (self.num_components, *event)
        loc = self.param("loc", nn.initializers.normal(1.0), shape)
        log_scale = self.param("log_scale", nn.initializers.zeros, shape)
        logits = self.param("logits", nn.initializers.zeros, (self.num_components,))
        components = Normal(loc, jnp.exp(log_scale), event_ndims=len(event))
        return Mixture(jax.nn.log_softmax(logits), components)
