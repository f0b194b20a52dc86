"""The quality of images: distances between sets of features, and errors image by image."""

from vae_jax.metrics.custom import load_features
from vae_jax.metrics.distances import (
    Estimate,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from vae_jax.metrics.handmade import colour, texture
from vae_jax.metrics.inception import inception_features
from vae_jax.metrics.learned import learned_features
from vae_jax.metrics.quality import Quality, Score, measure_quality
from vae_jax.metrics.reconstruction import nearest_pictures, psnr, ssim
from vae_jax.metrics.spaces import Features, in_chunks, standardized

__all__ = [
    "Estimate",
    "Features",
    "Quality",
    "Score",
    "colour",
    "frechet_distance",
    "in_chunks",
    "inception_features",
    "kernel_distance",
    "learned_features",
    "load_features",
    "measure_quality",
    "nearest_pictures",
    "precision_recall",
    "psnr",
    "ssim",
    "standardized",
    "texture",
]
