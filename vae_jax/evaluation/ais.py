"""Annealed importance sampling of ln p(x): from below, and on simulated images from both sides.

The approximate posterior q(z|x) is not used at all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict
from jax import Array, lax

from vae_jax import random
from vae_jax.compatibility import check_prior_density
from vae_jax.data import SplitName
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.evaluation.over_split import Evaluator, over_split
from vae_jax.experiment import Experiment
from vae_jax.given import Checked, Count, Index
from vae_jax.hmc import Point, flatten, hmc, make_point_at
from vae_jax.interfaces import Layers, Model

ACCEPTANCE = 0.65
# The number of chains that tune the step size and do not count: a weight with transitions that
# depended on its own past would no longer be unbiased.
PILOTS = 4
FIRST_STEP_SIZE, STEP_SIZE_RATE = 0.3, 0.1
Drawn = tuple[Layers, Distribution]


@dataclass(frozen=True)
class AIS(Checked):
    """Settings of annealed importance sampling.

    Attributes:
        num_temperatures: the number of transitions T from the prior to the posterior.
        num_chains: the number of chains M over which weights are averaged.
        num_leapfrog: the number of steps of Hamiltonian dynamics L in each transition.

    Raises:
        VaeJaxError: one of the first two is below 1, or the last below 0.

    References:
        Neal (2001), "Annealed importance sampling".
        Wu et al. (2017), "On the quantitative analysis of decoder-based generative models".
        Grosse et al. (2015), "Sandwiching the marginal likelihood using bidirectional Monte Carlo",
            for the bound from above.
        Neal (2011), "MCMC using Hamiltonian dynamics", for the transitions.
    """

    num_temperatures: Count = 1000
    num_chains: Count = 16
    num_leapfrog: Index = 10

    def __str__(self) -> str:
        return f"T = {self.num_temperatures}, {self.num_chains} chains"

    @property
    def betas(self) -> np.ndarray:
        """The inverse temperatures 0 = beta_0 < ... < beta_T = 1, a rescaled sigmoid on [-4, 4]."""
        sigmoid = 1 / (1 + np.exp(-np.linspace(-4, 4, self.num_temperatures + 1)))
        return (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])


class Annealed(NamedTuple):
    """The result of T transitions.

    Attributes:
        log_w: log-weights `[M, B]`.
        step_sizes: the step sizes `[T, B]`, which `reverse` takes.
        acceptance: the mean acceptance probability of a move, `[B]`.
    """

    log_w: Array
    step_sizes: Array
    acceptance: Array


def forward(point_at: Callable[[Array], Point], z: Array, keys: Array, settings: AIS) -> Annealed:
    """Anneal chains from the prior to the posterior: E[w] = p(x), and E[ln w] <= ln p(x).

    ln w = sum_t (beta_t - beta_{t-1}) ln p(x|z_{t-1}), where z_t is a transition of z_{t-1} that
    leaves p(z) p(x|z)^beta_t invariant (Neal 2001). The first `PILOTS` chains move the step size of
    the others towards an acceptance of 0.65 by stochastic approximation (Wu et al. 2017).

    Args:
        point_at: a function from latents `[PILOTS + M, B, D]` to the Point there.
        z: draws from the prior, of that shape.
        keys: typed keys `[B]`.
        settings: T and L.
    """

    def step(
        carry: tuple[Point, Array, Array], temperature: tuple[Array, ...]
    ) -> tuple[tuple[Point, Array, Array], tuple[Array, Array]]:
        point, log_w, log_size = carry
        t, before, beta = temperature
        log_w += (beta - before) * point.log_px[PILOTS:]
        own, size = random.indexed(keys, t), jnp.exp(log_size)
        point, acceptance = hmc(point_at, point, own, beta, size, settings.num_leapfrog)
        log_size += STEP_SIZE_RATE * (acceptance[:PILOTS].mean(0) - ACCEPTANCE)
        return (point, log_w, log_size), (size, acceptance[PILOTS:].mean(0))

    point, log_size = point_at(z), jnp.full(z.shape[1], math.log(FIRST_STEP_SIZE))
    carry = point, jnp.zeros_like(point.log_px[PILOTS:]), log_size
    (_, log_w, _), (sizes, acceptance) = lax.scan(step, carry, _temperatures(settings))
    return Annealed(log_w, sizes, acceptance.mean(0))


def reverse(
    point_at: Callable[[Array], Point], z: Array, keys: Array, settings: AIS, step_sizes: Array
) -> Array:
    """Anneal chains from the posterior to the prior: E[1/w] = 1/p(x), so E[ln w] >= ln p(x).

    The transitions are those of `forward` in reverse order (Grosse et al. 2015).

    Args:
        point_at: a function from latents `[M, B, D]` to the Point there.
        z: draws from the posterior p(z|x), of that shape; the chains of an image may share one.
        keys: typed keys `[B]`.
        settings: T and L.
        step_sizes: the step sizes `[T, B]` of `forward` for the same images.

    Returns:
        Log-weights ln w, `[M, B]`.
    """

    def step(
        carry: tuple[Point, Array], temperature: tuple[Array, ...]
    ) -> tuple[tuple[Point, Array], None]:
        point, log_w = carry
        t, before, beta, size = temperature
        own = random.indexed(keys, t)
        point, _ = hmc(point_at, point, own, beta, size, settings.num_leapfrog)
        return (point, log_w + (beta - before) * point.log_px), None

    point = point_at(z)
    carry = point, jnp.zeros_like(point.log_px)
    temperatures = *_temperatures(settings), step_sizes
    (_, log_w), _ = lax.scan(step, carry, temperatures, reverse=True)
    return log_w


def _temperatures(settings: AIS) -> tuple[Array, ...]:
    betas = jnp.asarray(settings.betas, jnp.float32)
    return jnp.arange(settings.num_temperatures), betas[:-1], betas[1:]


def log_mean_exp(log_w: Array) -> Array:
    """The logarithm of the mean over the first axis of weights with logarithms `log_w`."""
    return jax.nn.logsumexp(log_w, axis=0) - math.log(len(log_w))


def prior_draws(
    model: Model, variables: VariableDict, keys: Array, chains: int, y: Array | None = None
) -> Layers:
    """Latents of all layers from the prior.

    Args:
        model: the generative model.
        variables: its variables.
        keys: typed keys `[B]`.
        chains: the number of chains C.
        y: labels `[B]` of a conditional model.

    Returns:
        Latents `[C, B, *event]` of each layer.
    """
    own = random.indexed(keys, jnp.arange(chains)[:, None])
    zs, _ = cast(Drawn, model.apply(variables, own.reshape(-1), y, method="sample"))
    return jax.tree.map(lambda leaf: leaf.reshape(chains, -1, *leaf.shape[1:]), zs)


def anneal(
    model: Model,
    variables: VariableDict,
    x: Array,
    keys: Array,
    settings: AIS,
    y: Array | None = None,
) -> Annealed:
    """Run `forward` from draws of a model's prior.

    Args:
        model: the generative model.
        variables: its variables.
        x: images `[B, H, W, C]`.
        keys: typed keys `[B]`.
        settings: T, M and L.
        y: labels `[B]` of a conditional model.

    Returns:
        The result of the transitions, for M chains.
    """
    chains = PILOTS + settings.num_chains
    zs = prior_draws(model, variables, random.purpose(keys, "chains"), chains, y)
    z, unflatten = flatten(zs)
    point_at = make_point_at(model, variables, x, unflatten, y)
    return forward(point_at, z, random.purpose(keys, "transitions"), settings)


def simulate(
    model: Model, variables: VariableDict, keys: Array, y: Array | None = None
) -> tuple[Array, Layers]:
    """Images from a model with their latents, which are exact draws from p(z|x).

    Args:
        model: the generative model.
        variables: its variables.
        keys: typed keys `[B]`.
        y: labels `[B]` of a conditional model.

    Returns:
        Images `[B, H, W, C]`, and the latents of all layers.
    """
    zs, px = cast(Drawn, model.apply(variables, keys, y, method="sample"))
    return px.sample(random.purpose(keys, "pixels")), zs


def bracket(
    model: Model,
    variables: VariableDict,
    x: Array,
    zs: Layers,
    keys: Array,
    settings: AIS,
    y: Array | None = None,
) -> tuple[Array, Array]:
    """Stochastic bounds on ln p(x) from below and above, `[B]` each, in nats.

    Args:
        model: the generative model.
        variables: its variables.
        x: images `[B, H, W, C]`.
        zs: a draw from p(z|x) for each image, such as `simulate` makes.
        keys: typed keys `[B]`.
        settings: T, M and L.
        y: labels `[B]` of a conditional model.
    """
    annealed = anneal(model, variables, x, keys, settings, y)
    shared = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (settings.num_chains, *leaf.shape)), zs
    )
    z, unflatten = flatten(shared)
    point_at = make_point_at(model, variables, x, unflatten, y)
    own = random.purpose(keys, "reverse")
    log_w = reverse(point_at, z, own, settings, annealed.step_sizes)
    return log_mean_exp(annealed.log_w), -log_mean_exp(-log_w)


def make_ais_evaluator(
    experiment: Experiment, split: SplitName, settings: AIS, num_images: int | None = None
) -> Evaluator:
    """Compile annealed importance sampling for a whole split, on all devices.

    Args:
        experiment: the experiment, for its data and model.
        split: the split of the data.
        settings: T, M and L.
        num_images: the number of images N, evenly spaced over the split; None takes all.

    Returns:
        An evaluator of `nll_ais`, an upper bound on -ln p(x) in nats; `simulated_nll_upper` and
        `simulated_nll_lower`, bounds on it for N images simulated from the model, in nats;
        and `ais_acceptance`, the mean acceptance probability of a move; `[S, N]` each.

    Raises:
        VaeJaxError: the latents of a layer are not real vectors, p(x|z) is not normalized, or as in
            `over_split`.
    """
    model = experiment.model
    check_prior_density(model.prior, "Annealed importance sampling")
    for posterior in model.posteriors:
        if posterior.space != "real":
            raise VaeJaxError(
                "Annealed importance sampling moves along gradients through real latents, and "
                f"those of {type(posterior).__name__} are in the space {posterior.space!r}: leave "
                "it out for this run."
            )
    if model.likelihood.measure == "pseudo":
        raise VaeJaxError(
            f"{type(model.likelihood).__name__} is not normalized, so there is no ln p(x) for "
            "annealed importance sampling to estimate: leave it out for this run."
        )

    def each_image(
        variables: VariableDict, x: Array, keys: Array, y: Array | None
    ) -> dict[str, Array]:
        annealed = anneal(model, variables, x, keys, settings, y)
        own = random.purpose(keys, "simulation")
        simulated, zs = simulate(model, variables, own, y)
        lower, upper = bracket(
            model, variables, simulated, zs, random.purpose(own, "bracket"), settings, y
        )
        return {
            "nll_ais": -log_mean_exp(annealed.log_w),
            "simulated_nll_upper": -lower,
            "simulated_nll_lower": -upper,
            "ais_acceptance": annealed.acceptance,
        }

    return over_split(experiment, split, each_image, num_images, PILOTS + settings.num_chains)
