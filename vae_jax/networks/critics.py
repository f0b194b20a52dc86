"""Critics: the networks that an adversarial objective plays against.

A model owns its critic, `VAE(..., critic=LatentCritic(MLP((64, 64))))`; its parameters are the
group `critic`, to which `vae_jax.optimizers.by_group` can give a separate optimizer. An example's
logit depends on that example alone, never on the batch.
"""

from typing import TypeVar

import flax.linen as nn
import jax
from jax import Array
from typing_extensions import override

from vae_jax.errors import VaeJaxError
from vae_jax.given import Network, SomeWidths, check_encoder
from vae_jax.interfaces import Model, Part
from vae_jax.networks.layers import Conv

M = TypeVar("M", bound=nn.Module)


def frozen(module: M) -> M:
    """A bound `module` with its parameters held fixed: gradients flow to its inputs alone.

    `frozen(model).decode(z)` trains the module that produced z and not the decoder. During
    initialization the result is the module itself, so that the first call creates its parameters.
    """
    if module.is_initializing():
        return module
    unbound, variables = module.unbind()
    return unbound.bind(jax.lax.stop_gradient(variables))


def critic_of(model: Model) -> nn.Module:
    """The critic of a model; for an objective that requires one, it is checked before training.

    Raises:
        VaeJaxError: the model has no critic.
    """
    if model.critic is None:
        raise VaeJaxError(
            "The objective plays against a critic, and the model has none: give the model "
            "critic=..., and the objective requires = Requirements(critic=...), the critic's class."
        )
    return model.critic


class LatentCritic(Part):
    """Distinguishes two distributions of z: D(z) = sigmoid(logit).

    With equal numbers of examples from both, the optimal logit is the logarithm of their density
    ratio.

    Attributes:
        network: the network from latents to features.

    References:
        Makhzani et al. (2016), "Adversarial autoencoders", section 2.
        Kim & Mnih (2018), "Disentangling by factorising", section 3, whose softmax over two
            logits is equivalent.
    """

    network: Network

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_encoder("network of LatentCritic", self.network)

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Latents `[N, *event]` to logits `[N]`."""
        features = self.network(z)
        return nn.Dense(1, name="logit")(features.reshape(len(features), -1))[..., 0]


class ImageCritic(Part):
    """Distinguishes real images from generated ones, and provides features to compare.

    Attributes:
        body: the network from images to Dis_l(x), the features of the layer l at which images are
            compared; they are normalized for each example to mean 0 and variance 1, so that
            distances between them have a fixed scale.
        head: the network from Dis_l(x) to the features from which the logit is an affine map.

    References:
        Larsen et al. (2016), "Autoencoding beyond pixels using a learned similarity metric".
    """

    body: Network
    head: Network

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_encoder("body of ImageCritic", self.body)
        check_encoder("head of ImageCritic", self.head)

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Images `[N, H, W, C]` to logits `[N]` and normalized Dis_l(x) `[N, F]`."""
        seen = self.body(x).reshape(len(x), -1)
        seen = nn.LayerNorm(use_bias=False, use_scale=False)(seen)
        features = self.head(seen)
        return nn.Dense(1, name="logit")(features.reshape(len(features), -1))[..., 0], seen


class PatchCritic(Part):
    """Distinguishes overlapping patches of real images from those of generated ones.

    4x4 convolutions of stride 2 (the last has stride 1), then one more to the logit of each patch.
    The paper normalizes over pixels and images; here each pixel's features are normalized, as in
    LayerNorm, so that a logit depends on its patch alone. The first layer is not normalized.

    Attributes:
        features: the number of features of each of n layers. The side of a patch is then
            9 * 2^(n-1) - 2 pixels, and the image is halved n - 1 times.

    References:
        Isola et al. (2017), "Image-to-image translation with conditional adversarial networks".
    """

    features: SomeWidths

    @classmethod
    def isola(cls) -> "PatchCritic":
        """The paper's C64-C128-C256-C512, with patches of 70x70 pixels."""
        return cls((64, 128, 256, 512))

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to logits `[N, h, w]`, with h = H / 2^(n-1) rounded up."""
        init = nn.initializers.normal(0.02)
        last = len(self.features) - 1
        for layer, features in enumerate(self.features):
            stride = 2 if layer < last else 1
            x = Conv(features, 4, stride, use_bias=layer == 0, kernel_init=init)(x)
            x = jax.nn.leaky_relu(x if layer == 0 else nn.LayerNorm()(x), 0.2)
        return Conv(1, 4, use_bias=True, kernel_init=init, name="logit")(x)[..., 0]
