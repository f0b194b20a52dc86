"""A standard normal, transformed by affine coupling layers."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int
from typing_extensions import override

from vae_jax.distributions import Normal, Transformed
from vae_jax.flows import AffineCoupling, CouplingNetwork, Flow, detach
from vae_jax.given import Count, SeveralDims, Widths
from vae_jax.interfaces import Model, Prior


class RealNVP(Prior):
    """Affine coupling layers that transform even and odd components in turn.

    Unlike the paper, it has no batch normalization.

    Attributes:
        dim: the number of latent dimensions d, at least 2.
        num_flows: the number of layers T.
        features: the width of each hidden layer of a coupling's network.

    References:
        Dinh et al. (2017), "Density estimation using Real NVP", section 3.
    """

    dim: SeveralDims
    num_flows: Count = 6
    features: Widths = (128, 128)

    @nn.compact
    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Transformed:
        base = Normal(jnp.zeros(self.dim), jnp.ones(self.dim))
        flows: list[Flow] = []
        for t in range(self.num_flows):
            mask = (jnp.arange(self.dim) + t) % 2.0
            network = CouplingNetwork(self.features, name=f"coupling{t}")
            flows.append(AffineCoupling(mask, *detach(network, base.loc)))
        return Transformed(base, tuple(flows))
