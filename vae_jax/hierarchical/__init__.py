"""Models with several stochastic layers; they return the same Terms as `VAE`."""

from vae_jax.hierarchical.bottom_up import HierarchicalVAE
from vae_jax.hierarchical.ladder import LadderVAE
from vae_jax.hierarchical.skip import SkipVAE

__all__ = ["HierarchicalVAE", "LadderVAE", "SkipVAE"]
