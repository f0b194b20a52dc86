"""Densities as pytrees.

A distribution is a frozen dataclass of arrays registered with JAX, so that `jax.vmap`, `jax.jit`
and `jax.tree.map(stop_gradient, q)` apply to it. Its parameters have the shape `[*batch, *event]`.
Log-densities are in nats and summed over the event: `log_prob` maps `[K, *batch, *event]` to
`[K, *batch]`.

A density that a single likelihood uses is defined in that likelihood's file.
"""

from vae_jax.distributions.base import (
    Bounded,
    Distribution,
    Elementwise,
    Shape,
    Shared,
    exact_kl,
    limited,
    log_prob_or_bound,
    on_unit,
    one_event_axis,
    promised,
    register_kl,
    sample_each,
    sum_event,
)
from vae_jax.distributions.categorical import Concrete, OneHotCategorical
from vae_jax.distributions.codes import (
    BoundedCoded,
    Codebook,
    Coded,
    ProductCodebook,
    Quantized,
    VectorCodebook,
    nearest,
)
from vae_jax.distributions.heavy_tailed import LaplaceDistribution, StudentT
from vae_jax.distributions.hypersphere import (
    HypersphericalUniformDistribution,
    VonMisesFisherDistribution,
)
from vae_jax.distributions.mixture import Mixture
from vae_jax.distributions.normal import LOG_SCALE_RANGE, MultivariateNormal, Normal
from vae_jax.distributions.transformed import Transformed

__all__ = [
    "LOG_SCALE_RANGE",
    "Bounded",
    "BoundedCoded",
    "Codebook",
    "Coded",
    "Concrete",
    "Distribution",
    "Elementwise",
    "HypersphericalUniformDistribution",
    "LaplaceDistribution",
    "Mixture",
    "MultivariateNormal",
    "Normal",
    "OneHotCategorical",
    "ProductCodebook",
    "Quantized",
    "Shape",
    "Shared",
    "StudentT",
    "Transformed",
    "VectorCodebook",
    "VonMisesFisherDistribution",
    "exact_kl",
    "limited",
    "log_prob_or_bound",
    "nearest",
    "on_unit",
    "one_event_axis",
    "promised",
    "register_kl",
    "sample_each",
    "sum_event",
]
