"""Priors without structure: independent components."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vae_jax.compatibility import Space, Trait
from vae_jax.distributions import Normal


class StandardNormal(nn.Module):
    """p(z) = N(0, I) over `[dim]`."""

    dim: int

    spaces: ClassVar[frozenset[Space]] = frozenset({"real"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = True

    def __call__(self, model: Any) -> Normal:
        """Batch `[]`, event `[dim]`."""
        return Normal(jnp.zeros(self.dim), jnp.ones(self.dim))
