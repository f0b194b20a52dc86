"""q(z|x), from the features of a network; see `vae_jax.interfaces.Posterior`."""

from vae_jax.posteriors.categorical import Categorical, GumbelSoftmax
from vae_jax.posteriors.deterministic import Deterministic
from vae_jax.posteriors.finite_scalar import FiniteScalarQuantized
from vae_jax.posteriors.gaussian import DiagonalGaussian, FullCovarianceGaussian
from vae_jax.posteriors.householder import HouseholderFlow
from vae_jax.posteriors.hypersphere import VonMisesFisher
from vae_jax.posteriors.inverse_autoregressive import InverseAutoregressiveFlow
from vae_jax.posteriors.lookup_free import LookupFree
from vae_jax.posteriors.planar import PlanarFlow
from vae_jax.posteriors.sylvester import (
    HouseholderSylvesterFlow,
    SylvesterFlow,
    TriangularSylvesterFlow,
)
from vae_jax.posteriors.vector_quantized import ResidualVectorQuantized, VectorQuantized

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
