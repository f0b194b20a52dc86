"""Posteriors over categorical variables, exact and relaxed."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float
from typing_extensions import override

from vae_jax.distributions import Concrete, OneHotCategorical
from vae_jax.given import Bounds, Count, Positive
from vae_jax.interfaces import Posterior


def _logits(
    features: Float[Array, "B ..."], num: int, classes: int, kernel_init: Initializer
) -> Float[Array, "B n C"]:
    """An affine map of the flattened features; call it in a compact method."""
    h = features.reshape(features.shape[0], -1)
    logits = nn.Dense(num * classes, kernel_init=kernel_init, name="logits")(h)
    return logits.reshape(-1, num, classes)


class Categorical(Posterior):
    """q(z|x) of n independent one-hot categorical variables with affine logits.

    Samples have the gradient of their relaxation, passed straight through.

    Attributes:
        num: the number of variables n.
        classes: the number of categories C of each.
        temperature: the temperature of the relaxation.
        kernel_init: the initializer of the affine map.

    References:
        Jang et al. (2017), "Categorical reparameterization with Gumbel-softmax".
    """

    num: Count
    classes: Annotated[int, Bounds(least=2)]
    temperature: Positive
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    space = "onehot"
    traits = frozenset({"density", "amortized", "noise"})

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."]) -> OneHotCategorical:
        logits = _logits(features, self.num, self.classes, self.kernel_init)
        return OneHotCategorical(logits, self.temperature)


class GumbelSoftmax(Posterior):
    """q(z|x) of n independent Concrete variables, relaxed one-hot vectors, with affine logits.

    z holds the logarithms of probability vectors; networks receive their exponentials. Both q(z|x)
    and the prior `UniformConcrete` are densities on the simplex, so the ELBO is a valid bound.

    Attributes:
        num: the number of variables n.
        classes: the number of components C of each.
        temperature: the temperature of the distribution.
        kernel_init: the initializer of the affine map.

    References:
        Maddison et al. (2017), "The Concrete distribution: a continuous relaxation of discrete
            random variables".
        Jang et al. (2017), "Categorical reparameterization with Gumbel-softmax".
    """

    num: Count
    classes: Annotated[int, Bounds(least=2)]
    temperature: Positive
    kernel_init: Initializer = nn.initializers.glorot_uniform()

    space = "simplex"
    traits = frozenset({"density", "path", "amortized", "noise"})

    @nn.compact
    @override
    def __call__(self, features: Float[Array, "N ..."]) -> Concrete:
        logits = _logits(features, self.num, self.classes, self.kernel_init)
        return Concrete(logits, self.temperature)

    @override
    def seen(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.exp(z)
