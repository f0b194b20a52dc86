"""Invertible maps of vectors with the logarithms of their Jacobian determinants.

A flow is a frozen dataclass of arrays registered with JAX, like a distribution. Its parameters have
batch axes, `[*batch, ...]`, if they come from an encoder, and none if all examples share them.
"""

from vae_jax.flows.autoregressive import MADE, InverseAutoregressive, MaskedAutoregressive
from vae_jax.flows.base import NEAR_ZERO, Flow, Reverse, detach, direction
from vae_jax.flows.coupling import AffineCoupling, CouplingNetwork
from vae_jax.flows.householder import Householder
from vae_jax.flows.ode import solve, solve_with_log_det
from vae_jax.flows.planar import Planar
from vae_jax.flows.sylvester import Sylvester, orthogonalize

__all__ = [
    "MADE",
    "NEAR_ZERO",
    "AffineCoupling",
    "CouplingNetwork",
    "Flow",
    "Householder",
    "InverseAutoregressive",
    "MaskedAutoregressive",
    "Planar",
    "Reverse",
    "Sylvester",
    "detach",
    "direction",
    "orthogonalize",
    "solve",
    "solve_with_log_det",
]
