"""Latents that are maps `[h, w, D]` of vectors from a finite codebook.

A codebook has C codes and names each of the h*w vectors by `depth` of them, so that an image is a
sequence of n = h * w * depth integers below C, row by row.
"""

import abc
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax.distributions.base import Bounded, Distribution, Shape
from vae_jax.given import Pytree


class Codebook(Pytree, abc.ABC):
    """A bijection between tuples of `depth` codes and vectors of D components."""

    @property
    @abc.abstractmethod
    def num_codes(self) -> int:
        """The number of codes C."""

    @property
    @abc.abstractmethod
    def depth(self) -> int:
        """The number of codes that name one vector."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """The number of components D of each vector."""

    @abc.abstractmethod
    def indices(self, z: Float[Array, "*batch D"]) -> Int[Array, "*batch depth"]:
        """The codes of vectors z of this codebook."""

    @abc.abstractmethod
    def embed(self, indices: Int[Array, "*batch depth"]) -> Float[Array, "*batch D"]:
        """The vectors with the codes `indices`."""


def nearest(x: Float[Array, "*batch d"], vectors: Float[Array, "C d"]) -> Int[Array, "*batch"]:
    """The index of the nearest of `vectors` to each x; ties go to the first.

    Vectors are compared by |v|² - 2 v.x, which loses digits if they spread much wider than their
    distances from x. A second pass therefore takes the vector found first as the origin, to which x
    and the other candidates are close.
    """
    centre = vectors.mean(0)
    x, vectors = x - centre, jnp.asarray(vectors - centre)

    def products(x: Array) -> Array:
        return jnp.matmul(x, vectors.T, precision=lax.Precision.HIGHEST)

    first = ((vectors**2).sum(-1) - 2 * products(x)).argmin(-1)
    between = ((vectors[:, None] - vectors) ** 2).sum(-1)
    return (between[first] - 2 * products(x - vectors[first])).argmin(-1)


@struct.dataclass
class VectorCodebook(Codebook):
    """Learned vectors; with several levels, sums of one vector from each level.

    z holds all partial sums side by side, from coarse to fine, so D = depth * d. The last d
    components are the full sum; the others make it possible to read the codes off z.

    Attributes:
        vectors: the vectors of each level.
    """

    vectors: Float[Array, "depth C d"]

    @property
    @override
    def num_codes(self) -> int:
        return self.vectors.shape[1]

    @property
    def depth(self) -> int:
        """The number of levels."""
        return self.vectors.shape[0]

    @property
    @override
    def dim(self) -> int:
        return self.vectors.shape[0] * self.vectors.shape[2]

    def indices(self, z: Float[Array, "*batch D"]) -> Int[Array, "*batch depth"]:
        """The index of the vector nearest to each level's increment."""
        sums = z.reshape(*z.shape[:-1], self.depth, -1)
        added = jnp.diff(sums, axis=-2, prepend=0)
        levels = [nearest(added[..., i, :], self.vectors[i]) for i in range(self.depth)]
        return jnp.stack(levels, -1)

    def embed(self, indices: Int[Array, "*batch depth"]) -> Float[Array, "*batch D"]:
        """The partial sums of the levels' vectors."""
        added = self.vectors[jnp.arange(self.depth), indices]
        return added.cumsum(-2).reshape(*indices.shape[:-1], self.dim)


@struct.dataclass
class ProductCodebook(Codebook):
    """All combinations of given values, one for each component.

    Attributes:
        values: the values of each of the D components.
    """

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
        """One: a single code names a vector."""
        return 1

    @property
    @override
    def dim(self) -> int:
        return len(self.values)

    def indices(self, z: Float[Array, "*batch D"]) -> Int[Array, "*batch depth"]:
        """The number of the combination nearest to z, component by component."""
        digits = tuple(
            jnp.abs(z[..., i, None] - jnp.asarray(values)).argmin(-1)
            for i, values in enumerate(self.values)
        )
        return jnp.ravel_multi_index(digits, self._sizes, mode="clip")[..., None]

    def embed(self, indices: Int[Array, "*batch depth"]) -> Float[Array, "*batch D"]:
        """The combination with that number; the last component varies fastest."""
        digits = jnp.unravel_index(indices[..., 0], self._sizes)
        columns = zip(self.values, digits, strict=True)
        return jnp.stack([jnp.asarray(values)[digit] for values, digit in columns], -1)


@struct.dataclass
class Quantized(Distribution):
    """All mass on one map of code vectors (van den Oord et al. 2017, equations 1 and 2).

    It is a point mass, not a density: ln p(x|z) + ln p(z) is a lower bound on ln p(x), but
    importance weights of several draws have no meaning.

    Attributes:
        encoded: the vectors before quantization; the gradient of draws passes straight to them.
        indices: the codes of the map.
        codebook: the codebook of these codes.
        penalties: the penalties by name, summed over the codes as ln p(x|z) is over pixels.
    """

    encoded: Float[Array, "*batch h w D"]
    indices: Int[Array, "*batch h w depth"]
    codebook: Codebook
    penalties: dict[str, Float[Array, "*batch"]]

    event_ndims = 3

    @property
    @override
    def shape(self) -> Shape:
        return self.encoded.shape

    @property
    def mean(self) -> Float[Array, "*batch h w D"]:
        """The code vectors; their gradient passes straight through to `encoded`."""
        z = lax.stop_gradient(self.codebook.embed(self.indices))
        return z + (self.encoded - lax.stop_gradient(self.encoded))

    @property
    @override
    def std(self) -> Float[Array, "*batch h w D"]:
        return jnp.zeros(self.shape)

    def sample(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> Float[Array, "*draws h w D"]:
        """The code vectors: all draws are equal."""
        del key
        return jnp.broadcast_to(self.mean, sample_shape + self.encoded.shape)

    def log_prob(self, value: Float[Array, "*draws h w D"]) -> Float[Array, "*draws"]:
        """Zeros, the logarithm of the mass; the value is assumed to be a draw."""
        return jnp.zeros(value.shape[:-3])


@struct.dataclass
class Coded(Distribution):
    """Maps of code vectors; their codes, row by row, have a distribution over one-hot `[n, C]`.

    Attributes:
        base: the distribution of the codes.
        codebook: the bijection between codes and vectors, which leaves masses unchanged.
        grid: the height and width (h, w) of the map.
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
    def mean(self) -> Float[Array, "*batch h w D"]:
        """The vectors of the likeliest codes under the mean of the base; not the mean."""
        return self.embed(self.base.mean)

    def sample(
        self, key: Key[Array, "..."], sample_shape: Shape = ()
    ) -> Float[Array, "*draws h w D"]:
        """The vectors of drawn codes; not reparameterized."""
        return self.embed(self.base.sample(key, sample_shape))

    def log_prob(self, value: Float[Array, "*draws h w D"]) -> Float[Array, "..."]:
        """The log-mass of the codes; no gradient passes through it to `value`."""
        return self.base.log_prob(self.one_hot(value))

    def one_hot(self, value: Float[Array, "*draws h w D"]) -> Float[Array, "*draws n C"]:
        """The codes of maps of code vectors, one-hot."""
        codes = jax.nn.one_hot(self.codebook.indices(value), self.codebook.num_codes)
        return codes.reshape(*value.shape[:-3], *self.base.event_shape)

    def embed(self, one_hot: Float[Array, "*draws n C"]) -> Float[Array, "*draws h w D"]:
        """The maps of the vectors of one-hot codes."""
        indices = one_hot.argmax(-1).reshape(*one_hot.shape[:-2], *self.grid, self.codebook.depth)
        return self.codebook.embed(indices)


@struct.dataclass
class BoundedCoded(Coded, Bounded):
    """`Coded` for a distribution of codes that is `Bounded`."""

    def elbo(
        self, value: Float[Array, "*batch h w D"], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """The bound on the log-mass of the codes."""
        assert isinstance(self.base, Bounded)
        return self.base.elbo(self.one_hot(value), keys)

    @override
    def fit_objective(
        self, value: Float[Array, "*batch h w D"], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        assert isinstance(self.base, Bounded)
        return self.base.fit_objective(self.one_hot(value), keys)
