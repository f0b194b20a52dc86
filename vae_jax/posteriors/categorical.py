"""Posteriors over categories, exact and relaxed."""

import flax.linen as nn
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.distributions import Concrete, OneHotCategorical
from vae_jax.interfaces import Posterior


def _logits(features: Array, num: int, classes: int, kernel_init: Initializer) -> Array:
    """Affine in the features `[B, ...]`, flattened: `[B, num, classes]`. Call it in a module."""
    h = features.reshape(features.shape[0], -1)
    logits = nn.Dense(num * classes, kernel_init=kernel_init, name="logits")(h)
    return logits.reshape(-1, num, classes)


class Categorical(Posterior):
    """q(z|x) of n independent categorical variables, one-hot, with affine logits.

    Samples pass the gradient of their relaxation straight through (Jang et al. 2017, "Categorical
    reparameterization with Gumbel-softmax").

    Attributes:
        num: n variables.
        classes: C categories of each.
        temperature: of the relaxation behind the gradient.
        kernel_init: of the affine map.
    """

    num: int
    classes: int
    temperature: float
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    space = "onehot"
    traits = frozenset({"density", "amortized", "noise"})

    @nn.compact
    def __call__(self, features: Array) -> OneHotCategorical:
        """Features `[B, ...]` to batch `[B]`, event `[n, C]`."""
        logits = _logits(features, self.num, self.classes, self.kernel_init)
        return OneHotCategorical(logits, self.temperature)


class GumbelSoftmax(Posterior):
    """q(z|x) of n independent Concrete variables, probability vectors, with affine logits.

    A density on the simplex with one of the prior's kind beside it, so that the bound is a bound
    (Maddison et al. 2017, "The Concrete distribution").

    Attributes:
        num: n variables.
        classes: C components of each.
        temperature: of the distribution.
        kernel_init: of the affine map.
    """

    num: int
    classes: int
    temperature: float
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    space = "simplex"
    traits = frozenset({"density", "path", "amortized", "noise"})

    @nn.compact
    def __call__(self, features: Array) -> Concrete:
        """Features `[B, ...]` to batch `[B]`, event `[n, C]`."""
        logits = _logits(features, self.num, self.classes, self.kernel_init)
        return Concrete(logits, self.temperature)
