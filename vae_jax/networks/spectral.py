"""Networks whose layers have a Lipschitz constant of one."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def spectral_norm(kernel: Array) -> Array:
    """The largest singular value of `[..., outputs]` as a matrix `[inputs, outputs]`.

    Exact, from the eigenvalues of the smaller of the two Gram matrices: no running vector to keep
    beside the parameters, as power iteration needs.
    """
    w = kernel.reshape(-1, kernel.shape[-1])
    gram = w.T @ w if w.shape[0] > w.shape[1] else w @ w.T
    return jnp.sqrt(jnp.linalg.eigvalsh(gram)[-1])


class SpectralNorm(nn.Module):
    """A network with each weight W replaced by W / sigma(W) (Miyato et al. 2018).

    Weights are the parameters of two axes or more, the last being outputs; a convolution's are
    taken as one matrix of patches to channels, as in the paper. The likelihood's own affine map,
    behind a decoder, stays as it is.

    Attributes:
        network: what it is done to.
    """

    network: nn.Module

    @nn.compact
    def __call__(self, *arguments: Any) -> Array:
        """As the network's."""

        def normalized(variables: Any) -> Any:
            def normalize(leaf: Array) -> Array:
                return leaf / spectral_norm(leaf) if leaf.ndim > 1 else leaf

            return jax.tree.map(normalize, variables)

        mapped = nn.map_variables(
            lambda network, *arguments: network(*arguments),
            "params",
            normalized,
            init=self.is_initializing(),
        )
        return mapped(self.network, *arguments)
