"""Critics: networks that an adversarial objective plays against, and how to hold them fixed.

A model owns its critic, `VAE(..., critic=LatentCritic(MLP((64, 64))))`; its parameters are the
group `critic`, which `vae_jax.optimizers.by_group` can give an optimizer of its own. Nothing in a
critic may look at the batch: an example's logit does not depend on its neighbours.
"""

from typing import TypeVar

import flax.linen as nn
import jax
from jax import Array

M = TypeVar("M", bound=nn.Module)


def frozen(module: M) -> M:
    """The same bound module with its parameters held fixed: gradients reach its inputs alone.

    `frozen(model).decode(z)` moves what made z and not the decoder. While parameters are being
    initialized it is the module itself, so that they are made wherever it is called first.
    """
    if module.is_initializing():
        return module
    unbound, variables = module.unbind()
    return unbound.bind(jax.lax.stop_gradient(variables))


class LatentCritic(nn.Module):
    """Tells two distributions of z apart: D(z) = sigmoid(logit).

    At its optimum for as many examples of either, the logit is the log of their density ratio. (A
    pair of logits with a softmax, as in Kim & Mnih 2018, is this one: their difference is affine
    in the features too.)

    Attributes:
        network: from latents to features.
    """

    network: nn.Module

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Latents `[N, *event]` to logits `[N]`."""
        features = self.network(z)
        return nn.Dense(1, name="logit")(features.reshape(len(features), -1))[..., 0]


class ImageCritic(nn.Module):
    """Tells images from generated ones, and offers what it sees in them (Larsen et al. 2016).

    Attributes:
        body: from images to Dis_l(x), the features of the layer l where images are compared. They
            are normalized over each example to mean 0 and variance 1, so that a distance between
            them has a scale.
        head: from these to the features of which the logit is an affine map.
    """

    body: nn.Module
    head: nn.Module

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Images `[N, H, W, C]` to logits `[N]` and features `[N, F]`."""
        seen = self.body(x).reshape(len(x), -1)
        seen = nn.LayerNorm(use_bias=False, use_scale=False)(seen)
        features = self.head(seen)
        return nn.Dense(1, name="logit")(features.reshape(len(features), -1))[..., 0], seen
