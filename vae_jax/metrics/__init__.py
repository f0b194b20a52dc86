"""How good pictures are: distances between sets of features, and errors image by image."""

from vae_jax.metrics.colour import colour
from vae_jax.metrics.custom import load_features
from vae_jax.metrics.estimate import Estimate
from vae_jax.metrics.frechet import frechet_distance
from vae_jax.metrics.inception import inception
from vae_jax.metrics.kernel import kernel_distance
from vae_jax.metrics.learned import learned
from vae_jax.metrics.precision_recall import precision_recall
from vae_jax.metrics.quality import Quality, Score, quality
from vae_jax.metrics.reconstruction import psnr, ssim
from vae_jax.metrics.spaces import Features, in_chunks, standardized
from vae_jax.metrics.texture import texture

__all__ = [
    "Estimate",
    "Features",
    "Quality",
    "Score",
    "colour",
    "frechet_distance",
    "in_chunks",
    "inception",
    "kernel_distance",
    "learned",
    "load_features",
    "precision_recall",
    "psnr",
    "quality",
    "ssim",
    "standardized",
    "texture",
]
