"""Priors without structure: standard densities of independent components, and uniform ones."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from vae_jax.distributions import (
    Concrete,
    HypersphericalUniformDistribution,
    Laplace,
    Normal,
    OneHotCategorical,
    Shape,
    StudentT,
)
from vae_jax.interfaces import Model, Prior, latent_shape


class StandardNormal(Prior):
    """p(z) = N(0, I).

    Attributes:
        shape: of z: d, (n, d) or (h, w, c).
    """

    shape: int | Shape

    factors = True

    def __call__(self, model: Model, y: Array | None = None) -> Normal:
        """Batch `[]`, event `[*shape]`."""
        event = latent_shape(self.shape)
        return Normal(jnp.zeros(event), jnp.ones(event), event_ndims=len(event))


class StandardLaplace(Prior):
    """p(z) = prod Laplace(z_j; 0, 1): latents are pushed towards zero, in sparse ways.

    Its KL from a normal is exact.

    Attributes:
        shape: of z: d, (n, d) or (h, w, c).
    """

    shape: int | Shape

    factors = True

    def __call__(self, model: Model, y: Array | None = None) -> Laplace:
        """Batch `[]`, event `[*shape]`."""
        event = latent_shape(self.shape)
        return Laplace(jnp.zeros(event), jnp.ones(event), event_ndims=len(event))


class StandardStudentT(Prior):
    """p(z) = prod t(z_j), Student's t of location 0 and scale 1.

    Attributes:
        shape: of z: d, (n, d) or (h, w, c).
        dof: degrees of freedom of all components; None learns them as one parameter, from 5.
    """

    shape: int | Shape
    dof: float | None = None

    factors = True

    @property
    def learned(self) -> bool:
        """Whether the degrees of freedom are."""
        return self.dof is None

    @nn.compact
    def __call__(self, model: Model, y: Array | None = None) -> StudentT:
        """Batch `[]`, event `[*shape]`."""
        if self.dof is None:
            dof = jnp.exp(self.param("log_dof", nn.initializers.constant(math.log(5.0)), ()))
        else:
            dof = jnp.asarray(self.dof)
        event = latent_shape(self.shape)
        dof = jnp.broadcast_to(dof, event)
        return StudentT(jnp.zeros(event), jnp.ones(event), dof, event_ndims=len(event))


class HypersphericalUniform(Prior):
    """p(z) constant on unit vectors `[dim]` (Davidson et al. 2018)."""

    dim: int

    spaces = frozenset({"sphere"})

    def __call__(self, model: Model, y: Array | None = None) -> HypersphericalUniformDistribution:
        """Batch `[]`, event `[dim]`."""
        return HypersphericalUniformDistribution(self.dim)


class UniformCategorical(Prior):
    """p(z) = C^-n for each of the one-hot `[n, C]`."""

    num: int
    classes: int

    spaces = frozenset({"onehot"})

    def __call__(self, model: Model, y: Array | None = None) -> OneHotCategorical:
        """Batch `[]`, event `[n, C]`."""
        return OneHotCategorical(jnp.zeros((self.num, self.classes)), temperature=1.0)


class UniformConcrete(Prior):
    """UniformCategorical's relaxation on probability vectors `[n, C]` (Maddison et al. 2017).

    Not the uniform distribution on the simplex: the lower the temperature, the more of its mass is
    near the corners, evenly.
    """

    num: int
    classes: int
    temperature: float

    spaces = frozenset({"simplex"})

    def __call__(self, model: Model, y: Array | None = None) -> Concrete:
        """Batch `[]`, event `[n, C]`."""
        return Concrete(jnp.zeros((self.num, self.classes)), self.temperature)
