"""A prior of a trained model's latents, fitted as a separate run."""

from vae_jax.second_stage.fit import fit_prior
from vae_jax.second_stage.objective import FitPrior

__all__ = ["FitPrior", "fit_prior"]
