"""Vector quantization, with one codebook or a sequence of them."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.nn.initializers import Initializer
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.distributions import Quantized, VectorCodebook, nearest, sum_event
from vae_jax.given import Count, Decay, Proportion
from vae_jax.interfaces import Posterior
from vae_jax.parallel import gather_batch
from vae_jax.posteriors.codes import as_map

GLOROT = nn.initializers.glorot_uniform()
GOLDEN_RATIO = (5**0.5 - 1) / 2
SMOOTHING = 1e-5


class Vectors(nn.Module):
    """The code vectors of one level, updated from the inputs assigned to them.

    Attributes:
        num_codes: the number of codes C.
        dim: the number of components d of a vector.
        decay: the decay of the running averages; None leaves the vectors to the optimizer.
        restart_below: the running average of uses per batch below which a code is dead, as a
            fraction of the fair share, (the number of positions in a batch) / C.
    """

    num_codes: int
    dim: int
    decay: float | None
    restart_below: float

    def setup(self):
        """The vectors `[C, d]` at the start of the step; an update takes effect in the next one."""
        shape, init = (self.num_codes, self.dim), nn.initializers.normal(1.0)
        if self.decay is None:
            self.vectors = self.param("vectors", init, shape)
        else:
            self.counts = self.variable("codebook", "counts", jnp.ones, self.num_codes)
            self.sums = self.variable(
                "codebook", "sums", lambda: init(self.make_rng("params"), shape)
            )
            counts = self.counts.value
            total = counts.sum()
            smoothed = (counts + SMOOTHING) / (total + self.num_codes * SMOOTHING) * total
            self.vectors = self.sums.value / smoothed[:, None]

    def update(self, x: Float[Array, "*batch d"], indices: Int[Array, "*batch"], decay: float):
        """One step of the averages (van den Oord et al. 2017, appendix A.1), then restarts.

        A dead code moves to an input from the whole batch, the same one on every device, with the
        fair share as its count. No two codes move to the same input: the inputs are spread over the
        batch by the golden ratio, and if there are more dead codes than inputs, the rest wait.

        Args:
            x: the inputs of this device.
            indices: the indices of their vectors.
            decay: the decay of the running averages.
        """
        x, indices = gather_batch(x).reshape(-1, self.dim), gather_batch(indices).reshape(-1)
        assigned = jax.nn.one_hot(indices, self.num_codes)
        counts = decay * self.counts.value + (1 - decay) * assigned.sum(0)
        assigned_sums = jnp.matmul(assigned.T, x, precision=lax.Precision.HIGHEST)
        sums = decay * self.sums.value + (1 - decay) * assigned_sums
        fair = len(x) / self.num_codes
        dead = counts < self.restart_below * fair
        rank = jnp.cumsum(dead) - 1
        restarted = dead & (rank < len(x))
        order = jnp.asarray(np.argsort(np.arange(len(x)) * GOLDEN_RATIO % 1))
        chosen = x[order[jnp.minimum(rank, len(x) - 1)]]
        self.counts.value = jnp.where(restarted, fair, counts)
        self.sums.value = jnp.where(restarted[:, None], fair * chosen, sums)

    def assign(self, x: Float[Array, "*batch d"]) -> Int[Array, "*batch"]:
        """The indices of the vectors nearest to the inputs x.

        In training, when the collection "codebook" is mutable, the running averages are updated.
        """
        x = lax.stop_gradient(x)
        indices = nearest(x, self.vectors)
        training = self.is_mutable_collection("codebook") and not self.is_initializing()
        if training and self.decay is not None:
            self.update(x, indices, self.decay)
        return indices


def _quantize(encoded: Float[Array, "N h w d"], levels: Sequence[Vectors]) -> Quantized:
    """Quantize level by level; each level quantizes the residual of the levels before.

    The penalties pull the encoder's output and every partial sum towards each other (van den Oord
    et al. 2017, equation 3; for several levels, Lee et al. 2022).
    """
    residual, indices = encoded, []
    for level in levels:
        indices.append(level.assign(residual))
        residual -= jnp.asarray(level.vectors)[indices[-1]]
    indices = jnp.stack(indices, -1)
    codebook = VectorCodebook(jnp.stack([level.vectors for level in levels]))
    encoded, z = jnp.tile(encoded, len(levels)), codebook.embed(indices)
    penalties = {"commitment": sum_event((encoded - lax.stop_gradient(z)) ** 2, 3)}
    if any(level.decay is None for level in levels):
        penalties["codebook"] = sum_event((lax.stop_gradient(encoded) - z) ** 2, 3)
    return Quantized(encoded, indices, codebook, penalties)


class VectorQuantized(Posterior):
    """The nearest vectors of a learned codebook.

    Attributes:
        num_codes: the number of codes C.
        dim: the number of components d of the vectors and of the affine map before them.
        decay: the decay of the running averages that make up the vectors, in the collection
            "codebook", from the inputs assigned to them; None learns the vectors by gradient,
            through the penalty "codebook".
        restart_below: the running average of uses per batch below which a code moves to one of the
            batch's inputs, as a fraction of the fair share, (the number of positions in a batch) /
            C; 0 leaves dead codes alone.
        kernel_init: the initializer of the affine map.

    References:
        van den Oord et al. (2017), "Neural discrete representation learning", equation 3 and
            appendix A.1.
    """

    num_codes: Count
    dim: Count
    decay: Decay | None = 0.99
    restart_below: Proportion = 0.05
    kernel_init: Initializer = GLOROT

    space = "codes"
    traits = frozenset({"codebook"})

    def setup(self):
        """One level, after an affine map."""
        self.encoded = nn.Dense(self.dim, kernel_init=self.kernel_init)
        self.level = Vectors(self.num_codes, self.dim, self.decay, self.restart_below)

    @property
    def codebook(self) -> VectorCodebook:
        """The codebook of this step."""
        return VectorCodebook(jnp.asarray(self.level.vectors)[None])

    @override
    def __call__(self, features: Float[Array, "N ..."]) -> Quantized:
        return _quantize(self.encoded(as_map(features)), [self.level])


class ResidualVectorQuantized(Posterior):
    """A sequence of codebooks, each for the residual of those before.

    z holds the partial sums, from coarse to fine (`VectorCodebook`); the paper's decoder receives
    only the last one.

    Attributes:
        num_codes: the number of codes C of each level.
        dim: the number of components d of the vectors and of the affine map before them.
        depth: the number of levels.
        decay: the decay of the running averages of each level, as in `VectorQuantized`.
        restart_below: the fraction of its fair share of uses below which a code is dead, as in
            `VectorQuantized`.
        kernel_init: the initializer of the affine map.

    References:
        Zeghidour et al. (2021), "SoundStream: an end-to-end neural audio codec".
        Lee et al. (2022), "Autoregressive image generation using residual quantization", for the
            penalties.
    """

    num_codes: Count
    dim: Count
    depth: Count
    decay: Decay | None = 0.99
    restart_below: Proportion = 0.05
    kernel_init: Initializer = GLOROT

    space = "codes"
    traits = frozenset({"codebook"})

    def setup(self):
        """The levels, after an affine map."""
        self.encoded = nn.Dense(self.dim, kernel_init=self.kernel_init)
        self.levels = [
            Vectors(self.num_codes, self.dim, self.decay, self.restart_below)
            for _ in range(self.depth)
        ]

    @property
    def codebook(self) -> VectorCodebook:
        """The codebook of this step."""
        return VectorCodebook(jnp.stack([level.vectors for level in self.levels]))

    @override
    def __call__(self, features: Float[Array, "N ..."]) -> Quantized:
        return _quantize(self.encoded(as_map(features)), self.levels)
