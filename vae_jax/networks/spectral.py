"""Networks whose layers have a Lipschitz constant of one."""

from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.distributions import Shape
from vae_jax.given import Network
from vae_jax.interfaces import Part

Collections = TypeVar("Collections")


def spectral_norm(kernel: Array) -> Array:
    """The largest singular value of a kernel `[..., outputs]` as a matrix `[inputs, outputs]`.

    It is exact, from the eigenvalues of the smaller of the two Gram matrices; power iteration would
    need a running vector besides the parameters.
    """
    w = kernel.reshape(-1, kernel.shape[-1])
    gram = w.T @ w if w.shape[0] > w.shape[1] else w @ w.T
    return jnp.sqrt(jnp.linalg.eigvalsh(gram)[-1])


class SpectralNorm(Part):
    """A network with each weight W replaced by W / sigma(W).

    Weights are the parameters with two axes or more, of which the last runs over the outputs; a
    convolution's kernel is a matrix from patches to features, as in the paper. The likelihood's own
    affine map, which follows a decoder, is not normalized.

    Attributes:
        network: the encoder or decoder to normalize.

    References:
        Miyato et al. (2018), "Spectral normalization for generative adversarial networks".

    Example:
        >>> model = VAE(..., decoder=SpectralNorm(MLP((400,))))
    """

    network: Network

    @nn.compact
    def __call__(self, *arguments: Array | Shape) -> Array:
        """The network's features, from its `arguments`."""

        def normalized(variables: Collections) -> Collections:
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
