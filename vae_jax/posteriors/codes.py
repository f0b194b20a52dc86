"""Quantized posteriors: features become maps of codes.

Features `[B, h, w, F]` have a code vector for each place; vectors `[B, F]` are maps of one place.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.nn.initializers import Initializer

from vae_jax.distributions import ProductCodebook, Quantized, VectorCodebook, nearest, sum_event
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Posterior
from vae_jax.parallel import batch_mean, whole_batch

GLOROT = nn.initializers.glorot_uniform()
GOLDEN_RATIO = (5**0.5 - 1) / 2
SMOOTHING = 1e-5


def _as_map(features: Array) -> Array:
    return features.reshape(len(features), *(features.shape[1:-1] or (1, 1)), -1)


class Vectors(nn.Module):
    """The vectors of one level, and how they follow what is assigned to them.

    Attributes:
        num_codes: C.
        dim: d.
        decay: of the running averages; None leaves the vectors to the optimizer.
        restart_below: a code with fewer uses per batch, in the running average, is dead.
    """

    num_codes: int
    dim: int
    decay: float | None
    restart_below: float

    def setup(self):
        """The vectors at the start of the step, `[C, d]`: an update shows in the next one."""
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

    def update(self, x: Array, indices: Array, decay: float):
        """One step of the averages (van den Oord et al. 2017, appendix A.1), then restarts.

        A dead code moves to one of the batch's x, the same on every device. Their places in the
        batch are spread by the golden ratio, over images and over positions.

        Args:
            x: `[B, ..., d]`.
            indices: of the vectors that they are assigned to, `[B, ...]`.
            decay: of the running averages.
        """
        x, indices = whole_batch(x).reshape(-1, self.dim), whole_batch(indices).reshape(-1)
        assigned = jax.nn.one_hot(indices, self.num_codes)
        counts = decay * self.counts.value + (1 - decay) * assigned.sum(0)
        sums = decay * self.sums.value + (1 - decay) * assigned.T @ x
        dead = counts < self.restart_below
        places = (np.arange(self.num_codes) * GOLDEN_RATIO % 1 * len(x)).astype(int)
        self.counts.value = jnp.where(dead, 1.0, counts)
        self.sums.value = jnp.where(dead[:, None], x[places], sums)

    def assign(self, x: Array) -> Array:
        """Indices `[B, ...]` of the vectors nearest to x `[B, ..., d]`, which follow in training.

        "Training" is when the collection "codebook" may change.
        """
        x = lax.stop_gradient(x)
        indices = nearest(x, self.vectors)
        training = self.is_mutable_collection("codebook") and not self.is_initializing()
        if training and self.decay is not None:
            self.update(x, indices, self.decay)
        return indices


def _quantize(encoded: Array, levels: Sequence[Vectors]) -> Quantized:
    """Each level is given what those before have left of `[B, h, w, d]`.

    The penalties draw the encoder's output and every partial sum to each other (van den Oord et
    al. 2017, equation 3; for several levels, Lee et al. 2022).
    """
    residual, indices = encoded, []
    for level in levels:
        indices.append(level.assign(residual))
        residual -= level.vectors[indices[-1]]
    indices = jnp.stack(indices, -1)
    codebook = VectorCodebook(jnp.stack([level.vectors for level in levels]))
    encoded, z = jnp.tile(encoded, len(levels)), codebook.embed(indices)
    penalties = {"commitment": sum_event((encoded - lax.stop_gradient(z)) ** 2, 3)}
    if any(level.decay is None for level in levels):
        penalties["codebook"] = sum_event((lax.stop_gradient(encoded) - z) ** 2, 3)
    return Quantized(encoded, indices, codebook, penalties)


class VectorQuantized(Posterior):
    """The nearest vectors of a learned codebook (van den Oord et al. 2017).

    Attributes:
        num_codes: C.
        dim: d, of the vectors and of the affine map before them.
        decay: the vectors are running averages of what is assigned to them, kept in the collection
            "codebook" (appendix A.1); None learns them by gradient, from the penalty "codebook".
        restart_below: a code with fewer uses per batch, in the running average, moves to one of the
            batch's encodings; 0 leaves dead codes alone.
        kernel_init: of the affine map.
    """

    num_codes: int
    dim: int
    decay: float | None = 0.99
    restart_below: float = 0.5
    kernel_init: Initializer = GLOROT

    space = "codes"
    traits = frozenset({"codebook"})

    def setup(self):
        """One level, behind an affine map."""
        self.encoded = nn.Dense(self.dim, kernel_init=self.kernel_init)
        self.level = Vectors(self.num_codes, self.dim, self.decay, self.restart_below)

    @property
    def codebook(self) -> VectorCodebook:
        """Of this step."""
        return VectorCodebook(self.level.vectors[None])

    def __call__(self, features: Array) -> Quantized:
        """Features `[B, h, w, F]` to batch `[B]`, event `[h, w, d]`."""
        return _quantize(self.encoded(_as_map(features)), [self.level])


class ResidualVectorQuantized(Posterior):
    """Codebooks in a row, each for what those before have left (Zeghidour et al. 2021).

    z holds the partial sums, from coarse to fine (`VectorCodebook`); the paper's decoder is given
    the last one alone.

    Attributes:
        num_codes: C of each level.
        dim: d, of the vectors and of the affine map before them.
        depth: levels.
        decay, restart_below, kernel_init: as in `VectorQuantized`, for each level.
    """

    num_codes: int
    dim: int
    depth: int
    decay: float | None = 0.99
    restart_below: float = 0.5
    kernel_init: Initializer = GLOROT

    space = "codes"
    traits = frozenset({"codebook"})

    def setup(self):
        """The levels, behind an affine map."""
        self.encoded = nn.Dense(self.dim, kernel_init=self.kernel_init)
        self.levels = [
            Vectors(self.num_codes, self.dim, self.decay, self.restart_below)
            for _ in range(self.depth)
        ]

    @property
    def codebook(self) -> VectorCodebook:
        """Of this step."""
        return VectorCodebook(jnp.stack([level.vectors for level in self.levels]))

    def __call__(self, features: Array) -> Quantized:
        """Features `[B, h, w, F]` to batch `[B]`, event `[h, w, depth * d]`."""
        return _quantize(self.encoded(_as_map(features)), self.levels)


class FiniteScalarQuantized(Posterior):
    """Each component bounded and rounded to one of a few levels (Mentzer et al. 2023).

    No codebook is learned, and nothing is penalized.

    Attributes:
        levels: L_i, the number of values of component i, each at least 2; C is their product.
        kernel_init: of the affine map to the components.
    """

    levels: Sequence[int]
    kernel_init: Initializer = GLOROT

    space = "codes"
    traits = frozenset({"codebook"})

    @property
    def codebook(self) -> ProductCodebook:
        """Integers from -floor(L/2), L of them, divided by floor(L/2)."""
        return ProductCodebook(
            tuple(tuple((j - L // 2) / (L // 2) for j in range(L)) for L in self.levels)
        )

    @nn.compact
    def __call__(self, features: Array) -> Quantized:
        """Features `[B, h, w, F]` to batch `[B]`, event `[h, w, len(levels)]`.

        Raises:
            VaeJaxError: a component has fewer than 2 levels.
        """
        if min(self.levels) < 2:
            raise VaeJaxError(f"FiniteScalarQuantized has levels {self.levels}: take 2 or more.")
        dense = nn.Dense(len(self.levels), kernel_init=self.kernel_init, name="encoded")
        h = dense(_as_map(features))
        # Appendix A.1 of the paper: an even number of levels is bounded half a level lower.
        counts = np.asarray(self.levels)
        half_length = (counts - 1) * (1 - 1e-3) / 2
        offset = np.where(counts % 2, 0.0, 0.5)
        bounded = jnp.tanh(h + np.tan(offset / half_length)) * half_length
        encoded = (bounded - offset) / (counts // 2)
        return Quantized(encoded, self.codebook.indices(encoded), self.codebook, {})


class LookupFree(Posterior):
    """The signs of an affine map (Yu et al. 2023, "Language model beats diffusion").

    Penalties: `commitment` |h - z|², and `entropy`, that of each code's soft assignment
    q(c) ∝ exp(-|h - c|²) minus that of the assignments' mean over the places of the whole batch:
    low where encodings are decided and all codes in use. It looks at all 2^dim codes.

    Attributes:
        dim: signs in a code; C = 2^dim.
        kernel_init: of the affine map.
    """

    dim: int
    kernel_init: Initializer = GLOROT

    space = "codes"
    traits = frozenset({"codebook"})
    whole_batch = True

    @property
    def codebook(self) -> ProductCodebook:
        """All vectors of -1 and 1."""
        return ProductCodebook(((-1.0, 1.0),) * self.dim)

    @nn.compact
    def __call__(self, features: Array) -> Quantized:
        """Features `[B, h, w, F]` to batch `[B]`, event `[h, w, dim]`."""
        h = nn.Dense(self.dim, kernel_init=self.kernel_init, name="encoded")(_as_map(features))
        indices = self.codebook.indices(h)
        vectors = self.codebook.embed(jnp.arange(self.codebook.num_codes)[:, None])
        log_q = jax.nn.log_softmax(2 * h @ vectors.T)
        q = jnp.exp(log_q)
        mean_q = jnp.maximum(batch_mean(q.mean((0, 1, 2))), jnp.finfo(q.dtype).tiny)
        penalties = {
            "commitment": sum_event((h - lax.stop_gradient(self.codebook.embed(indices))) ** 2, 3),
            "entropy": sum_event(q * (jnp.log(mean_q) - log_q), 3),
        }
        return Quantized(h, indices, self.codebook, penalties)
