"""Priors without structure: standard densities of independent components, and uniform ones."""

import math
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int
from typing_extensions import override

from vae_jax.distributions import (
    Concrete,
    HypersphericalUniformDistribution,
    LaplaceDistribution,
    Normal,
    OneHotCategorical,
    StudentT,
    limited,
)
from vae_jax.given import Bounds, Count, LatentShape, Positive
from vae_jax.interfaces import Model, Prior, latent_shape

LOG_DOF_RANGE = (0.0, 10.0)


class StandardNormal(Prior):
    """p(z) = N(0, I).

    Attributes:
        shape: the shape of z: d, (n, d) or (h, w, c).

    References:
        Kingma & Welling (2013), "Auto-encoding variational Bayes".
    """

    shape: LatentShape

    factors = True

    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Normal:
        event = latent_shape(self.shape)
        return Normal(jnp.zeros(event), jnp.ones(event), event_ndims=len(event))


class StandardLaplace(Prior):
    """p(z) = prod Laplace(z_j; 0, 1), which favours sparse latents.

    Its KL from a Gaussian q(z|x) has a closed form.

    Attributes:
        shape: the shape of z: d, (n, d) or (h, w, c).
    """

    shape: LatentShape

    factors = True

    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> LaplaceDistribution:
        event = latent_shape(self.shape)
        return LaplaceDistribution(jnp.zeros(event), jnp.ones(event), event_ndims=len(event))


class StandardStudentT(Prior):
    """p(z) = prod t(z_j), Student's t of location 0 and scale 1.

    Attributes:
        shape: the shape of z: d, (n, d) or (h, w, c).
        dof: the degrees of freedom of all components; None learns them as one parameter, from 5 at
            initialization, within 1/e (heavier tails than a Cauchy distribution, dof = 1) and e^11
            (practically a normal).
    """

    shape: LatentShape
    dof: Positive | None = None

    factors = True

    @nn.compact
    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> StudentT:
        if self.dof is None:
            log_dof = self.param("log_dof", nn.initializers.constant(math.log(5.0)), ())
            dof = jnp.exp(limited(log_dof, *LOG_DOF_RANGE))
        else:
            dof = jnp.asarray(self.dof)
        event = latent_shape(self.shape)
        dof = jnp.broadcast_to(dof, event)
        return StudentT(jnp.zeros(event), jnp.ones(event), dof, event_ndims=len(event))


class HypersphericalUniform(Prior):
    """p(z) constant on unit vectors.

    Attributes:
        dim: the number of components d of the vectors.

    References:
        Davidson et al. (2018), "Hyperspherical variational auto-encoders".
    """

    dim: Annotated[int, Bounds(least=2)]

    spaces = frozenset({"sphere"})

    @override
    def __call__(
        self, model: Model, y: Int[Array, "B"] | None = None
    ) -> HypersphericalUniformDistribution:
        return HypersphericalUniformDistribution(self.dim)


class UniformCategorical(Prior):
    """p(z) = C^-n on one-hot vectors `[n, C]`.

    Attributes:
        num: the number of variables n.
        classes: the number of categories C of each.
    """

    num: Count
    classes: Annotated[int, Bounds(least=2)]

    spaces = frozenset({"onehot"})

    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> OneHotCategorical:
        return OneHotCategorical(jnp.zeros((self.num, self.classes)), temperature=1.0)


class UniformConcrete(Prior):
    """The relaxation of `UniformCategorical` to probability vectors `[n, C]`.

    It is not uniform on the simplex: at lower temperatures more of its mass is near the corners,
    equally near each of them.

    Attributes:
        num: the number of variables n.
        classes: the number of components C of each.
        temperature: the temperature of the relaxation.

    References:
        Maddison et al. (2017), "The Concrete distribution: a continuous relaxation of discrete
            random variables".
    """

    num: Count
    classes: Annotated[int, Bounds(least=2)]
    temperature: Positive

    spaces = frozenset({"simplex"})

    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Concrete:
        return Concrete(jnp.zeros((self.num, self.classes)), self.temperature)
