"""Codes: latents that are vectors of a finite codebook, in maps `[h, w, D]`.

A codebook has `num_codes` C and spells each of the h*w vectors with `depth` codes, so an image is
a sequence of n = h * w * depth integers below C, row by row.
"""

import abc
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from typing_extensions import override

from vae_jax.distributions.base import Distribution, Shape
from vae_jax.interfaces import Pytree


class Codebook(Pytree, abc.ABC):
    """A bijection between `depth` codes and a vector of D components."""

    @property
    @abc.abstractmethod
    def num_codes(self) -> int:
        """C."""

    @property
    @abc.abstractmethod
    def depth(self) -> int:
        """Codes in each vector."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """D, components of each vector."""

    @abc.abstractmethod
    def indices(self, z: Array) -> Array:
        """Codes `[..., depth]`, int32, of the vectors `[..., D]` of this codebook."""

    @abc.abstractmethod
    def embed(self, indices: Array) -> Array:
        """Vectors `[..., D]` of codes `[..., depth]`."""


def nearest(x: Array, vectors: Array) -> Array:
    """Which of the vectors `[C, d]` is nearest to each x `[..., d]`: `[...]`; ties: the first."""
    products = jnp.matmul(x, vectors.T, precision=lax.Precision.HIGHEST)
    return ((vectors**2).sum(-1) - 2 * products).argmin(-1)


@struct.dataclass
class VectorCodebook(Codebook):
    """Learned vectors `[depth, C, d]`; with depth > 1, each level adds to the sum of those before.

    z holds every partial sum, from coarse to fine, side by side: D = depth * d. The last d
    components are the sum of all; the others make z tell which codes it is made of.
    """

    vectors: Array

    @property
    def num_codes(self) -> int:
        """C."""
        return self.vectors.shape[1]

    @property
    def depth(self) -> int:
        """Levels."""
        return self.vectors.shape[0]

    @property
    def dim(self) -> int:
        """As the base class says."""
        return self.vectors.shape[0] * self.vectors.shape[2]

    def indices(self, z: Array) -> Array:
        """Of what each level adds, the nearest vector of that level."""
        sums = z.reshape(*z.shape[:-1], self.depth, -1)
        added = jnp.diff(sums, axis=-2, prepend=0)
        levels = [nearest(added[..., i, :], self.vectors[i]) for i in range(self.depth)]
        return jnp.stack(levels, -1)

    def embed(self, indices: Array) -> Array:
        """The partial sums of the levels' vectors."""
        added = self.vectors[jnp.arange(self.depth), indices]
        return added.cumsum(-2).reshape(*indices.shape[:-1], self.dim)


@struct.dataclass
class ProductCodebook(Codebook):
    """All combinations of given values: component i of a vector is one of `values[i]`."""

    values: tuple[tuple[float, ...], ...] = struct.field(pytree_node=False)

    @property
    def _sizes(self) -> Shape:
        return tuple(len(values) for values in self.values)

    @property
    def num_codes(self) -> int:
        """The product of the numbers of values."""
        return math.prod(self._sizes)

    @property
    def depth(self) -> int:
        """One."""
        return 1

    @property
    def dim(self) -> int:
        """As the base class says."""
        return len(self.values)

    def indices(self, z: Array) -> Array:
        """Of the combination nearest to z, component by component."""
        digits = tuple(
            jnp.abs(z[..., i, None] - jnp.asarray(values)).argmin(-1)
            for i, values in enumerate(self.values)
        )
        return jnp.ravel_multi_index(digits, self._sizes, mode="clip")[..., None]

    def embed(self, indices: Array) -> Array:
        """The combination of that number, the last component counting fastest."""
        digits = jnp.unravel_index(indices[..., 0], self._sizes)
        columns = zip(self.values, digits, strict=True)
        return jnp.stack([jnp.asarray(values)[digit] for values, digit in columns], -1)


@struct.dataclass
class Quantized(Distribution):
    """All mass on one map of code vectors (van den Oord et al. 2017, equations 1 and 2).

    A mass of one, not a density: ln p(x|z) + ln p(z) is a bound on ln p(x), but importance weights
    of several draws mean nothing.

    Attributes:
        encoded: what was quantized, `[*batch, h, w, D]`; draws pass their gradient to it.
        indices: the codes, `[*batch, h, w, depth]`.
        codebook: of those codes.
        penalties: by name, `[*batch]`, summed over the codes as ln p(x|z) is over pixels.
    """

    encoded: Array
    indices: Array
    codebook: Codebook
    penalties: dict[str, Array]

    event_ndims = 3

    @property
    @override
    def shape(self) -> Shape:
        return self.encoded.shape

    @property
    def mean(self) -> Array:
        """The code vectors, to which `encoded` passes its gradient straight through."""
        z = lax.stop_gradient(self.codebook.embed(self.indices))
        return z + (self.encoded - lax.stop_gradient(self.encoded))

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """The code vectors, `sample_shape` times."""
        del key
        return jnp.broadcast_to(self.mean, sample_shape + self.encoded.shape)

    def log_prob(self, value: Array) -> Array:
        """Zeros, ln of the mass: every value is taken for a draw."""
        return jnp.zeros(value.shape[:-3])


@struct.dataclass
class Coded(Distribution):
    """Maps of code vectors whose codes, row by row, have a distribution over one-hot `[n, C]`.

    Attributes:
        base: the distribution of the codes.
        codebook: from codes to vectors and back; being a bijection, it leaves masses as they are.
        grid: the (h, w) of the map.
    """

    base: Distribution
    codebook: Codebook
    grid: Shape = struct.field(pytree_node=False)

    exact_mean = False

    event_ndims = 3

    @property
    @override
    def shape(self) -> Shape:
        return (*self.base.batch_shape, *self.grid, self.codebook.dim)

    @property
    def mean(self) -> Array:
        """The vectors of the codes that the base's mean favours; not the mean."""
        return self._embed(self.base.mean)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """The vectors of drawn codes; not reparameterized."""
        return self._embed(self.base.sample(key, sample_shape))

    def log_prob(self, value: Array) -> Array:
        """Of the codes, which carry no gradient."""
        one_hot = jax.nn.one_hot(self.codebook.indices(value), self.codebook.num_codes)
        return self.base.log_prob(one_hot.reshape(*value.shape[:-3], *self.base.event_shape))

    def _embed(self, one_hot: Array) -> Array:
        indices = one_hot.argmax(-1).reshape(*one_hot.shape[:-2], *self.grid, self.codebook.depth)
        return self.codebook.embed(indices)
