"""Critics: networks that an adversarial objective plays against, and how to hold them fixed.

A model owns its critic, `VAE(..., critic=LatentCritic(MLP((64, 64))))`; its parameters are the
group `critic`, which `vae_jax.optimizers.by_group` can give an optimizer of its own. Nothing in a
critic may look at the batch: an example's logit does not depend on its neighbours.
"""

from collections.abc import Sequence
from typing import TypeVar

import flax.linen as nn
import jax
from jax import Array

from vae_jax.cpu.convolution import conv
from vae_jax.interfaces import Model

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


def critic_of(model: Model) -> nn.Module:
    """The critic of a model; that it has one is checked before training."""
    assert model.critic is not None
    return model.critic


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


class PatchCritic(nn.Module):
    """Tells overlapping patches of images from those of generated ones (Isola et al. 2017).

    4x4 convolutions: of stride 2 but for the last width's, and then one more to the logit of each
    patch. So that a logit is of its patch alone, a pixel's channels are normalized, as in
    LayerNorm, where the paper normalizes over pixels and images. The first layer is not normalized.

    Attributes:
        features: channels of each layer. With n of them a patch has 9 * 2^(n-1) - 2 pixels on each
            side, and the image is halved n - 1 times.
    """

    features: Sequence[int]

    @classmethod
    def isola(cls) -> "PatchCritic":
        """The paper's, whose patches are of 70x70 pixels: C64-C128-C256-C512."""
        return cls((64, 128, 256, 512))

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to logits `[N, h, w]`, with h = H / 2^(n-1) rounded up."""
        last = len(self.features) - 1
        for layer, width in enumerate(self.features):
            kernel = self.param(
                f"kernel_{layer}", nn.initializers.normal(0.02), (4, 4, x.shape[-1], width)
            )
            x = conv(x, kernel, stride=2 if layer < last else 1)
            if layer == 0:
                x += self.param("bias_0", nn.initializers.zeros, (width,))
            else:
                x = nn.LayerNorm()(x)
            x = jax.nn.leaky_relu(x, 0.2)
        kernel = self.param("kernel_logit", nn.initializers.normal(0.02), (4, 4, x.shape[-1], 1))
        bias = self.param("bias_logit", nn.initializers.zeros, (1,))
        return (conv(x, kernel, stride=1) + bias)[..., 0]
