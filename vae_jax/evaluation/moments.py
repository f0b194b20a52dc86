"""Means and variances over images, in memory that does not grow with their number."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from vae_jax import parallel


@struct.dataclass
class Moments:
    """The first two moments of values over images, which can be merged with those of other images.

    Sums of squares are of deviations from the mean, since those of the values would cancel.

    Attributes:
        count: the number of images, `[]`; of several seeds `[S]`.
        mean: their mean, `[*event]`; of several seeds `[S, *event]`.
        squares: the sum of squared deviations from it, of the same shape.

    References:
        Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", equation 2.1.
    """

    count: Array
    mean: Array
    squares: Array

    @classmethod
    def of(cls, values: Array, counted: Array) -> "Moments":
        """The moments of values `[b, *event]` over all devices that share a batch.

        Args:
            values: a device's values.
            counted: a mask of the values that count, `[b]`; the others are padding.
        """
        counts = counted.reshape(-1, *(1,) * (values.ndim - 1))
        count = parallel.batch_sum(counted.sum(dtype=jnp.float32))
        mean = parallel.batch_sum(jnp.where(counts, values, 0).sum(0)) / count
        deviations = jnp.where(counts, values - mean, 0)
        return cls(count, mean, parallel.batch_sum((deviations**2).sum(0)))

    def merged(self, other: "Moments") -> "Moments":
        """The moments of these images and of those in `other` together, at least one in all."""
        count = self.count + other.count
        difference = other.mean - self.mean

        def each(factor: Array) -> Array:
            """A per-seed number, broadcast against the values."""
            return factor.reshape(*factor.shape, *(1,) * (difference.ndim - factor.ndim))

        share = other.count / count
        mean = self.mean + each(share) * difference
        return Moments(
            count, mean, self.squares + other.squares + each(self.count * share) * difference**2
        )


def merged(some: object, others: object) -> object:
    """The trees of moments `some` and `others`, merged leaf by leaf."""
    return jax.tree.map(Moments.merged, some, others, is_leaf=lambda x: isinstance(x, Moments))
