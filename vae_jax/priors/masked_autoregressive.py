"""A standard normal, transformed by masked autoregressive flows."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int
from typing_extensions import override

from vae_jax.distributions import Normal, Transformed
from vae_jax.flows import MADE, Flow, MaskedAutoregressive, Reverse, detach
from vae_jax.given import Count, SeveralDims, Widths
from vae_jax.interfaces import Model, Prior


class MaskedAutoregressiveFlow(Prior):
    """Masked autoregressive flows, the order reversed between them.

    ln p(z) takes one evaluation of each network, a draw takes d. Unlike the paper, it has no batch
    normalization.

    Attributes:
        dim: the number of latent dimensions d, at least 2.
        num_flows: the number of flows T.
        features: the width of each hidden layer of a flow's MADE.

    References:
        Papamakarios et al. (2017), "Masked autoregressive flow for density estimation", section
            3.1.
    """

    dim: SeveralDims
    num_flows: Count = 4
    features: Widths = (128, 128)

    @nn.compact
    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Transformed:
        base = Normal(jnp.zeros(self.dim), jnp.ones(self.dim))
        flows: list[Flow] = []
        for t in range(self.num_flows):
            made = MADE(self.features, name=f"made{t}")
            flows += [MaskedAutoregressive(*detach(made, base.loc)), Reverse()]
        return Transformed(base, tuple(flows[:-1]))
