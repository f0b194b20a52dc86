"""An autoregressive prior over codes."""

from collections.abc import Sequence
from typing import Annotated

import flax.linen as nn
import jax
from flax import struct
from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.conditional import labels_or_zero
from vae_jax.distributions import BoundedCoded, Shape
from vae_jax.given import Count
from vae_jax.interfaces import Model
from vae_jax.priors.codes import CodePrior, CodeTokens, codebook_of
from vae_jax.priors.tokens import Autoregressive


@struct.dataclass
class AutoregressiveCategorical(CodeTokens, Autoregressive):  # pyright: ignore[reportIncompatibleVariableOverride]
    """One-hot `[n, C]`: ln p(z) = sum_i ln p(z_i | z_1, ..., z_i-1), by a transformer."""

    @override
    def log_density(
        self, outputs: Float[Array, "N n C"], tokens: Float[Array, "N n C"]
    ) -> Float[Array, "N n"]:
        return (tokens * jax.nn.log_softmax(outputs)).sum(-1)

    @override
    def noise(
        self, key: Key[Array, "..."], sample_shape: Shape
    ) -> list[Float[Array, "*draws n C"]]:
        """Gumbel noise, which is added to the logits."""
        return [random.draw(jax.random.gumbel, key, sample_shape, self.shape)]

    @override
    def choose(
        self, outputs: Sequence[Float[Array, "N C"]], noise: Sequence[Float[Array, "N C"]]
    ) -> Float[Array, "N C"]:
        return self.chosen(self.guided(outputs), noise[0])


class AutoregressiveCodes(CodePrior):
    """An autoregressive p(z) over codes, row by row, by a transformer.

    It is trained together with the model or as a second stage. Codes pass no gradient to the
    encoder; one-hot latents do. ln p(z) is exact.

    Attributes:
        shape: the height and width (h, w) of the map of codes; (n,) for one-hot latents.
        width, num_layers, num_heads, num_classes, drop_labels: as in `TokenPrior`.
        guidance, temperature, top_k, top_p: settings of sampling, as in `CodePrior`.

    References:
        van den Oord et al. (2017), "Neural discrete representation learning", section 3.3, with a
            PixelCNN.
        Ho & Salimans (2022), "Classifier-free diffusion guidance", for guidance.
        Holtzman et al. (2020), "The curious case of neural text degeneration", for `top_p`.
    """

    shape: Annotated[  # pyright: ignore[reportIncompatibleVariableOverride]
        tuple[Count] | tuple[Count, Count], "(h, w) for a map of codes or (n,), all at least 1"
    ]

    spaces = frozenset({"codes", "onehot"})

    @nn.compact
    @override
    def __call__(
        self, model: Model, y: Int[Array, "B"] | None = None
    ) -> BoundedCoded | AutoregressiveCategorical:
        y = None if self.num_classes is None else labels_or_zero(y, self)
        length, classes = self.codes_of(model)
        network = self.transformer(length, classes, classes)
        base = AutoregressiveCategorical(
            network.variables, y, network.clone(parent=None), self.clone(parent=None)
        )
        if model.posteriors[-1].space == "onehot":
            return base
        return BoundedCoded(base, codebook_of(model.posteriors[-1]), self.shape)
