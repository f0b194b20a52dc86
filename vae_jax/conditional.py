"""Conditional models: p(x|z, y) and q(z|x, y) for a class y (Kingma et al. 2014; Sohn et al. 2015).

Labels y are an argument of the model's methods like any other: integers `[B]` of B examples, or
`[1]`, one for all. Among inputs `[N, ...]`, N a multiple of B as samples `[K, B, ...]` make it,
input n has the label of n mod B.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vae_jax.distributions import Normal
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Model, Prior, latent_shape


class LabelEmbedding(nn.Module):
    """A learned vector for each class, beside what the encoder and the decoder are given.

    It is appended along the last axis: as channels to images and maps, as components to vectors;
    each vector of a set has it. Encoder and decoder have vectors of their own, so that what moves
    or freezes one leaves the other alone.

    Attributes:
        num_classes: the number of classes; labels are 0 to `num_classes` - 1.
        width: the number of components of each vector.

    References:
        Kingma et al. (2014), "Semi-supervised learning with deep generative models", where y is
        one-hot; Sohn et al. (2015), "Learning structured output representation using deep
        conditional generative models".
    """

    num_classes: int
    width: int

    def setup(self):
        """One embedding for the encoder, one for the decoder."""
        self.encoder, self.decoder = (
            nn.Embed(self.num_classes, self.width, embedding_init=nn.initializers.normal(1.0))
            for _ in range(2)
        )

    def for_encoder(self, x: Array, y: Array | None) -> Array:
        """Images `[N, H, W, C]` to `[N, H, W, C + width]`; latents as for the decoder."""
        return self._append(x, y, self.encoder)

    def for_decoder(self, z: Array, y: Array | None) -> Array:
        """Latents `[N, ..., d]` to `[N, ..., d + width]`."""
        return self._append(z, y, self.decoder)

    def _append(self, inputs: Array, y: Array | None, embedding: nn.Embed) -> Array:
        y = given(y, self)
        if len(inputs) % len(y):
            raise VaeJaxError(f"{len(y)} labels were given for {len(inputs)} inputs.")
        vectors = jnp.tile(embedding(y), (len(inputs) // len(y), 1))
        vectors = vectors.reshape(len(inputs), *[1] * (inputs.ndim - 2), self.width)
        beside = jnp.broadcast_to(vectors, (*inputs.shape[:-1], self.width))
        return jnp.concatenate([inputs, beside.astype(inputs.dtype)], -1)


def given(y: Array | None, part: nn.Module) -> Array:
    """The labels; zeros `[1]` while parameters are being initialized without any.

    Raises:
        VaeJaxError: there are none.
    """
    if y is not None:
        return y
    if part.is_initializing():
        return jnp.zeros(1, jnp.int32)
    raise VaeJaxError(
        "The model is conditional and was given no labels: pass them as y, integers [B]."
    )


class ClassGaussian(Prior):
    """p(z|y) = N(z; m_y, diag s_y²), learned with the rest of a conditional model.

    Starts from scales of one and means drawn from N(0, I).

    Attributes:
        num_classes: the number of classes.
        shape: the shape of z: d, (n, d) or (h, w, c).
    """

    num_classes: int
    shape: int | tuple[int, ...]

    factors = True

    def setup(self):
        """`loc` and `log_scale`: `[num_classes, *shape]`."""
        event = latent_shape(self.shape)
        self.loc = self.param("loc", nn.initializers.normal(1.0), (self.num_classes, *event))
        self.log_scale = self.param("log_scale", nn.initializers.zeros, self.loc.shape)

    @property
    def label_classes(self) -> int:
        """The number of classes."""
        return self.num_classes

    def __call__(self, model: Model, y: Array | None = None) -> Normal:
        """Batch `[B]`, one density for each label of y; event `[*shape]`."""
        y = given(y, self)
        return Normal(self.loc[y], jnp.exp(self.log_scale[y]), event_ndims=self.loc.ndim - 1)

    def carry(self, z: Array, source: ArrayLike, target: ArrayLike) -> Array:
        """z of one class as if of another: m_b + s_b (z - m_a) / s_a keeps the deviation.

        Args:
            z: latents `[..., *shape]`; where z ~ p(z|a), what returns is distributed as p(z|b).
            source: the class a.
            target: the class b.
        """
        ratio = jnp.exp(self.log_scale[target] - self.log_scale[source])
        return self.loc[target] + ratio * (z - self.loc[source])
