"""p(x|z), from the features of a decoder; see `vae_jax.interfaces.Likelihood`.

Each file holds a likelihood and the density that it alone uses.
"""

from vae_jax.likelihoods.autoregressive import AutoregressivePixels
from vae_jax.likelihoods.bernoulli import Bernoulli
from vae_jax.likelihoods.beta import Beta
from vae_jax.likelihoods.categorical import CategoricalPixels
from vae_jax.likelihoods.charbonnier import Charbonnier
from vae_jax.likelihoods.continuous_bernoulli import ContinuousBernoulli
from vae_jax.likelihoods.gaussian import Gaussian
from vae_jax.likelihoods.heteroscedastic_gaussian import HeteroscedasticGaussian
from vae_jax.likelihoods.laplace import Laplace
from vae_jax.likelihoods.logistic import DiscretizedLogistic
from vae_jax.likelihoods.logistic_mixture import MixtureOfLogistics
from vae_jax.likelihoods.optimal_gaussian import OptimalGaussian
from vae_jax.likelihoods.seen_pixels import SeenPixels

__all__ = [
    "AutoregressivePixels",
    "Bernoulli",
    "Beta",
    "CategoricalPixels",
    "Charbonnier",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Laplace",
    "MixtureOfLogistics",
    "OptimalGaussian",
    "SeenPixels",
]
