"""A diagonal Gaussian, transformed by Sylvester flows, with three choices of their Q.

They are near the identity at initialization.
"""

from collections.abc import Sequence

import flax.linen as nn
from jax import Array
from jaxtyping import Float
from typing_extensions import override

from vae_jax.distributions import Transformed
from vae_jax.errors import VaeJaxError
from vae_jax.flows import NEAR_ZERO, Flow, Householder, Reverse, Sylvester, orthogonalize
from vae_jax.given import Count, Dim
from vae_jax.interfaces import Posterior
from vae_jax.posteriors.gaussian import DiagonalGaussian

GLOROT = nn.initializers.glorot_uniform()
NORMAL = nn.initializers.normal(1.0)


class SylvesterFlow(Posterior):
    """Orthogonal Sylvester flows with all parameters from the features.

    Attributes:
        dim: the number of latent dimensions d.
        num_ortho: the number of orthonormal columns M <= d of Q, the width of each flow.
        num_flows: the number of flows T.

    Raises:
        VaeJaxError: M > d.

    References:
        van den Berg et al. (2018), "Sylvester normalizing flows for variational inference",
            section 3.
    """

    dim: Dim
    num_ortho: Count
    num_flows: Count = 4

    traits = frozenset({"density", "path", "amortized", "noise"})

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        if self.num_ortho > self.dim:
            raise VaeJaxError(
                f"SylvesterFlow cannot have {self.num_ortho} orthonormal vectors of {self.dim} "
                f"components: give num_ortho <= {self.dim}."
            )

    @nn.compact
    def __call__(self, features: Float[Array, "N ..."]) -> Transformed:
        """q(z|x), batch `[N]` and event `[d]`."""
        d, m, t = self.dim, self.num_ortho, self.num_flows
        h = features.reshape(features.shape[0], -1)
        base = DiagonalGaussian(d, name="base")(h)
        q = nn.DenseGeneral((t, d, m), kernel_init=GLOROT, bias_init=NORMAL, name="q")(h)
        q = orthogonalize(q)
        flows = _sylvester(h, [q[:, i] for i in range(t)], m)
        return Transformed(base, tuple(flows))


class HouseholderSylvesterFlow(Posterior):
    """Sylvester flows whose Q is a product of reflections.

    The flows are as wide as the space, M = d, and all parameters come from the features.

    Attributes:
        dim: the number of latent dimensions d.
        num_reflections: the number of Householder reflections H of each flow.
        num_flows: the number of flows T.

    References:
        van den Berg et al. (2018), "Sylvester normalizing flows for variational inference",
            section 3.
    """

    dim: Dim
    num_reflections: Count = 8
    num_flows: Count = 4

    traits = frozenset({"density", "path", "amortized", "noise"})

    @nn.compact
    def __call__(self, features: Float[Array, "N ..."]) -> Transformed:
        """q(z|x), batch `[N]` and event `[d]`."""
        h = features.reshape(features.shape[0], -1)
        base = DiagonalGaussian(self.dim, name="base")(h)
        shape = (self.num_flows, self.num_reflections, self.dim)
        v = nn.DenseGeneral(shape, kernel_init=GLOROT, bias_init=NORMAL, name="v")(h)
        q = [Householder(v[:, t]) for t in range(self.num_flows)]
        return Transformed(base, tuple(_sylvester(h, q, self.dim)))


class TriangularSylvesterFlow(Posterior):
    """Sylvester flows whose Q is a permutation.

    The components keep their order in one flow and reverse it in the next, M = d, and all
    parameters come from the features.

    Attributes:
        dim: the number of latent dimensions d.
        num_flows: the number of flows T.

    References:
        van den Berg et al. (2018), "Sylvester normalizing flows for variational inference",
            section 3.
    """

    dim: Dim
    num_flows: Count = 4

    traits = frozenset({"density", "path", "amortized", "noise"})

    @nn.compact
    def __call__(self, features: Float[Array, "N ..."]) -> Transformed:
        """q(z|x), batch `[N]` and event `[d]`."""
        h = features.reshape(features.shape[0], -1)
        base = DiagonalGaussian(self.dim, name="base")(h)
        flows: list[Flow] = []
        for t, flow in enumerate(_sylvester(h, [None] * self.num_flows, self.dim)):
            flows += [Reverse(), flow, Reverse()] if t % 2 else [flow]
        return Transformed(base, tuple(flows))


def _sylvester(
    h: Float[Array, "N F"], qs: Sequence[Float[Array, "N d M"] | Householder | None], width: int
) -> list[Sylvester]:
    """Sylvester flows of width M with these Q, their other parameters from the features."""
    t, m = len(qs), width
    r = nn.DenseGeneral((t, m, m), kernel_init=NEAR_ZERO, name="r")(h)
    diagonals = nn.DenseGeneral((t, 2, m), kernel_init=NEAR_ZERO, name="diagonals")(h)
    b = nn.DenseGeneral((t, m), kernel_init=GLOROT, name="b")(h)
    return [Sylvester(q, r[:, i], diagonals[:, i], b[:, i]) for i, q in enumerate(qs)]
