"""Tighter bounds need not be better: Rainforth et al. (2018), and what DReG changes.

    vae-jax figures experiments/estimators.py
    vae-jax train experiments/estimators.py --objective miwae --workdir runs/estimators/miwae
    vae-jax evaluate runs/estimators/miwae --num-samples 5000

`figures` is about the paper's toy: z ~ N(mu, I) and x|z ~ N(z, I) in 20 dimensions, 1,024 images,
q(z|x) = N(A x + b, 2/3 I), each parameter off its optimum by N(0, 0.01²). Published (theorem 1):
with M bounds of K samples the signal-to-noise ratio of the gradient grows as sqrt(M K) for the
generative parameters and as sqrt(M / K) for the inference parameters; with doubly reparameterized
gradients (Tucker et al. 2019) the latter grows too, as sqrt(K).

Ours (25 November 2026, two CPU cores, seed 0): slopes of the log ratio from K = 64 to 1,024 are
+0.49 (generative), -0.50 (inference) and +0.49 (inference, DReG), and +0.51, +0.50 and +0.50 for M
from 1 to 16. Below K = 64 the generative ratio first falls: there A and b being off moves its
expected gradient, a term of order 1/K, more than mu's own distance does.

`train` is for the paper's comparison on MNIST with 64 samples, test NLL by L_5000 (read in a
secondary source): MIWAE(8, 8) 84.97 ± 0.10, PIWAE(8, 8) 84.46 ± 0.06, CIWAE 84.57 ± 0.09. Not run
here yet; optimizer, batch size and number of epochs are ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from vae_jax import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    MLP,
    PIWAE,
    VAE,
    Bernoulli,
    DiagonalGaussian,
    Experiment,
    RenyiBound,
    StandardNormal,
    load,
    plots,
)
from vae_jax.compatibility import Space, Trait
from vae_jax.data import Support
from vae_jax.distributions import Normal, Shape
from vae_jax.likelihoods.base import Measure
from vae_jax.objectives.base import Objective
from vae_jax.objectives.importance import importance_bound, in_groups, renyi_bound
from vae_jax.train import loss_and_metrics

THETA, PHI, PHI_DREG = "generative", "inference", "inference, DReG"
SAMPLES_AT_ONCE = 2**14


def experiment(
    *,
    objective: Literal["elbo", "iwae", "miwae", "piwae", "ciwae", "renyi"] = "miwae",
    m: int = 8,
    k: int = 8,
    beta: float = 0.5,
    alpha: float = 0.5,
    doubly_reparameterized: bool = False,
    epochs: int = 100,
    dataset: Literal["mnist", "fashion_mnist", "mnist_5k"] = "mnist",
) -> Experiment:
    """The one-layer model of Burda et al. (2015) with M * K samples for each image.

    Args:
        objective: the bound.
        m: M bounds, of `miwae` and `piwae`.
        k: K samples in each.
        beta: the weight of the ELBO in `ciwae`.
        alpha: of `renyi`.
        doubly_reparameterized: DReG, and for `elbo` sticking the landing.
        epochs: passes over the training images.
        dataset: dynamically binarized.
    """
    data = load(dataset)
    samples, dreg, batch_size = m * k, doubly_reparameterized, 100
    objectives: dict[str, Objective] = {
        "elbo": ELBO(samples, sticking_the_landing=dreg),
        "iwae": IWAE(samples, dreg),
        "miwae": MIWAE(m, k, dreg),
        "piwae": PIWAE(m, k, dreg),
        "ciwae": CIWAE(samples, beta, dreg),
        "renyi": RenyiBound(samples, alpha, dreg),
    }
    mean = np.clip(data.train.images.mean(0) / 255, 0.001, 0.999).reshape(-1)
    num_steps = epochs * len(data.train) // batch_size
    return Experiment(
        data=data,
        model=VAE(
            encoder=MLP((200, 200)),
            posterior=DiagonalGaussian(50),
            prior=StandardNormal(50),
            decoder=MLP((200, 200)),
            likelihood=Bernoulli(bias_init=nn.initializers.constant(np.log(mean / (1 - mean)))),
            image_shape=data.image_shape,
        ),
        objective=objectives[objective],
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-3, num_steps)),
        batch_size=batch_size,
        num_steps=num_steps,
    )


class NormalWithMean(nn.Module):
    """p(z) = N(mu, I) over `[dim]`."""

    dim: int

    spaces: ClassVar[frozenset[Space]] = frozenset({"real"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = True

    @nn.compact
    def __call__(self, model: Any) -> Normal:
        """Batch `[]`, event `[dim]`."""
        return Normal(self.param("mean", nn.initializers.zeros, (self.dim,)), jnp.ones(self.dim))


class NormalWithScale(nn.Module):
    """q(z|x) = N(A x + b, 2/3 I) over `[dim]`."""

    dim: int

    space: ClassVar[Space] = "real"
    event_ndims: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = DiagonalGaussian.traits

    @nn.compact
    def __call__(self, features: Array) -> Normal:
        """`[B, D]` to batch `[B]`, event `[dim]`."""
        loc = nn.Dense(self.dim, name="loc")(features)
        return Normal(loc, jnp.full_like(loc, math.sqrt(2 / 3)))


class NormalAroundZ(nn.Module):
    """p(x|z) = N(z, I)."""

    supports: ClassVar[frozenset[Support]] = frozenset({"real"})
    measure: ClassVar[Measure] = "density"

    def __call__(self, features: Array, image_shape: Shape) -> Normal:
        """`[N, D]` to batch `[N]`, event `image_shape`."""
        loc = features.reshape(-1, *image_shape)
        return Normal(loc, jnp.ones_like(loc), event_ndims=3)


@dataclass(frozen=True)
class Toy:
    """The model, images `[N, D, 1, 1]`, and parameters beside mu = mean of x, A = I/2, b = mu/2."""

    model: VAE
    params: dict[str, Any]
    x: np.ndarray

    @classmethod
    def make(cls, dim: int, images: int, offset: float, seed: int = 0) -> "Toy":
        """Draws mu, the images, and the parameters' distances from the optimum, N(0, offset²)."""
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
        """From one key to the function of each image and a key of its own, stacked, some at once.

        Args:
            function: of an image `[1, D, 1, 1]` and keys `[1]`.
            samples: that it draws.
        """
        x = jnp.asarray(self.x)[:, None]

        def of_key(key: Array) -> Any:
            keys = jax.random.split(key, (len(x), 1))
            at_once = max(1, SAMPLES_AT_ONCE // samples)
            return lax.map(lambda pair: function(*pair), (x, keys), batch_size=at_once)

        return of_key

    def moments(self, objective: Objective, replicates: int) -> dict[str, tuple[float, float]]:
        """Of the whole batch's gradient g, by group of parameters: |E g|² and E |g - E g|².

        Images are independent, so that the second is the sum of what they have each. What chance
        adds to |mean g|² is subtracted. The objective is as `Experiment.objective`.
        """

        def gradient(x: Array, keys: Array) -> dict[str, Array]:
            def loss(params: Any) -> Array:
                apply = nn.apply(loss_and_metrics, self.model)
                return apply({"params": params}, objective, x, keys, jnp.int32(0))[0]

            groups = jax.grad(loss)(self.params)
            return {name: ravel_pytree(group)[0] for name, group in groups.items()}

        of_key = self.map_images(gradient, objective.num_samples)

        @jax.jit
        def sums() -> Any:
            def add(totals: Any, key: Array) -> tuple[Any, None]:
                each = of_key(key)
                return jax.tree.map(jnp.add, totals, (each, jax.tree.map(jnp.square, each))), None

            zeros = jax.tree.map(lambda g: jnp.zeros(g.shape), jax.eval_shape(of_key, key))
            return lax.scan(add, (zeros, zeros), jax.random.split(key, replicates))[0]

        key = jax.random.key(0)
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

        The two estimators of the latter have the same mean, which is taken from the one with less
        noise.

        Args:
            m: M bounds.
            k: K samples in each.
            replicates: draws of all the noise, at least 2.
        """
        plain = self.moments(MIWAE(m, k), replicates)
        dreg = self.moments(MIWAE(m, k, doubly_reparameterized=True), replicates)
        return {
            THETA: math.sqrt(plain["prior"][0] / plain["prior"][1]),
            PHI: math.sqrt(dreg["posterior"][0] / plain["posterior"][1]),
            PHI_DREG: math.sqrt(dreg["posterior"][0] / dreg["posterior"][1]),
        }


def slope(counts: Any, ratios: Any) -> float:
    """Of ln ratio over ln count, by least squares."""
    return float(np.polyfit(np.log(counts), np.log(ratios), 1)[0])


def snr_curves(toy: Toy, ms: list[int], ks: list[int], draws: int, tail: int) -> plots.Curves:
    """Ratios by M, or by K where M stays, with the slopes of the last `tail` points."""
    pairs = list(zip(ms, ks, strict=True))
    ratios = [toy.signal_to_noise(m, k, max(2, draws // (m * k))) for m, k in pairs]
    counts = ks if len(set(ks)) > 1 else ms
    named = {name: [each[name] for each in ratios] for name in ratios[0]}
    return {
        f"{name}, slope ${slope(counts[-tail:], values[-tail:]):+.2f}$": (counts, values)
        for name, values in named.items()
    }


def bound_curves(toy: Toy, draws: int) -> plots.Curves:
    """Means over images, and over all groups of T samples, of bounds with T samples."""

    def log_w(x: Array, keys: Array) -> Array:
        terms: Any = toy.model.apply({"params": toy.params}, x, keys, draws)
        return terms.log_w[:, 0]

    all_log_w = jax.jit(toy.map_images(log_w, draws))(jax.random.key(1)).T

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


def figures(
    *,
    workdir: Path = Path("runs/estimators"),
    dim: int = 20,
    images: int = 1024,
    offset: float = 0.01,
    draws: int = 4096,
) -> list[Path]:
    """The toy's signal-to-noise ratios by K and by M, and its bounds below the exact ln p(x).

    Args:
        workdir: holds the figures.
        dim: D.
        images: N.
        offset: standard deviation of each parameter's distance from its optimum.
        draws: of z for each image, point and estimator; a multiple of 256.
    """
    toy = Toy.make(dim, images, offset)
    ks, ms = [1, 4, 16, 64, 256, 1024], [1, 4, 16]
    ratios = {
        "$M = 1$, slopes from $K = 64$ on": snr_curves(toy, [1] * len(ks), ks, draws, tail=3),
        "$K = 64$": snr_curves(toy, ms, [64] * len(ms), draws, tail=3),
    }
    bounds = {f"$D = {dim}$, $N = {images}$": bound_curves(toy, draws)}
    of_gradients = plots.scaling(
        ratios, xlabel="$K$ samples in each bound, or $M$ bounds", ylabel="signal-to-noise ratio"
    )
    of_bounds = plots.scaling(
        bounds, xlabel="samples of z for each image", ylabel="nats per image", yscale="linear"
    )
    return [
        plots.save(of_gradients, workdir / "signal_to_noise.png"),
        plots.save(of_bounds, workdir / "bounds.png"),
    ]
