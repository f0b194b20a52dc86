"""Annealed importance sampling of ln p(x): from below, and on simulated images from both sides.

Wu et al. (2017), "On the quantitative analysis of decoder-based generative models"; Neal (2001);
the bound from above is bidirectional Monte Carlo (Grosse et al. 2015). q(z|x) is not used at all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from vae_jax import random
from vae_jax.data import SplitName
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.evaluation.over_split import DECODED_FLOATS, over_split
from vae_jax.experiment import Experiment
from vae_jax.interfaces import Layers, Model

ACCEPTANCE = 0.65
# Chains that tune the step size and do not count: a weight whose transitions depended on its own
# past would be no longer unbiased.
PILOTS = 4
FIRST_STEP_SIZE, STEP_SIZE_RATE = 0.3, 0.1
Drawn = tuple[Layers, Distribution]


@dataclass(frozen=True)
class AIS:
    """How long and how often to anneal.

    Attributes:
        num_temperatures: T, transitions from the prior to the posterior.
        num_chains: M, over which weights are averaged.
        num_leapfrog: steps of Hamiltonian dynamics in each transition.

    Raises:
        VaeJaxError: there are none of the first two, or fewer than no steps.
    """

    num_temperatures: int = 1000
    num_chains: int = 16
    num_leapfrog: int = 10

    def __post_init__(self):
        for name, least in (("num_temperatures", 1), ("num_chains", 1), ("num_leapfrog", 0)):
            if getattr(self, name) < least:
                raise VaeJaxError(f"{name} is {getattr(self, name)}: it must be at least {least}.")

    def __str__(self) -> str:
        return f"T = {self.num_temperatures}, {self.num_chains} chains"

    @property
    def betas(self) -> np.ndarray:
        """The inverse temperatures, 0 = beta_0 < ... < beta_T = 1: a sigmoid on [-4, 4], scaled."""
        sigmoid = 1 / (1 + np.exp(-np.linspace(-4, 4, self.num_temperatures + 1)))
        return (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])


class Point(NamedTuple):
    """Where chains are: latents `[C, B, D]`, ln p(z) and ln p(x|z) `[C, B]`, and the gradients."""

    z: Array
    log_pz: Array
    log_px: Array
    gradient_pz: Array
    gradient_px: Array

    def log_target(self, beta: Array) -> Array:
        """ln p(z) + beta ln p(x|z), `[C, B]`."""
        return self.log_pz + beta * self.log_px

    def gradient(self, beta: Array) -> Array:
        """Of `log_target`, `[C, B, D]`."""
        return self.gradient_pz + beta * self.gradient_px


def leapfrog(
    point_at: Callable[[Array], Point],
    point: Point,
    momentum: Array,
    beta: Array,
    step_size: Array,
    num_steps: int,
) -> tuple[Point, Array]:
    """Steps of Hamiltonian dynamics: reversible, and of unit Jacobian (Neal 2011, section 2.3).

    Args:
        point_at: what there is to know at latents `[C, B, D]`.
        point: the start.
        momentum: `[C, B, D]`.
        beta: the inverse temperature.
        step_size: `[B]`.
        num_steps: L.
    """
    epsilon = step_size[:, None]

    def step(state: tuple[Point, Array], _: None) -> tuple[tuple[Point, Array], None]:
        point, momentum = state
        momentum = momentum + epsilon / 2 * point.gradient(beta)
        point = point_at(point.z + epsilon * momentum)
        momentum = momentum + epsilon / 2 * point.gradient(beta)
        return (point, momentum), None

    return lax.scan(step, (point, momentum), length=num_steps)[0]


def hmc(
    point_at: Callable[[Array], Point],
    point: Point,
    keys: Array,
    beta: Array,
    step_size: Array,
    num_steps: int,
) -> tuple[Point, Array]:
    """A transition that leaves p(z) p(x|z)^beta as it is (Neal 2011), in chains `[C, B]`.

    Args:
        point_at, point, beta, step_size, num_steps: as of `leapfrog`.
        keys: `[B]`.

    Returns:
        Where the chains go, and the probability of the move that was proposed, `[C, B]`.
    """
    key_momentum, key_accept = random.purposes(keys, "momentum", "accept")
    chains, *shape = point.z.shape
    momentum = random.draw(jax.random.normal, key_momentum, (chains,), tuple(shape))
    end, momentum_end = leapfrog(point_at, point, momentum, beta, step_size, num_steps)
    log_ratio = end.log_target(beta) - point.log_target(beta)
    log_ratio += ((momentum**2).sum(-1) - (momentum_end**2).sum(-1)) / 2
    probability = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    uniform = random.draw(jax.random.uniform, key_accept, (chains,), (shape[0],))
    accept = uniform < probability

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(accept.reshape(accept.shape + (1,) * (new.ndim - 2)), new, old)

    return jax.tree.map(choose, end, point), probability


class Annealed(NamedTuple):
    """What T transitions made: log-weights `[M, B]`, and for `reverse` the step sizes `[T, B]`.

    `acceptance` is the mean probability of a move, `[B]`.
    """

    log_w: Array
    step_sizes: Array
    acceptance: Array


def forward(point_at: Callable[[Array], Point], z: Array, keys: Array, settings: AIS) -> Annealed:
    """Chains from the prior to the posterior: E[w] = p(x), and E[ln w] <= ln p(x) (Neal 2001).

    ln w = sum_t (beta_t - beta_{t-1}) ln p(x|z_{t-1}); then z_t is a transition of z_{t-1} that
    leaves p(z) p(x|z)^beta_t as it is. The first `PILOTS` chains move the step size towards an
    acceptance of 0.65 (Wu et al. 2017) for the others, by stochastic approximation.

    Args:
        point_at: what there is to know at latents `[PILOTS + M, B, D]`.
        z: draws from the prior of that shape.
        keys: `[B]`.
        settings: T and L.
    """

    def step(carry: Any, temperature: tuple[Array, ...]) -> tuple[Any, tuple[Array, Array]]:
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
    """Chains from the posterior to the prior, `[M, B]`: E[1/w] = 1/p(x), so E[ln w] >= ln p(x).

    The transitions of `forward`, last first (Grosse et al. 2015).

    Args:
        point_at: what there is to know at latents `[M, B, D]`.
        z: draws from the posterior p(z|x) of that shape; chains of an image may share one.
        keys: `[B]`.
        settings: T and L.
        step_sizes: of `forward` for the same images.
    """

    def step(carry: Any, temperature: tuple[Array, ...]) -> tuple[Any, None]:
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
    """Over the first axis."""
    return jax.nn.logsumexp(log_w, axis=0) - math.log(len(log_w))


def prior_draws(
    model: Model, variables: Any, keys: Array, chains: int, y: Array | None = None
) -> Layers:
    """Latents of all layers from the prior, `[C, B, ...]`, for keys `[B]` and labels `[B]`."""
    own = random.indexed(keys, jnp.arange(chains)[:, None])
    zs, _ = cast(Drawn, model.apply(variables, own.reshape(-1), y, method="sample"))
    return jax.tree.map(lambda leaf: leaf.reshape(chains, -1, *leaf.shape[1:]), zs)


def flatten(zs: Layers) -> tuple[Array, Callable[[Array], Layers]]:
    """Latents of all layers, `[C, B, ...]`, as one array `[C, B, D]`, and the way back."""
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0, 0], zs))
    flat = jax.vmap(jax.vmap(lambda z: ravel_pytree(z)[0]))(zs)
    return flat, jax.vmap(jax.vmap(unravel))


def make_point_at(
    model: Model,
    variables: Any,
    x: Array,
    unflatten: Callable[[Array], Layers],
    y: Array | None = None,
) -> Callable[[Array], Point]:
    """Densities of a model at flat latents `[C, B, D]` for images `[B, H, W, C]`."""

    def log_densities(z: Array) -> tuple[Array, Array]:
        zs = unflatten(z)
        px = cast(Distribution, model.apply(variables, zs, y, method="decode"))
        log_pz = cast(Array, model.apply(variables, zs, y, method="log_prior"))
        return log_pz, px.log_prob(x)

    def point_at(z: Array) -> Point:
        (log_pz, log_px), pull_back = jax.vjp(log_densities, z)
        one, zero = jnp.ones_like(log_pz), jnp.zeros_like(log_pz)
        return Point(z, log_pz, log_px, *pull_back((one, zero)), *pull_back((zero, one)))

    return point_at


def anneal(
    model: Model, variables: Any, x: Array, keys: Array, settings: AIS, y: Array | None = None
) -> Annealed:
    """`forward` from draws of a model's prior, for images `[B, H, W, C]` and keys `[B]`."""
    chains = PILOTS + settings.num_chains
    zs = prior_draws(model, variables, random.purpose(keys, "chains"), chains, y)
    z, unflatten = flatten(zs)
    point_at = make_point_at(model, variables, x, unflatten, y)
    return forward(point_at, z, random.purpose(keys, "transitions"), settings)


def simulate(
    model: Model, variables: Any, keys: Array, y: Array | None = None
) -> tuple[Array, Layers]:
    """Images `[B, H, W, C]` from a model, and the latents they came from: z ~ p(z|x), exactly."""
    zs, px = cast(Drawn, model.apply(variables, keys, y, method="sample"))
    return px.sample(random.purpose(keys, "pixels")), zs


def bracket(
    model: Model,
    variables: Any,
    x: Array,
    zs: Layers,
    keys: Array,
    settings: AIS,
    y: Array | None = None,
) -> tuple[Array, Array]:
    """Stochastic bounds of ln p(x) from below and above, `[B]` each, in nats.

    Args:
        model: the generative model.
        variables: its variables.
        x: images `[B, H, W, C]`.
        zs: a draw from p(z|x) for each, as `simulate` makes.
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


def make_annealer(
    experiment: Experiment, split: SplitName, settings: AIS, num_images: int | None = None
) -> Callable[[Any], dict[str, np.ndarray]]:
    """Annealed importance sampling of a whole split, on all devices.

    Args:
        experiment: its data and model.
        split: of the data.
        settings: T, M and L.
        num_images: evenly spaced over the split; None takes all.

    Returns:
        As `over_split`, `[S, N]` each: `nll_ais`, an upper bound on -ln p(x), in nats;
        `simulated_nll_upper` and `simulated_nll_lower`, bounds on it of as many images that are
        simulated from the model, in nats; `ais_acceptance` of the transitions.

    Raises:
        VaeJaxError: a layer's latents are no real vectors, p(x|z) is not normalized, or as for
            `over_split`.
    """
    model = experiment.model
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

    def each_image(variables: Any, x: Array, keys: Array, y: Array | None) -> dict[str, Array]:
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

    decoded = math.prod(model.image_shape) * (PILOTS + settings.num_chains)
    return over_split(experiment, split, num_images, DECODED_FLOATS // decoded, each_image)
