"""Binary pixels."""

import flax.linen as nn
import jax
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax import random
from vae_jax.distributions import Elementwise, Shape, register_kl, sum_event
from vae_jax.interfaces import Likelihood
from vae_jax.likelihoods.base import softplus


@struct.dataclass
class BernoulliDistribution(Elementwise):
    """P(x = 1) = sigmoid(loc): `loc` holds logits, values are 0 or 1."""

    @property
    def mean(self) -> Array:
        """Probabilities, never logits."""
        return jax.nn.sigmoid(self.loc)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Zeros and ones, float."""
        uniform = random.draw(jax.random.uniform, key, sample_shape, self.loc.shape)
        return (uniform < self.mean).astype(self.loc.dtype)

    def component_log_prob(self, value: Array) -> Array:
        """x l - ln(1 + e^l): finite, with finite gradients, at any logit."""
        return value * self.loc - softplus(self.loc)


@register_kl(BernoulliDistribution, BernoulliDistribution)
def _kl_bernoulli_bernoulli(q: BernoulliDistribution, p: BernoulliDistribution) -> Array:
    kl = q.mean * (q.loc - p.loc) - softplus(q.loc) + softplus(p.loc)
    return sum_event(kl, q.event_ndims)


class Bernoulli(Likelihood):
    """p(x|z) = prod Bernoulli(x_i; sigmoid(logit_i)), for binary images.

    Attributes:
        kernel_init, bias_init: of the affine map to logits. `bias_init` may hold the training
            mean's logits, as Burda et al. (2015) do.
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()
    bias_init: Initializer = nn.initializers.zeros

    supports = frozenset({"binary"})
    measure = "mass"

    @nn.compact
    def __call__(self, features: Array, image_shape: Shape) -> BernoulliDistribution:
        """Features `[N, ...]` to batch `[N]`, event `[H, W, C]`."""
        logits = self.per_pixel(features, image_shape, "logits", self.kernel_init, self.bias_init)
        return BernoulliDistribution(logits, event_ndims=3)
