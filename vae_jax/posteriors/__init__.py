"""q(z|x), from the features of a network; see `vae_jax.interfaces.Posterior`."""

from vae_jax.posteriors.categorical import Categorical, GumbelSoftmax
from vae_jax.posteriors.codes import (
    FiniteScalarQuantized,
    LookupFree,
    ResidualVectorQuantized,
    VectorQuantized,
)
from vae_jax.posteriors.deterministic import Deterministic
from vae_jax.posteriors.flows import (
    HouseholderFlow,
    HouseholderSylvesterFlow,
    InverseAutoregressiveFlow,
    PlanarFlow,
    SylvesterFlow,
    TriangularSylvesterFlow,
)
from vae_jax.posteriors.gaussian import DiagonalGaussian, FullCovarianceGaussian
from vae_jax.posteriors.hypersphere import VonMisesFisher

__all__ = [
    "Categorical",
    "Deterministic",
    "DiagonalGaussian",
    "FiniteScalarQuantized",
    "FullCovarianceGaussian",
    "GumbelSoftmax",
    "HouseholderFlow",
    "HouseholderSylvesterFlow",
    "InverseAutoregressiveFlow",
    "LookupFree",
    "PlanarFlow",
    "ResidualVectorQuantized",
    "SylvesterFlow",
    "TriangularSylvesterFlow",
    "VectorQuantized",
    "VonMisesFisher",
]
