"""Conditional models: p(x|z, y) and q(z|x, y) for a class y (Kingma et al. 2014; Sohn et al. 2015).

Labels are given to a model with its variables, not as one more argument of its methods: networks,
objectives and estimators need not know of them, and one that calls `model.decode(z)` decodes with
the labels of the examples at hand.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from vae_jax.compatibility import Space, Trait, latent_shape
from vae_jax.data import Split
from vae_jax.distributions import Normal

GIVEN = "given"  # the collection that labels are in


def given(variables: Any, labels: ArrayLike | None) -> dict[str, Any]:
    """A conditional model's variables with labels; None, for other models, changes nothing.

    Args:
        variables: the model's.
        labels: integers `[B]` of B examples, or `[1]`, one for all. Of `[N, ...]` inputs, N a
            multiple of B as samples `[K, B, ...]` make it, input n has the label of n mod B.
    """
    if labels is None:
        return variables
    return {**variables, GIVEN: {"labels": {"y": jnp.asarray(labels)}}}


def labels_of(model: Any, split: Split, rows: Array) -> Array | None:
    """What `given` takes for images of a split, `[B]`; None where the model takes no labels.

    They are constants of the program that is being traced: of a million images, 4 MB.
    """
    return None if model.labels is None else jnp.asarray(split.labels)[rows]


class LabelEmbedding(nn.Module):
    """A vector for each class, learned, beside what the encoder and the decoder are given.

    It is appended along the last axis: as channels to images and maps, as components to vectors, of
    which a set's each has it. Encoder and decoder have vectors of their own, so that what moves or
    freezes one leaves the other alone.

    Attributes:
        num_classes: of the labels, 0 to `num_classes` - 1.
        width: components of each vector.

    References:
        Kingma et al. (2014), "Semi-supervised learning with deep generative models", where y is
        one-hot; Sohn et al. (2015), "Learning structured output representation using deep
        conditional generative models".
    """

    num_classes: int
    width: int

    def setup(self):
        """While parameters are being initialized, all labels are 0."""
        self.encoder, self.decoder = (
            nn.Embed(self.num_classes, self.width, embedding_init=nn.initializers.normal(1.0))
            for _ in range(2)
        )
        if not (self.is_initializing() or self.has_variable(GIVEN, "y")):
            raise ValueError(
                "the model is conditional and was given no labels: pass "
                "`vae_jax.conditional.given(variables, labels)` as its variables"
            )
        self.y = self.variable(GIVEN, "y", lambda: jnp.zeros(1, jnp.int32))

    def labels(self) -> Array:
        """Those that were given, `[B]`."""
        return self.y.value

    def for_encoder(self, x: Array) -> Array:
        """Images `[N, H, W, C]` to `[N, H, W, C + width]`; latents as for the decoder."""
        return self._append(x, self.encoder)

    def for_decoder(self, z: Array) -> Array:
        """Latents `[N, ..., d]` to `[N, ..., d + width]`."""
        return self._append(z, self.decoder)

    def _append(self, inputs: Array, embedding: nn.Embed) -> Array:
        if len(inputs) % len(self.y.value):
            raise ValueError(f"{len(self.y.value)} labels were given for {len(inputs)} inputs")
        vectors = jnp.tile(embedding(self.y.value), (len(inputs) // len(self.y.value), 1))
        vectors = vectors.reshape(len(inputs), *[1] * (inputs.ndim - 2), self.width)
        beside = jnp.broadcast_to(vectors, (*inputs.shape[:-1], self.width))
        return jnp.concatenate([inputs, beside.astype(inputs.dtype)], -1)


class ClassGaussian(nn.Module):
    """p(z|y) = N(z; m_y, diag s_y²), learned with the rest of a conditional model.

    Starts from scales of one and means drawn from N(0, I).

    Attributes:
        num_classes: of the labels.
        shape: of z: an int d means a vector `[d]`.
    """

    num_classes: int
    shape: int | tuple[int, ...]

    spaces: ClassVar[frozenset[Space]] = frozenset({"real"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = True
    learned: ClassVar[bool] = True

    def setup(self):
        """`loc` and `log_scale`: `[num_classes, *shape]`."""
        event = latent_shape(self.shape)
        self.loc = self.param("loc", nn.initializers.normal(1.0), (self.num_classes, *event))
        self.log_scale = self.param("log_scale", nn.initializers.zeros, self.loc.shape)

    def __call__(self, model: Any) -> Normal:
        """Batch `[B]`, that of the labels given; event `[*shape]`."""
        y = model.labels.labels()
        return Normal(self.loc[y], jnp.exp(self.log_scale[y]), event_ndims=self.loc.ndim - 1)

    def carry(self, z: Array, source: ArrayLike, target: ArrayLike) -> Array:
        """z of one class as of another: m_b + s_b (z - m_a) / s_a keeps what is unlike the class.

        Args:
            z: latents `[..., *shape]`; where z ~ p(z|a), what returns is distributed as p(z|b).
            source: the class a.
            target: the class b.
        """
        ratio = jnp.exp(self.log_scale[target] - self.log_scale[source])
        return self.loc[target] + ratio * (z - self.loc[source])
