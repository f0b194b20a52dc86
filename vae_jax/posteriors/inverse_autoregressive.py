"""A diagonal Gaussian, transformed by inverse autoregressive flows, near the identity at first."""

import flax.linen as nn
from jax import Array
from jaxtyping import Float
from typing_extensions import override

from vae_jax.distributions import Transformed
from vae_jax.flows import MADE, Flow, InverseAutoregressive, Reverse, detach
from vae_jax.given import Count, SeveralDims, Widths
from vae_jax.interfaces import Posterior
from vae_jax.posteriors.gaussian import DiagonalGaussian


class InverseAutoregressiveFlow(Posterior):
    """Inverse autoregressive flows, with the features as context.

    A draw and its density take one evaluation of each network, the density of a given z takes d.
    The order of the components is reversed between flows. All examples share the networks.

    Attributes:
        dim: the number of latent dimensions d, at least 2.
        num_flows: the number of flows T.
        features: the width of each hidden layer of a flow's MADE.

    References:
        Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow",
            section 4.
    """

    dim: SeveralDims
    num_flows: Count = 4
    features: Widths = (128,)

    traits = frozenset({"density", "path", "noise"})

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."]) -> Transformed:
        h = features.reshape(features.shape[0], -1)
        base = DiagonalGaussian(self.dim, name="base")(h)
        flows: list[Flow] = []
        for t in range(self.num_flows):
            made = MADE(self.features, name=f"made{t}")
            flows += [InverseAutoregressive(*detach(made, base.loc, h), h), Reverse()]
        return Transformed(base, tuple(flows[:-1]))
