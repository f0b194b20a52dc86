"""Conditional models: p(x|z, y) and q(z|x, y) for a class y.

Labels y are an ordinary argument of the model's methods: integers `[B]` for B examples, or `[1]`,
one for all. If there are N inputs, a multiple of B, as with samples `[K, B, ...]`, input n has the
label n mod B.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.errors import VaeJaxError
from vae_jax.given import Count
from vae_jax.interfaces import Labels


class LabelEmbedding(Labels):
    """A learned vector for each class, appended to the inputs of encoder and decoder.

    It is appended along the last axis: as channels to images and maps, as components to vectors and
    to each vector of a set. Encoder and decoder have separate vectors, so that either can be
    trained or frozen alone.

    Attributes:
        num_classes: the number of classes; labels are 0 to `num_classes` - 1.
        width: the number of components of each vector.

    References:
        Kingma et al. (2014), "Semi-supervised learning with deep generative models", where y is
            one-hot.
        Sohn et al. (2015), "Learning structured output representation using deep conditional
            generative models".
    """

    width: Count

    def setup(self):
        """One embedding for the encoder, one for the decoder."""
        self.encoder, self.decoder = (
            nn.Embed(self.num_classes, self.width, embedding_init=nn.initializers.normal(1.0))
            for _ in range(2)
        )

    @override
    def for_encoder(
        self, x: Float[Array, "N *axes C"], y: Int[Array, "B"] | None
    ) -> Float[Array, "N *axes C+{self.width}"]:
        """The input of an encoder: images or latents x with the vectors of their labels y."""
        return self._append(x, y, self.encoder)

    @override
    def for_decoder(
        self, z: Float[Array, "N *axes d"], y: Int[Array, "B"] | None
    ) -> Float[Array, "N *axes d+{self.width}"]:
        """The input of a decoder: latents z with the vectors of their labels y."""
        return self._append(z, y, self.decoder)

    def _append(
        self, inputs: Float[Array, "N ..."], y: Int[Array, "B"] | None, embedding: nn.Embed
    ) -> Float[Array, "N ..."]:
        y = labels_or_zero(y, self)
        if len(inputs) % len(y):
            raise VaeJaxError(
                f"{len(y)} labels were given for {len(inputs)} inputs: give one label for each, "
                "or one for all."
            )
        vectors = jnp.tile(embedding(y), (len(inputs) // len(y), 1))
        vectors = vectors.reshape(len(inputs), *[1] * (inputs.ndim - 2), self.width)
        beside = jnp.broadcast_to(vectors, (*inputs.shape[:-1], self.width))
        return jnp.concatenate([inputs, beside.astype(inputs.dtype)], -1)


def labels_or_zero(y: Int[Array, "B"] | None, part: nn.Module) -> Int[Array, "B"]:
    """The labels y of `part`; a single zero while parameters are initialized without any.

    Raises:
        VaeJaxError: `y` is None outside of initialization.
    """
    if y is not None:
        return y
    if part.is_initializing():
        return jnp.zeros(1, jnp.int32)
    raise VaeJaxError(
        "The model is conditional and was given no labels: pass them as y, integers [B]."
    )


def dropped(
    y: Int[Array, "N"], keys: Key[Array, "N"], none: int, probability: float
) -> Int[Array, "N"]:
    """Labels, each replaced by "no class" with a probability.

    Args:
        y: the labels.
        keys: typed keys, one for each label.
        none: the label that stands for no class.
        probability: the probability of a replacement.

    References:
        Ho & Salimans (2022), "Classifier-free diffusion guidance", algorithm 1.
    """
    uniform = random.draw(jax.random.uniform, random.purpose(keys, "drop"), (), y.shape)
    return jnp.where(uniform >= probability, y, none)


def check_guidance(
    part: nn.Module, num_classes: int | None, drop_labels: float, guidance: float
) -> None:
    """Check that a prior with guidance has classes to be guided to, and also learns p(z).

    Args:
        part: the prior, for messages.
        num_classes: its number of classes, or None.
        drop_labels: the probability with which labels are dropped.
        guidance: the weight of guidance.

    Raises:
        VaeJaxError: it has no classes, or no labels are dropped.
    """
    name = type(part).__name__
    if guidance > 0 and num_classes is None:
        raise VaeJaxError(
            f"{name} has guidance {guidance:g} and no classes to be guided to: give "
            "num_classes, that of a conditional model, or leave the guidance at 0."
        )
    if guidance > 0 and drop_labels == 0:
        raise VaeJaxError(
            f"{name} is guided away from p(z), which it learns where labels are dropped, and "
            "drop_labels is 0: give drop_labels=0.1 in training, or leave the guidance at 0."
        )
