"""Mixture priors."""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from vae_jax.compatibility import Space, Trait
from vae_jax.distributions import Mixture, Shape


class VampPrior(nn.Module):
    """p(z) = 1/C sum_c q(z | u_c), pseudo-inputs u_c learned (Tomczak & Welling 2018, equation 9).

    Attributes:
        num_components: C.
        mean, stddev: of the normal that pseudo-inputs start from. The paper's code uses 0.05 and
            0.01 for MNIST and keeps u_c in [0, 1] by clipping, as we do.
    """

    num_components: int
    mean: float = 0.05
    stddev: float = 0.01

    spaces: ClassVar[frozenset[Space]] = frozenset({"real", "sphere"})
    needs: ClassVar[frozenset[Trait]] = frozenset({"density", "amortized"})
    factors: ClassVar[bool] = False

    @nn.compact
    def __call__(self, model: Any) -> Mixture:
        """Batch `[]`, event that of q."""

        def init(key: Array, shape: Shape) -> Array:
            return self.mean + self.stddev * nn.initializers.normal(1.0)(key, shape)

        shape = (self.num_components, *model.image_shape)
        pseudo_inputs = self.param("pseudo_inputs", init, shape)
        log_weights = jnp.full(self.num_components, -jnp.log(self.num_components))
        return Mixture(log_weights, model.encode(jnp.clip(pseudo_inputs, 0.0, 1.0)))
