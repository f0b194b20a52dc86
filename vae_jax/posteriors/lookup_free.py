"""Lookup-free quantization."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn.initializers import Initializer
from jaxtyping import Float
from typing_extensions import override

from vae_jax.distributions import ProductCodebook, Quantized, sum_event
from vae_jax.given import Bounds
from vae_jax.interfaces import Posterior
from vae_jax.parallel import batch_mean
from vae_jax.posteriors.codes import as_map


class LookupFree(Posterior):
    """The signs of an affine map h: lookup-free quantization.

    Its penalties are `commitment`, |h - z|², and `entropy`: the entropy of each position's soft
    assignment q(c) ∝ exp(-|h - c|²) over all 2^dim codes, less the entropy of the mean assignment
    over the positions of the whole batch. The second is low if assignments are certain and all
    codes are in use.

    Attributes:
        dim: the number of signs in a code; C = 2^dim.
        kernel_init: the initializer of the affine map.

    References:
        Yu et al. (2023), "Language model beats diffusion: tokenizer is key to visual generation".
    """

    dim: Annotated[int, Bounds(least=1, most=20)]
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    space = "codes"
    traits = frozenset({"codebook"})
    whole_batch = True

    @property
    def codebook(self) -> ProductCodebook:
        """All vectors of -1 and 1."""
        return ProductCodebook(((-1.0, 1.0),) * self.dim)

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."]) -> Quantized:
        h = nn.Dense(self.dim, kernel_init=self.kernel_init, name="encoded")(as_map(features))
        indices = self.codebook.indices(h)
        vectors = self.codebook.embed(jnp.arange(self.codebook.num_codes)[:, None])
        log_q = jax.nn.log_softmax(2 * jnp.matmul(h, vectors.T, precision=lax.Precision.HIGHEST))
        q = jnp.exp(log_q)
        mean_q = jnp.maximum(batch_mean(q.mean((0, 1, 2))), jnp.finfo(q.dtype).tiny)
        penalties = {
            "commitment": sum_event((h - lax.stop_gradient(self.codebook.embed(indices))) ** 2, 3),
            "entropy": sum_event(q * (jnp.log(mean_q) - log_q), 3),
        }
        return Quantized(h, indices, self.codebook, penalties)
