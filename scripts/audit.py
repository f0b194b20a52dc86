"""Prints today's values of numbers that were wrong in the first edition: docs/trust.md's table.

    python scripts/audit.py

Each is compared with an independent value: NumPy or SciPy in float64, a closed form, or a count.
The script takes a minute on two cores and needs no data.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

import vae_jax as vj
from vae_jax import metrics, random
from vae_jax.distributions import Concrete, Mixture, Normal, nearest
from vae_jax.distributions.hypersphere import VonMisesFisherDistribution
from vae_jax.evaluation.evaluate import active_units
from vae_jax.evaluation.moments import Moments
from vae_jax.flows import MADE, Householder
from vae_jax.likelihoods.beta import MAX_LOG_CONCENTRATION, BetaDistribution
from vae_jax.objectives.renyi import renyi_bound

RNG = np.random.default_rng(0)


def compiled_reflection() -> float:
    """The largest error of a compiled reflection at K = 64, B = 20, d = 32."""
    x, v = RNG.normal(size=(64, 20, 32)), RNG.normal(size=(20, 1, 32))
    unit = v[:, 0] / np.linalg.norm(v[:, 0], axis=-1, keepdims=True)
    expected = x - 2 * unit * (unit * x).sum(-1, keepdims=True)
    found = jax.jit(lambda x, v: Householder(v).forward_and_log_det(x)[0])(
        x.astype(np.float32), v.astype(np.float32)
    )
    return float(np.abs(found - expected).max())


def mixture_gradient() -> float:
    """The largest relative error of d ln p / d scale at spread 3 and scale 0.01."""
    loc = RNG.normal(0, 3, (64, 20)).astype(np.float32)
    x = (loc[RNG.integers(64, size=128)] + RNG.normal(0, 0.01, (128, 20))).astype(np.float32)

    def total(scale: Any) -> Any:
        components = Normal(jnp.asarray(loc), scale)
        return Mixture(jnp.full(64, -math.log(64)), components).log_prob(jnp.asarray(x)).sum()

    found = jax.jit(jax.grad(total))(jnp.full((64, 20), 0.01))
    difference = x[:, None].astype(float) - loc
    z = difference / np.float32(0.01)
    weight = special.softmax(-0.5 * (z**2).sum(-1), axis=1)
    expected = (weight[..., None] * (z**2 - 1)).sum(0) / np.float32(0.01)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def beta_integral() -> float:
    """The largest error of Beta's integral at concentrations of 1e4 and the module's limit."""
    errors = []
    for k in np.float32(1e4), np.float32(np.exp(MAX_LOG_CONCENTRATION)):
        a = 1 + float(k) / 2
        edges = stats.beta.ppf(np.linspace(1e-9, 1 - 1e-9, 200_001), a, a)
        x = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
        density = BetaDistribution(
            jnp.full(x.shape, 0.5), concentration=jnp.asarray(k), event_ndims=0
        )
        p = np.exp(np.asarray(jax.jit(density.log_prob)(x), float))
        errors.append(abs((p * np.diff(edges)).sum() - 1))
    return max(errors)


def renyi_near_one() -> float:
    """The largest error in nats of the Rényi bound at alpha = 0.999999."""
    log_w, alpha = RNG.normal(-90, 3, (50, 100)).astype(np.float32), 0.999999
    mean_power = np.exp((1 - alpha) * log_w.astype(float)).mean(0)
    found = jax.jit(renyi_bound, static_argnums=1)(log_w, alpha)
    return float(np.abs(found - np.log(mean_power) / (1 - alpha)).max())


def nearest_with_an_offset() -> float:
    """The share of vectors, all near 1e5, that are not assigned to the nearest of 64."""
    codes = (1e5 + RNG.normal(size=(64, 8))).astype(np.float32)
    x = (codes[RNG.integers(64, size=500)] + RNG.normal(0, 0.3, (500, 8))).astype(np.float32)
    distances = ((x[:, None].astype(float) - codes) ** 2).sum(-1)
    return float((np.asarray(jax.jit(nearest)(x, codes)) != distances.argmin(-1)).mean())


def concrete_far_apart() -> float:
    """The largest error in nats of ln q of a Concrete draw whose logits are 200 apart."""
    logits, temperature = np.array([0.0, 10.0, -10.0]), 0.1
    q = Concrete(jnp.asarray(logits, jnp.float32)[None, None], temperature)
    value, log_q = q.sample_and_log_prob(random.key(0), (1000,))
    scores = logits - temperature * np.asarray(value, float)[:, 0, 0]
    exact = math.lgamma(3) + 2 * math.log(temperature) + special.log_softmax(scores, -1).sum(-1)
    return float(np.abs(np.asarray(log_q)[:, 0] - exact).max())


def sphere_at_the_ends() -> float:
    """Von Mises-Fisher draws, at the ends of the noise, that are not finite, of 270."""
    us = np.array([2.0**-24, 0.5, 1 - 2.0**-24], np.float32)
    kappas = np.array([0, 1e-3, 1, 5.4, 17, 300, 1e4, 1e5, 1e6], np.float32)
    count = 0
    for dim in (2, 3, 5, 10, 11, 20, 40, 41, 100, 200):
        loc = jnp.zeros((len(kappas), dim)).at[:, 0].set(1.0)
        q = VonMisesFisherDistribution(loc, jnp.asarray(kappas))
        angle = q._angle(jnp.broadcast_to(us[:, None], (len(us), len(kappas))))
        count += int((~np.isfinite(np.asarray(angle))).sum())
    return count


def units_by_chance() -> float:
    """Active units, of ten, of a posterior that ignores its images, from means of 50 samples."""
    z = RNG.normal(size=(1000, 50, 10))

    def moments(values: Any) -> Moments:
        squares = ((values - values.mean(0)) ** 2).sum(0)
        each = np.full(1, len(z)), values.mean(0)[None], squares[None]
        return Moments(*map(jnp.asarray, each))

    return float(active_units(moments(z.mean(1)), moments(z.var(1, ddof=1) / 50))[0])


def false_intervals() -> float:
    """Fréchet intervals that do not contain zero, of 20 pairs of equal sets: N = 40, F = 224."""
    found = [metrics.frechet_distance(*RNG.normal(size=(2, 40, 224))) for _ in range(20)]
    return sum(not math.isnan(each.low) and not each.low <= 0 <= each.high for each in found)


def inputs_unseen() -> float:
    """Inputs, of 199, on which no output of a MADE depends, with hidden layers of 128."""
    network, x = MADE((128,)), jnp.zeros((1, 200))
    variables = jax.tree.map(jnp.ones_like, network.init(random.key(0), x))
    loc, _ = jax.jacfwd(lambda x: network.apply(variables, x))(x)
    return float((np.abs(loc[0, :, 0]).max(0)[:-1] == 0).sum())


def two_levels() -> float:
    """The share of the rarer of two FSQ levels, with symmetric features."""
    h = RNG.normal(size=(1000, 1, 1, 1))
    h = np.concatenate([h, -h]).astype(np.float32)
    posterior = vj.FiniteScalarQuantized((2,))
    variables = posterior.init(random.key(0), h)
    q: Any = posterior.apply(variables, h)
    code = np.asarray(q.mean).ravel()
    share = (code == code.min()).mean()
    return float(min(share, 1 - share))


NUMBERS: list[Callable[[], float]] = [
    compiled_reflection,
    mixture_gradient,
    beta_integral,
    renyi_near_one,
    nearest_with_an_offset,
    concrete_far_apart,
    sphere_at_the_ends,
    units_by_chance,
    false_intervals,
    inputs_unseen,
    two_levels,
]


def main() -> None:
    """Print a row for each number."""
    print("| number | value |\n|---|---|")
    for number in NUMBERS:
        print(f"| {(number.__doc__ or '').rstrip('.')} | {number():.3g} |")


if __name__ == "__main__":
    main()
