"""p(z), the density from which latents are drawn; see `vae_jax.interfaces.Prior`."""

from vae_jax.priors.autoregressive_codes import AutoregressiveCodes
from vae_jax.priors.codes import UniformCodes
from vae_jax.priors.diffusion import Diffusion
from vae_jax.priors.flow_matching import FlowMatching
from vae_jax.priors.gaussian_mixture import GaussianMixture
from vae_jax.priors.givt import GIVT
from vae_jax.priors.masked import MaskedCodes
from vae_jax.priors.masked_autoregressive import MaskedAutoregressiveFlow
from vae_jax.priors.real_nvp import RealNVP
from vae_jax.priors.simple import (
    HypersphericalUniform,
    StandardLaplace,
    StandardNormal,
    StandardStudentT,
    UniformCategorical,
    UniformConcrete,
)
from vae_jax.priors.vamp import VampPrior

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
