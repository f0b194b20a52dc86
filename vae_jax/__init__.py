"""Variational autoencoders for images: encoder x posterior x prior x decoder x likelihood x objective."""

from vae_jax.data import Data, load
from vae_jax.errors import VaeJaxError
from vae_jax.evaluate import Evaluation, evaluate
from vae_jax.experiment import Experiment
from vae_jax.hierarchical import HierarchicalVAE
from vae_jax.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian, HeteroscedasticGaussian
from vae_jax.networks import MLP, ConvDecoder, ConvEncoder
from vae_jax.objectives import ELBO, IWAE
from vae_jax.posteriors import DiagonalGaussian
from vae_jax.priors import StandardNormal, VampPrior
from vae_jax.train import load_run, train
from vae_jax.vae import VAE, Terms

__all__ = [
    "ELBO",
    "IWAE",
    "MLP",
    "VAE",
    "Bernoulli",
    "ConvDecoder",
    "ConvEncoder",
    "Data",
    "DiagonalGaussian",
    "DiscretizedLogistic",
    "Evaluation",
    "Experiment",
    "Gaussian",
    "HeteroscedasticGaussian",
    "HierarchicalVAE",
    "StandardNormal",
    "Terms",
    "VaeJaxError",
    "VampPrior",
    "evaluate",
    "load",
    "load_run",
    "train",
]
