"""Hamiltonian Monte Carlo in the latents of a model, several chains for each image."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax.typing import VariableDict
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from vae_jax import random
from vae_jax.interfaces import Layers, Model


class Point(NamedTuple):
    """The state of chains: latents, their densities and the gradients of these.

    Attributes:
        z: latents `[C, B, D]`.
        log_pz: ln p(z), `[C, B]`.
        log_px: ln p(x|z), `[C, B]`.
        gradient_pz: the gradient of ln p(z), `[C, B, D]`.
        gradient_px: the gradient of ln p(x|z), `[C, B, D]`.
    """

    z: Array
    log_pz: Array
    log_px: Array
    gradient_pz: Array
    gradient_px: Array

    def log_target(self, beta: Array) -> Array:
        """ln p(z) + beta ln p(x|z), `[C, B]`."""
        return self.log_pz + beta * self.log_px

    def gradient(self, beta: Array) -> Array:
        """The gradient of `log_target`, `[C, B, D]`."""
        return self.gradient_pz + beta * self.gradient_px


def leapfrog(
    point_at: Callable[[Array], Point],
    point: Point,
    momentum: Array,
    beta: Array,
    step_size: Array,
    num_steps: int,
) -> tuple[Point, Array]:
    """Take steps of Hamiltonian dynamics, which are reversible and have unit Jacobian.

    Args:
        point_at: a function from latents `[C, B, D]` to the Point there.
        point: the start.
        momentum: the momentum at the start, `[C, B, D]`.
        beta: the inverse temperature.
        step_size: the step size for each image, `[B]`.
        num_steps: the number of steps L.

    Returns:
        The end, and the momentum there.

    References:
        Neal (2011), "MCMC using Hamiltonian dynamics", section 2.3.
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
    """Make a transition that leaves p(z) p(x|z)^beta invariant (Neal 2011), in chains `[C, B]`.

    Args:
        point_at, point, beta, step_size, num_steps: as in `leapfrog`.
        keys: typed keys `[B]`.

    Returns:
        The new state, and the acceptance probability of the proposed move, `[C, B]`.
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


def flatten(zs: Layers) -> tuple[Array, Callable[[Array], Layers]]:
    """Latents zs of all layers, `[C, B, ...]`, as one array `[C, B, D]`, and the way back."""
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0, 0], zs))
    flat = jax.vmap(jax.vmap(lambda z: ravel_pytree(z)[0]))(zs)
    return flat, jax.vmap(jax.vmap(unravel))


def make_point_at(
    model: Model,
    variables: VariableDict,
    x: Array,
    unflatten: Callable[[Array], Layers],
    y: Array | None = None,
) -> Callable[[Array], Point]:
    """The function from flat latents to a model's Point.

    Args:
        model: the generative model.
        variables: its variables.
        x: images `[B, H, W, C]`.
        unflatten: the map from flat latents `[C, B, D]` to all layers.
        y: labels `[B]` of a conditional model.

    Returns:
        The function from latents `[C, B, D]` to the Point there.
    """

    def log_densities(z: Array) -> tuple[Array, Array]:
        densities = model.apply(variables, x, unflatten(z), y, method="log_densities")
        log_px, log_pz = cast(tuple[Array, Array], densities)
        return log_pz, log_px

    def point_at(z: Array) -> Point:
        (log_pz, log_px), pull_back = jax.vjp(log_densities, z)
        one, zero = jnp.ones_like(log_pz), jnp.zeros_like(log_pz)
        return Point(z, log_pz, log_px, *pull_back((one, zero)), *pull_back((zero, one)))

    return point_at
