"""Priors without structure: standard densities of independent components, and uniform ones."""

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vae_jax.compatibility import Space, Trait, latent_shape
from vae_jax.distributions import (
    Concrete,
    HypersphericalUniformDistribution,
    Laplace,
    Normal,
    OneHotCategorical,
    Shape,
    StudentT,
)


class StandardNormal(nn.Module):
    """p(z) = N(0, I).

    Attributes:
        shape: of z: d, (n, d) or (h, w, c).
    """

    shape: int | Shape

    spaces: ClassVar[frozenset[Space]] = frozenset({"real"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = True
    learned: ClassVar[bool] = False

    def __call__(self, model: Any) -> Normal:
        """Batch `[]`, event `[*shape]`."""
        event = latent_shape(self.shape)
        return Normal(jnp.zeros(event), jnp.ones(event), event_ndims=len(event))


class StandardLaplace(nn.Module):
    """p(z) = prod Laplace(z_j; 0, 1): latents are pushed towards zero, in sparse ways.

    Its KL from a normal is exact.

    Attributes:
        shape: of z: d, (n, d) or (h, w, c).
    """

    shape: int | Shape

    spaces: ClassVar[frozenset[Space]] = frozenset({"real"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = True
    learned: ClassVar[bool] = False

    def __call__(self, model: Any) -> Laplace:
        """Batch `[]`, event `[*shape]`."""
        event = latent_shape(self.shape)
        return Laplace(jnp.zeros(event), jnp.ones(event), event_ndims=len(event))


class StandardStudentT(nn.Module):
    """p(z) = prod t(z_j), Student's t of location 0 and scale 1.

    Attributes:
        shape: of z: d, (n, d) or (h, w, c).
        dof: degrees of freedom of all components; None learns them as one parameter, from 5.
    """

    shape: int | Shape
    dof: float | None = None

    spaces: ClassVar[frozenset[Space]] = frozenset({"real"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = True

    @property
    def learned(self) -> bool:
        """Whether the degrees of freedom are."""
        return self.dof is None

    @nn.compact
    def __call__(self, model: Any) -> StudentT:
        """Batch `[]`, event `[*shape]`."""
        if self.dof is None:
            dof = jnp.exp(self.param("log_dof", nn.initializers.constant(math.log(5.0)), ()))
        else:
            dof = jnp.asarray(self.dof)
        event = latent_shape(self.shape)
        dof = jnp.broadcast_to(dof, event)
        return StudentT(jnp.zeros(event), jnp.ones(event), dof, event_ndims=len(event))


class HypersphericalUniform(nn.Module):
    """p(z) constant on unit vectors `[dim]` (Davidson et al. 2018)."""

    dim: int

    spaces: ClassVar[frozenset[Space]] = frozenset({"sphere"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = False
    learned: ClassVar[bool] = False

    def __call__(self, model: Any) -> HypersphericalUniformDistribution:
        """Batch `[]`, event `[dim]`."""
        return HypersphericalUniformDistribution(self.dim)


class UniformCategorical(nn.Module):
    """p(z) = C^-n for each of the one-hot `[n, C]`."""

    num: int
    classes: int

    spaces: ClassVar[frozenset[Space]] = frozenset({"onehot"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = False
    learned: ClassVar[bool] = False

    def __call__(self, model: Any) -> OneHotCategorical:
        """Batch `[]`, event `[n, C]`."""
        return OneHotCategorical(jnp.zeros((self.num, self.classes)), temperature=1.0)


class UniformConcrete(nn.Module):
    """UniformCategorical's relaxation on probability vectors `[n, C]` (Maddison et al. 2017).

    Not the uniform distribution on the simplex: the lower the temperature, the more of its mass is
    near the corners, evenly.
    """

    num: int
    classes: int
    temperature: float

    spaces: ClassVar[frozenset[Space]] = frozenset({"simplex"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = False
    learned: ClassVar[bool] = False

    def __call__(self, model: Any) -> Concrete:
        """Batch `[]`, event `[n, C]`."""
        return Concrete(jnp.zeros((self.num, self.classes)), self.temperature)
