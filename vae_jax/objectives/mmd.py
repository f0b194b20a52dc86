"""The maximum mean discrepancy of q(z) and p(z), which needs no critic."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from vae_jax import random
from vae_jax.distributions import sample_each
from vae_jax.given import Bounds, Checked, Positive
from vae_jax.interfaces import Model, Space
from vae_jax.parallel import gather_batch
from vae_jax.vae import Terms

Kernel = Callable[[Float[Array, "n d"], Float[Array, "m d"]], Float[Array, "n m"]]
VECTOR_SPACES: frozenset[Space] = frozenset({"real", "sphere"})


def squared_distances(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """|x_i - y_j|² for points x `[n, d]` and y `[m, d]`."""
    return ((x[:, None] - y[None]) ** 2).sum(-1)


@dataclass(frozen=True)
class IMQ(Checked):
    """The inverse multiquadratic kernel sum_s C_s / (C_s + |x - y|²), C_s = 2 d sigma² s.

    2 d sigma² is the expected squared distance between two draws from the prior. The tails are
    heavier than those of `RBF`, so outliers have a gradient.

    Attributes:
        variance: the variance sigma² of each coordinate of the prior; None stands for 1, and in an
            objective for 1/d if z are unit vectors.
        scales: the scales s, as in the paper's code.

    References:
        Tolstikhin et al. (2018), "Wasserstein auto-encoders", section 4.
    """

    variance: Positive | None = None
    scales: Annotated[tuple[Positive, ...], Bounds(least=1)] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

    def __call__(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The kernel of every pair."""
        distances = squared_distances(x, y)
        variance = 1.0 if self.variance is None else self.variance
        c = [2 * x.shape[-1] * variance * scale for scale in self.scales]
        return sum((each / (each + distances) for each in c), jnp.zeros_like(distances))


@dataclass(frozen=True)
class RBF(Checked):
    """The Gaussian kernel exp(-|x - y|² / (2 d sigma²)).

    Attributes:
        variance: the variance sigma² of each coordinate of the prior, as in `IMQ`.

    References:
        Tolstikhin et al. (2018), "Wasserstein auto-encoders", section 4.
    """

    variance: Positive | None = None

    def __call__(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """The kernel of every pair."""
        variance = 1.0 if self.variance is None else self.variance
        return jnp.exp(-squared_distances(x, y) / (2 * x.shape[-1] * variance))


def fitting(kernel: Kernel, space: Space, dim: int) -> Kernel:
    """The kernel with, if its variance is None, one that suits the space.

    Args:
        kernel: the kernel.
        space: the space of z.
        dim: the number of components of z.
    """
    if space == "sphere" and isinstance(kernel, IMQ | RBF) and kernel.variance is None:
        return dataclasses.replace(kernel, variance=1 / dim)
    return kernel


def mmd(x: Float[Array, "n d"], y: Float[Array, "n d"], kernel: Kernel) -> Float[Array, ""]:
    """The unbiased estimate of MMD² (Gretton et al. 2012, lemma 6).

    It is the mean of the kernel over pairs of different draws within x, plus the mean within y,
    minus twice the mean over pairs of a draw from each. If x and y have the same distribution its
    expectation is zero, so it may be negative.

    Args:
        x: n >= 2 draws from one distribution.
        y: n draws from the other.
        kernel: the kernel of every pair, `[n, d]` and `[n, d]` to `[n, n]`.
    """

    def within(values: Array) -> Array:
        k = kernel(values, values)
        return (k.sum() - jnp.trace(k)) / jnp.asarray(k.size - len(k), k.dtype)

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def aggregated_mmd(terms: Terms, kernel: Kernel, model: Model) -> Float[Array, ""]:
    """MMD² of q(z) and p(z), from the whole batch and an equal number of draws from the prior.

    It is averaged over the K samples: two z of one image are not independent draws from q(z), so
    they must not form a pair. Draws from the prior pass no gradient to its parameters.

    Args:
        terms: the Terms of this device's examples.
        kernel: the kernel.
        model: the model, bound to its parameters.
    """
    (p,), (z,) = terms.p, terms.z
    kernel = fitting(kernel, model.posteriors[0].space, z.shape[-1])
    keys = random.purpose(terms.keys, "prior")
    z_prior = lax.stop_gradient(sample_each(p, keys, (len(z),)))

    def flat(z: Array) -> Array:
        return gather_batch(z.reshape(*z.shape[:2], -1), axis=1)

    return jax.vmap(lambda x, y: mmd(x, y, kernel))(flat(z), flat(z_prior)).mean()
