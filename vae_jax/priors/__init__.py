"""p(z), the density from which latents are drawn; see `vae_jax.interfaces.Prior`."""

from vae_jax.priors.codes import AutoregressiveCodes, UniformCodes
from vae_jax.priors.diffusion import Diffusion
from vae_jax.priors.flow_matching import FlowMatching
from vae_jax.priors.flows import MaskedAutoregressiveFlow, RealNVP
from vae_jax.priors.givt import GIVT
from vae_jax.priors.masked import MaskedCodes
from vae_jax.priors.mixtures import GaussianMixture, VampPrior
from vae_jax.priors.simple import (
    HypersphericalUniform,
    StandardLaplace,
    StandardNormal,
    StandardStudentT,
    UniformCategorical,
    UniformConcrete,
)

__all__ = [
    "GIVT",
    "AutoregressiveCodes",
    "Diffusion",
    "FlowMatching",
    "GaussianMixture",
    "HypersphericalUniform",
    "MaskedAutoregressiveFlow",
    "MaskedCodes",
    "RealNVP",
    "StandardLaplace",
    "StandardNormal",
    "StandardStudentT",
    "UniformCategorical",
    "UniformCodes",
    "UniformConcrete",
    "VampPrior",
]
