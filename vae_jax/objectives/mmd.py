"""q(z) drawn to p(z) by their maximum mean discrepancy (Gretton et al. 2012), without a critic."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array, lax

from vae_jax import random
from vae_jax.distributions import sample_each
from vae_jax.interfaces import Metrics, Model, Objective, Requirements, Space, has_bound
from vae_jax.parallel import gather_batch
from vae_jax.vae import Terms

Kernel = Callable[[Array, Array], Array]
SPACES: frozenset[Space] = frozenset({"real", "sphere"})


def squared_distances(x: Array, y: Array) -> Array:
    """|x_i - y_j|², `[n, m]`, for `[n, d]` and `[m, d]`."""
    return ((x[:, None] - y[None]) ** 2).sum(-1)


@dataclass(frozen=True)
class IMQ:
    """The inverse multiquadratic kernel sum_s C_s / (C_s + |x - y|²), C_s = 2 d sigma² s.

    Tolstikhin et al. (2018), section 4: 2 d sigma² is the expected squared distance of two draws
    from the prior. Its tails are heavier than a normal's, so that far outliers are felt.

    Attributes:
        variance: sigma², of each coordinate of the prior; 1/d for uniform unit vectors.
        scales: s, as in the paper's code.
    """

    variance: float = 1.0
    scales: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

    def __call__(self, x: Array, y: Array) -> Array:
        """`[n, d]` and `[m, d]` to `[n, m]`."""
        distances = squared_distances(x, y)
        c = [2 * x.shape[-1] * self.variance * scale for scale in self.scales]
        return sum((each / (each + distances) for each in c), jnp.zeros_like(distances))


@dataclass(frozen=True)
class RBF:
    """exp(-|x - y|² / (2 d sigma²)): the width of Tolstikhin et al. (2018), section 4.

    Attributes:
        variance: sigma², of each coordinate of the prior; 1/d for uniform unit vectors.
    """

    variance: float = 1.0

    def __call__(self, x: Array, y: Array) -> Array:
        """`[n, d]` and `[m, d]` to `[n, m]`."""
        return jnp.exp(-squared_distances(x, y) / (2 * x.shape[-1] * self.variance))


def mmd(x: Array, y: Array, kernel: Kernel) -> Array:
    """The unbiased estimate of MMD²: zero in expectation, and at times negative, where x ~ y.

    Gretton et al. (2012), lemma 6: means of k over the pairs of different draws within `x` and
    within `y`, less twice the mean over the pairs across.

    Args:
        x, y: `[n, d]` each, n at least 2.
        kernel: `[n, d]` and `[n, d]` to `[n, n]`.
    """

    def within(values: Array) -> Array:
        k = kernel(values, values)
        return (k.sum() - jnp.trace(k)) / jnp.asarray(k.size - len(k), k.dtype)

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def aggregated_mmd(terms: Terms, kernel: Kernel) -> Array:
    """MMD² of q(z) and p(z), from the whole batch and as many draws of the prior.

    The mean over the K samples: two z of one image are no independent draws of q(z), so they never
    meet in a pair. To a prior with parameters its draws are constants.
    """
    (p,), (z,) = terms.p, terms.z
    keys = random.purpose(terms.keys, "prior")
    z_prior = lax.stop_gradient(sample_each(p, keys, (len(z),)))

    def flat(z: Array) -> Array:
        return gather_batch(z.reshape(*z.shape[:2], -1), axis=1)

    return jax.vmap(lambda x, y: mmd(x, y, kernel))(flat(z), flat(z_prior)).mean()


@dataclass(frozen=True)
class InfoVAE(Objective):
    """Distortion + (1 - alpha) KL + (alpha + lambda - 1) MMD² (Zhao et al. 2019).

    At alpha = 1 it is the MMD-VAE.

    Attributes:
        alpha: weight of the mutual information of x and z.
        lambda_: with alpha, weight of the distance between q(z) and p(z).
        kernel: of MMD.
        num_samples: K.
    """

    alpha: float
    lambda_: float
    kernel: Kernel = IMQ()
    num_samples: int = 1

    @property
    def requires(self) -> Requirements:
        """A density of q, over vectors."""
        return Requirements(
            posterior=frozenset({"density"}), spaces=SPACES, one_layer=True, whole_batch=True
        )

    def __call__(
        self, terms: Terms, step: Array, model: Model | None = None
    ) -> tuple[Array, Metrics]:
        """Loss in nats per image; batches have at least two images."""
        del step, model
        metrics = terms.bound_metrics()
        distance = aggregated_mmd(terms, self.kernel)
        loss = (
            metrics["distortion"]
            + (1 - self.alpha) * terms.rate.sum(0).mean()
            + (self.alpha + self.lambda_ - 1) * distance
        )
        return loss, metrics | {"mmd": distance}


@dataclass(frozen=True)
class WAE(Objective):
    """The Wasserstein autoencoder with MMD (Tolstikhin et al. 2018, algorithm 2).

    Reconstruction cost + weight MMD². The cost is -ln p(x|z), so with `Gaussian(scale)` the squared
    error over 2 scale². q(z|x) may be deterministic.

    Attributes:
        weight: lambda.
        kernel: of MMD.
    """

    weight: float
    kernel: Kernel = IMQ()

    @property
    def requires(self) -> Requirements:
        """Vectors that move with the encoder; no density."""
        return Requirements(
            without=frozenset({"codebook"}),
            spaces=SPACES,
            fixed_prior=True,
            one_layer=True,
            whole_batch=True,
        )

    def __call__(self, terms: Terms, step: Array, model: Model) -> tuple[Array, Metrics]:
        """Loss in nats per image; `neg_elbo` where there is a bound; batches of at least two."""
        del step
        metrics = terms.bound_metrics() if has_bound(model) else terms.rate_and_distortion()
        distance = aggregated_mmd(terms, self.kernel)
        loss = metrics["distortion"] + self.weight * distance
        return loss, metrics | {"mmd": distance}
