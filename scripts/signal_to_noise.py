"""The signal-to-noise ratio of gradient estimators, on the toy model of Rainforth et al. (2018).

    python scripts/signal_to_noise.py

The toy: z ~ N(mu, I) and x|z ~ N(z, I) in 20 dimensions, 1,024 images, q(z|x) = N(A x + b, 2/3 I),
each parameter offset from its optimum by N(0, 0.01²).

Published (theorem 1): with M bounds of K samples the ratio of the gradient grows as sqrt(M K) for
the generative parameters and as sqrt(M / K) for the inference parameters; with doubly
reparameterized gradients (Tucker et al. 2019) the latter grows too, as sqrt(M K).

Ours: slopes on logarithmic axes, with the theoretical values in brackets.

                        K = 64 to 1,024, M = 1      M = 1 to 16, K = 64
    generative          +0.49  (+1/2)               +0.51  (+1/2)
    inference           -0.50  (-1/2)               +0.50  (+1/2)
    inference, DReG     +0.49  (+1/2)               +0.50  (+1/2)

2026-11-25, two CPU cores, seed 0, time not recorded. Below K = 64 the generative ratio first falls:
the offsets of A and b then change its expected gradient, by a term of order 1/K, more than the
offset of mu does. A second figure shows the bounds of the same toy beside the exact ln p(x).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from vae_jax import MIWAE, MLP, VAE, DiagonalGaussian, plots, random
from vae_jax.distributions import Normal, Shape
from vae_jax.interfaces import Likelihood, Model, Objective, Posterior, Prior
from vae_jax.objectives.importance import importance_bound, in_groups
from vae_jax.objectives.renyi import renyi_bound
from vae_jax.step import loss_at_terms

THETA, PHI, PHI_DREG = "generative", "inference", "inference, DReG"
SAMPLES_AT_ONCE = 2**14


class NormalWithMean(Prior):
    """p(z) = N(mu, I) over `[dim]`."""

    dim: int

    factors = True

    @nn.compact
    def __call__(self, model: Model, y: Array | None = None) -> Normal:
        """Batch `[]`, event `[dim]`."""
        return Normal(self.param("mean", nn.initializers.zeros, (self.dim,)), jnp.ones(self.dim))


class NormalWithScale(Posterior):
    """q(z|x) = N(A x + b, 2/3 I) over `[dim]`."""

    dim: int

    traits = DiagonalGaussian.traits

    @nn.compact
    def __call__(self, features: Array) -> Normal:
        """`[B, D]` to batch `[B]`, event `[dim]`."""
        loc = nn.Dense(self.dim, name="loc")(features)
        return Normal(loc, jnp.full_like(loc, math.sqrt(2 / 3)))


class NormalAroundZ(Likelihood):
    """p(x|z) = N(z, I)."""

    supports = frozenset({"real"})

    def __call__(self, features: Array, image_shape: Shape) -> Normal:
        """`[N, D]` to batch `[N]`, event `image_shape`."""
        loc = features.reshape(-1, *image_shape)
        return Normal(loc, jnp.ones_like(loc), event_ndims=3)


@dataclass(frozen=True)
class Toy:
    """The model, its images, and parameters near the optimum mu = mean of x, A = I/2, b = mu/2.

    Attributes:
        model: p(z), p(x|z) and q(z|x).
        params: mu, A and b.
        x: images `[N, D, 1, 1]`.
    """

    model: VAE
    params: dict[str, Any]
    x: np.ndarray

    @classmethod
    def make(cls, dim: int, images: int, offset: float, seed: int = 0) -> "Toy":
        """Draw mu, the images, and the parameters' offsets from the optimum, N(0, offset²)."""
        generator = np.random.default_rng(seed)
        x = generator.normal(size=dim) + math.sqrt(2) * generator.normal(size=(images, dim))
        mu = x.mean(0)
        optimum = {
            "prior": {"mean": mu},
            "posterior": {"loc": {"kernel": np.eye(dim) / 2, "bias": mu / 2}},
        }
        params = jax.tree.map(lambda p: p + offset * generator.normal(size=p.shape), optimum)
        model = VAE(
            encoder=MLP(()),
            posterior=NormalWithScale(dim),
            prior=NormalWithMean(dim),
            decoder=MLP(()),
            likelihood=NormalAroundZ(),
            image_shape=(dim, 1, 1),
        )
        x = x.reshape(-1, dim, 1, 1).astype(np.float32)
        return cls(model, jax.tree.map(np.float32, params), x)

    def log_likelihood(self) -> np.ndarray:
        """ln p(x) = ln N(x; mu, 2 I), `[N]`."""
        square = ((self.x[..., 0, 0] - self.params["prior"]["mean"]) ** 2).sum(1)
        return -0.25 * square - 0.5 * self.x.shape[1] * math.log(4 * math.pi)

    def map_images(self, function: Callable[[Array, Array], Any], samples: int) -> Callable:
        """Map a function over the images, each with its own key, several images at a time.

        Args:
            function: a function of an image `[1, D, 1, 1]` and keys `[1]`.
            samples: the number of samples that it draws.

        Returns:
            A function from one key to the stacked results.
        """
        x = jnp.asarray(self.x)[:, None]

        def of_key(key: Array) -> Any:
            keys = random.indexed(key, jnp.arange(len(x))[:, None])
            at_once = max(1, SAMPLES_AT_ONCE // samples)
            return lax.map(lambda pair: function(*pair), (x, keys), batch_size=at_once)

        return of_key

    def moments(self, objective: Objective, replicates: int) -> dict[str, tuple[float, float]]:
        """|E g|² and E |g - E g|² of the whole batch's gradient g, for each group of parameters.

        Images are independent, so the second is a sum over images. The contribution of noise to
        |mean g|² is subtracted.

        Args:
            objective: the bound that is differentiated.
            replicates: the number of draws of all the noise.
        """

        def gradient(x: Array, keys: Array) -> dict[str, Array]:
            def loss(params: Any) -> Array:
                apply = nn.apply(loss_at_terms, self.model)
                return apply({"params": params}, objective, x, keys, None, jnp.int32(0))[0]

            groups = jax.grad(loss)(self.params)
            return {name: ravel_pytree(group)[0] for name, group in groups.items()}

        of_key = self.map_images(gradient, objective.num_samples)

        @jax.jit
        def sums() -> Any:
            def add(totals: Any, key: Array) -> tuple[Any, None]:
                each = of_key(key)
                return jax.tree.map(jnp.add, totals, (each, jax.tree.map(jnp.square, each))), None

            zeros = jax.tree.map(lambda g: jnp.zeros(g.shape), jax.eval_shape(of_key, keys[0]))
            return lax.scan(add, (zeros, zeros), keys)[0]

        keys = random.indexed(random.purpose(random.key(0), "gradients"), jnp.arange(replicates))
        totals, squares = jax.tree.map(np.float64, sums())
        found = {}
        for name, total in totals.items():
            variance = (squares[name] - total**2 / replicates) / (replicates - 1)
            noise = variance.sum() / len(self.x) ** 2
            signal = ((total.sum(0) / len(self.x) / replicates) ** 2).sum()
            found[name] = float(signal - noise / replicates), float(noise)
        return found

    def signal_to_noise(self, m: int, k: int, replicates: int) -> dict[str, float]:
        """|E g| / sqrt(E |g - E g|²) of mu's gradient and of (A, b)'s, without and with DReG.

        The two estimators for (A, b) have the same mean, which is taken from the less noisy one.

        Args:
            m: M, the number of bounds.
            k: K, the number of samples in each.
            replicates: the number of draws of all the noise, at least 2.
        """
        plain = self.moments(MIWAE(m, k), replicates)
        dreg = self.moments(MIWAE(m, k, doubly_reparameterized=True), replicates)
        return {
            THETA: math.sqrt(plain["prior"][0] / plain["prior"][1]),
            PHI: math.sqrt(dreg["posterior"][0] / plain["posterior"][1]),
            PHI_DREG: math.sqrt(dreg["posterior"][0] / dreg["posterior"][1]),
        }


def slope(counts: Any, ratios: Any) -> float:
    """The least-squares slope of ln ratio over ln count."""
    return float(np.polyfit(np.log(counts), np.log(ratios), 1)[0])


def snr_curves(toy: Toy, ms: list[int], ks: list[int], draws: int, tail: int) -> plots.Curves:
    """Ratios against K if it varies, else against M, with the slopes of the last `tail` points."""
    pairs = list(zip(ms, ks, strict=True))
    ratios = [toy.signal_to_noise(m, k, max(2, draws // (m * k))) for m, k in pairs]
    counts = ks if len(set(ks)) > 1 else ms
    named = {name: [each[name] for each in ratios] for name in ratios[0]}
    return {
        f"{name}, slope ${slope(counts[-tail:], values[-tail:]):+.2f}$": (counts, values)
        for name, values in named.items()
    }


def bound_curves(toy: Toy, draws: int) -> plots.Curves:
    """Bounds with T samples against T: means over images and over all groups of T samples."""

    def log_w(x: Array, keys: Array) -> Array:
        terms: Any = toy.model.apply({"params": toy.params}, x, keys, draws)
        return terms.log_w[:, 0]

    all_log_w = jax.jit(toy.map_images(log_w, draws))(random.purpose(random.key(0), "bounds")).T

    def mean(bound: Callable[[Array], Array], samples: int) -> float:
        return float(in_groups(bound, draws // samples)(all_log_w).mean())

    counts = [2**i for i in range(9)]
    elbo, exact = mean(importance_bound, 1), float(toy.log_likelihood().mean())
    iwae = np.array([mean(importance_bound, count) for count in counts])
    renyi = [mean(partial(renyi_bound, alpha=0.5), count) for count in counts]
    return {
        r"$\ln p(x)$": (counts, [exact] * len(counts)),
        "IWAE": (counts, iwae),
        r"Rényi, $\alpha = 0.5$": (counts, renyi),
        r"CIWAE, $\beta = 0.5$": (counts, (elbo + iwae) / 2),
        "MIWAE, $M = 8$": (counts[3:], iwae[:-3]),
        "ELBO": (counts, [elbo] * len(counts)),
    }


def main(
    workdir: Path = Path("runs/signal_to_noise"),
    dim: int = 20,
    images: int = 1024,
    offset: float = 0.01,
    draws: int = 4096,
) -> None:
    """Plot the toy's signal-to-noise ratios against K and M, and its bounds beside exact ln p(x).

    Args:
        workdir: the folder of the figures.
        dim: D, the dimensions of x and z.
        images: N, the number of images.
        offset: the standard deviation of each parameter's distance from its optimum.
        draws: the number of samples of z for each image, point and estimator; a multiple of 256.
    """
    toy = Toy.make(dim, images, offset)
    ks, ms = [1, 4, 16, 64, 256, 1024], [1, 4, 16]
    ratios = {
        "$M = 1$, slopes from $K = 64$ on": snr_curves(toy, [1] * len(ks), ks, draws, tail=3),
        "$K = 64$": snr_curves(toy, ms, [64] * len(ms), draws, tail=3),
    }
    bounds = {f"$D = {dim}$, $N = {images}$": bound_curves(toy, draws)}
    gradients = plots.scaling(
        ratios, xlabel="$K$ samples in each bound, or $M$ bounds", ylabel="signal-to-noise ratio"
    )
    below = plots.scaling(
        bounds, xlabel="samples of z for each image", ylabel="nats per image", yscale="linear"
    )
    print(plots.save(gradients, workdir / "signal_to_noise.png"))
    print(plots.save(below, workdir / "bounds.png"))


if __name__ == "__main__":
    tyro.cli(main)
