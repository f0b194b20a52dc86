"""Binary pixels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float, Key, Num
from typing_extensions import override

from vae_jax import random
from vae_jax.cpu.softplus import softplus
from vae_jax.distributions import Elementwise, Shape, on_unit, register_kl, sum_event
from vae_jax.interfaces import Likelihood


@struct.dataclass
class BernoulliDistribution(Elementwise):
    """P(x = 1) = sigmoid(loc) on values 0 and 1: `loc` holds the logits."""

    @property
    def mean(self) -> Float[Array, "..."]:
        """The probabilities of 1, never logits."""
        return jax.nn.sigmoid(self.loc)

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Zeros and ones, in the type of the logits; not reparameterized."""
        uniform = random.draw(jax.random.uniform, key, sample_shape, self.loc.shape)
        return (uniform < self.mean).astype(self.loc.dtype)

    def component_log_prob(self, value: Num[Array, "..."]) -> Float[Array, "..."]:
        """x l - ln(1 + e^l): finite, with finite gradients, at any logit."""
        return on_unit(value, value * self.loc - softplus(self.loc))


@register_kl(BernoulliDistribution, BernoulliDistribution)
def _kl_bernoulli_bernoulli(
    q: BernoulliDistribution, p: BernoulliDistribution
) -> Float[Array, "..."]:
    # In terms of the value that is rarer under q, so that large logits do not cancel.
    sign = jnp.where(q.loc > 0, -1.0, 1.0)
    of_q, of_p = sign * q.loc, sign * p.loc
    kl = jax.nn.sigmoid(of_q) * (of_q - of_p) - softplus(of_q) + softplus(of_p)
    return sum_event(kl, q.event_ndims)


class Bernoulli(Likelihood):
    """p(x|z) = prod Bernoulli(x_i; sigmoid(logit_i)), for binary images.

    Attributes:
        kernel_init: the initializer of the kernel of the affine map to logits.
        bias_init: the initializer of its bias; it may give the logits of the training mean, as in
            Burda et al. (2015).

    References:
        Kingma & Welling (2013), "Auto-encoding variational Bayes", appendix C.1.
    """

    kernel_init: Initializer = nn.initializers.glorot_uniform()
    bias_init: Initializer = nn.initializers.zeros

    supports = frozenset({"binary"})
    measure = "mass"

    @nn.compact
    @override
    def __call__(
        self, features: Float[Array, "N ..."], image_shape: Shape
    ) -> BernoulliDistribution:
        logits = self.per_pixel(features, image_shape, "logits", self.kernel_init, self.bias_init)
        return BernoulliDistribution(logits, event_ndims=3)
