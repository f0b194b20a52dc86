"""Monte Carlo expectation maximization, whose posterior is that of the generative model itself."""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax import random
from vae_jax.given import Bounds, Count
from vae_jax.hmc import Point, flatten, hmc, make_point_at
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.vae import Terms, has_bound

FIRST_STEP_SIZE, STEP_SIZE_RATE = 0.1, 1.0


@dataclass(frozen=True)
class MonteCarloEM(Objective):
    """-ln p(x, z) at a draw of z from p(z|x), held fixed, whose gradient is that of -ln p(x).

    By Fisher's identity the gradient of ln p(x) is the mean of that of ln p(x, z) over p(z|x). For
    each image and step a chain of Hamiltonian Monte Carlo begins at a draw from the prior. The
    gradient is biased, since the chain remembers where it began and tunes its step size by its own
    moves; more transitions reduce the bias. There is no q(z|x): encoder and posterior do not learn,
    unless the prior depends on them.

    Attributes:
        num_transitions: the number of transitions of a chain T.
        num_leapfrog: the number of steps of Hamiltonian dynamics L in each transition.
        acceptance: the probability, in (0, 1), of accepting a move, which sets the step size.

    References:
        Wei & Tanner (1990), "A Monte Carlo implementation of the EM algorithm".
        Kingma & Welling (2013), "Auto-encoding variational Bayes", appendix E, for transitions of
            10 steps with an acceptance of 0.9.
    """

    num_transitions: Count = 10
    num_leapfrog: Count = 10
    acceptance: Annotated[float, Bounds(above=0, below=1)] = 0.9

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(spaces=frozenset({"real"}), exact_prior=True, image_by_image=True)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image; metrics are the bound by q, if any, and the acceptance."""
        del step
        x, y = terms.x, terms.y
        zs, _ = model.sample(random.purpose(terms.keys, "chains"), y)
        z, unflatten = flatten(jax.tree.map(lambda leaf: lax.stop_gradient(leaf)[None], zs))
        module, variables = model.unbind()
        point_at = make_point_at(module, lax.stop_gradient(variables), x, unflatten, y)
        keys = random.purpose(terms.keys, "transitions")
        first = point_at(z), jnp.full(len(x), math.log(FIRST_STEP_SIZE))

        def transition(
            chain: tuple[Point, Array], number: Array
        ) -> tuple[tuple[Point, Array], Array]:
            point, log_size = chain
            own, size = random.indexed(keys, number), jnp.exp(log_size)
            point, accepted = hmc(point_at, point, own, jnp.ones(()), size, self.num_leapfrog)
            log_size += STEP_SIZE_RATE * (accepted[0] - self.acceptance)
            return (point, log_size), accepted.mean()

        (point, _), accepted = lax.scan(transition, first, jnp.arange(self.num_transitions))
        zs = jax.tree.map(lambda leaf: leaf[0], unflatten(lax.stop_gradient(point.z)))
        log_px, log_pz = model.log_densities(x, zs, y)
        metrics = terms.bound_metrics() if has_bound(model) else terms.rate_and_distortion()
        return -(log_px + log_pz).mean(), metrics | {"acceptance": accepted.mean()}
