"""Finite scalar quantization."""

import math
from collections.abc import Sequence
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float
from typing_extensions import override

from vae_jax.distributions import ProductCodebook, Quantized
from vae_jax.errors import VaeJaxError
from vae_jax.given import Bounds
from vae_jax.interfaces import Posterior
from vae_jax.posteriors.codes import as_map


class FiniteScalarQuantized(Posterior):
    """Each component bounded and rounded to one of a few levels.

    No codebook is learned, and there are no penalties.

    Attributes:
        levels: the number of values of each component, at least 2; their product is the number of
            codes C.
        kernel_init: the initializer of the affine map to the components.

    Raises:
        VaeJaxError: there are 2^31 codes or more.

    References:
        Mentzer et al. (2023), "Finite scalar quantization: VQ-VAE made simple", appendix A.1.
    """

    levels: Annotated[
        Sequence[Annotated[int, Bounds(least=2)]],
        Bounds(least=1),
        "the number of values of each component, at least 2, such as (8, 6, 5)",
    ]
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    space = "codes"
    traits = frozenset({"codebook"})

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        if (codes := math.prod(self.levels)) >= 2**31:
            raise VaeJaxError(
                f"levels of FiniteScalarQuantized make {codes:,} codes: give fewer than 2^31."
            )

    @property
    def codebook(self) -> ProductCodebook:
        """The codebook: for L levels, the L integers from -floor(L/2) on, divided by floor(L/2)."""
        return ProductCodebook(
            tuple(tuple((j - L // 2) / (L // 2) for j in range(L)) for L in self.levels)
        )

    @nn.compact
    def __call__(self, features: Float[Array, "N ..."]) -> Quantized:
        """q(z|x), batch `[N]` and event `[h, w, len(levels)]`."""
        dense = nn.Dense(len(self.levels), kernel_init=self.kernel_init, name="encoded")
        h = dense(as_map(features))
        # Appendix A.1 of the paper, whose tan is a slip for artanh, as its author has confirmed: if
        # the number of levels is even, the offset lowers the bounds by half a level, and the shift
        # keeps h = 0 at 0. For two levels no shift does so; they are the signs of h instead.
        counts = np.asarray(self.levels)
        half_length = (counts - 1) * (1 - 1e-3) / 2
        offset = np.where(counts % 2, 0.0, 0.5)
        shift = np.arctanh(np.where(counts > 2, offset / half_length, 0.0))
        bounded = jnp.tanh(h + shift) * half_length
        encoded = (bounded - offset) / (counts // 2)
        return Quantized(encoded, self.codebook.indices(encoded), self.codebook, {})
