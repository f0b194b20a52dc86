"""A hierarchy in which every layer is connected to the image."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax.distributions import Distribution, Shape
from vae_jax.hierarchical.base import Hierarchy, exact_kls, sample_layer
from vae_jax.interfaces import Layers, Posterior
from vae_jax.vae import Terms, with_batch


class SkipVAE(Hierarchy, kw_only=True):
    """p(x|z_1, ..., z_L): every layer has a skip connection to the image.

    Inference is top-down, q(z|x) = q(z_L|x) q(z_{L-1}|x, z_L) ... q(z_1|x, z_2). With L = 2 this is
    the HVAE of Tomczak & Welling (2018). Images and latents are concatenated into one vector:
    encoders[L-1] is a network on images, the others on [x, z_{l+1}], and decoders[0] on [z_1, ...,
    z_L]. The prior of z_L may depend on q(z_L|x), as a VampPrior does.

    `Terms.kl` has for each layer the exact KL given the latents above, averaged over their K
    samples; it is None if one has no closed form.

    References:
        Tomczak & Welling (2018), "VAE with a VampPrior", section 4.
    """

    @property
    @override
    def decoded_layers(self) -> int:
        return len(self.encoders)

    @override
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        keys: Key[Array, "B"],
        num_samples: int = 1,
        y: Int[Array, "_"] | None = None,
    ) -> Terms:
        qs = [self.encode(x, y)]
        zs = [sample_layer(qs[0], keys, 0, num_samples)]
        for position in range(1, len(self.encoders)):
            qs.insert(0, self._infer(len(self.encoders) - 1 - position, x, zs[0], y))
            zs.insert(0, sample_layer(qs[0], keys, position, num_samples))
        ps = self._priors(tuple(zs), y)
        return self._terms(x, y, keys, zs, qs, ps, exact_kls(qs, ps, len(x)))

    @override
    def encode(self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None) -> Distribution:
        """q(z_L|x, y), batch `[B]`, of the layer inferred first."""
        return self.posteriors[-1](self.encoders[-1](self._for_encoder(x, y)))

    @override
    def infer(
        self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None
    ) -> tuple[Distribution, ...]:
        qs = [self.encode(x, y)]
        for layer in reversed(range(len(self.encoders) - 1)):
            qs.insert(0, self._infer(layer, x, qs[0].mean, y))
        return tuple(qs)

    @override
    def _inferred(
        self, x: Float[Array, "B H W C"], zs: Layers, y: Int[Array, "_"] | None
    ) -> Sequence[Distribution]:
        below = [self._infer(layer, x, z, y) for layer, z in enumerate(zs[1:])]
        return [*below, self.encode(x, y)]

    @override
    def decode(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Distribution:
        batch, z = self._side_by_side(zs, self.posteriors)
        features = self.decoders[0](self._for_decoder(z, y), self.image_shape)
        return with_batch(self.likelihood(features, self.image_shape), batch)

    def decode_top(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Distribution:
        """p(x | z) for the top n layers, those below at the means of their conditionals.

        Args:
            zs: latents `[..., *event]` of the top n layers, z_L last, as `zs[-n:]` of all.
            y: the labels of a conditional model.
        """
        while len(zs) < len(self.encoders):
            layer = len(self.encoders) - len(zs) - 1
            zs = (self._generate(layer, zs[0], y).mean, *zs)
        return self.decode(zs, y)

    def _infer(
        self,
        layer: int,
        x: Float[Array, "B H W C"],
        z: Float[Array, "..."],
        y: Int[Array, "_"] | None,
    ) -> Distribution:
        """q(z_{layer+1} | x, z_{layer+2}), with layers counted from one."""
        batch, z = self._side_by_side((z,), self.posteriors[layer + 1 :])
        image = self._for_encoder(x, y).reshape(len(x), -1)
        image = jnp.broadcast_to(image, (*batch, image.shape[-1])).reshape(len(z), -1)
        features = self.encoders[layer](jnp.concatenate([image, z], -1))
        return with_batch(self.posteriors[layer](features), batch)

    def _side_by_side(
        self, zs: Layers, posteriors: Sequence[Posterior]
    ) -> tuple[Shape, Float[Array, "N d"]]:
        """The batch of latents, and the latents of all layers in one vector, the bottom first."""
        batch = zs[0].shape[: zs[0].ndim - posteriors[0].event_ndims]
        seen = [q.seen(z).reshape(math.prod(batch), -1) for q, z in zip(posteriors, zs)]  # noqa: B905
        return batch, jnp.concatenate(seen, -1)

    @override
    def _top(self, y: Int[Array, "B"] | None) -> Distribution:
        return self.prior(self, y)
