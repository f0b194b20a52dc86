"""Where the ELBO loses against ln p(x): the family of q, or the encoder (Cremer et al. 2018).

ln p(x) - L[q] = (ln p(x) - L[q*]) + (L[q*] - L[q]), approximation gap and amortization gap, where
q* is the best for the image within the family of q.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from vae_jax import random
from vae_jax.data import SplitName
from vae_jax.distributions import Distribution, MultivariateNormal, Normal, exact_kl
from vae_jax.errors import VaeJaxError
from vae_jax.evaluation.over_split import DECODED_FLOATS, SAMPLES_AT_ONCE, over_split
from vae_jax.experiment import Experiment
from vae_jax.interfaces import Model, has_bound
from vae_jax.vae import VAE

# Adam on each image by itself: its rate is halved after a block of steps that brought no higher
# bound on average, and it is done when the rate is below the last.
SAMPLES, BLOCK, MAX_BLOCKS = 16, 100, 100
FIRST_RATE, LAST_RATE = 3e-2, 5e-4


def unconstrained(q: Distribution) -> tuple[Any, Callable[[Any], Distribution]]:
    """Parameters of a density that may be any real numbers, and the density of such parameters.

    Raises:
        VaeJaxError: the family is not known here.
    """
    match q:
        case Normal(loc, scale, event_ndims=ndims):
            log_scale = jnp.broadcast_to(jnp.log(scale), loc.shape)

            def make_normal(theta: Any) -> Normal:
                return Normal(theta[0], jnp.exp(theta[1]), event_ndims=ndims)

            return (loc, log_scale), make_normal
        case MultivariateNormal(loc, scale_tril):
            diagonal = jnp.eye(loc.shape[-1], dtype=bool)
            theta = loc, jnp.where(diagonal, jnp.log(scale_tril), scale_tril)

            def make(theta: Any) -> MultivariateNormal:
                loc, free = theta
                scale_tril = jnp.where(diagonal, jnp.exp(free), jnp.tril(free))
                return MultivariateNormal(loc, scale_tril)

            return theta, make
    raise VaeJaxError(
        "The amortization gap needs the best q(z|x) of a family for each image, which is found for "
        f"Gaussian posteriors, not for {type(q).__name__}: leave the gaps out for this run."
    )


def bound(
    model: Model,
    variables: Any,
    q: Distribution,
    x: Array,
    keys: Array,
    num_samples: int,
    y: Array | None = None,
) -> Array:
    """The ELBO of any q, `[B]`, nats: with the exact KL where there is one."""
    p: Any = model.apply(variables, method=lambda model: model.prior(model, y))
    z = q.sample(keys, (num_samples,))
    px: Any = model.apply(variables, (z,), y, method="decode")
    kl = exact_kl(q, p)
    if kl is None:
        kl = (q.log_prob(z) - p.log_prob(z)).mean(0)
    return px.log_prob(x).mean(0) - kl


def best(
    model: Model, variables: Any, q: Distribution, x: Array, keys: Array, y: Array | None = None
) -> Distribution:
    """The q* of each image in the family of q, which is where the ascent starts.

    Args:
        model: a VAE.
        variables: its variables.
        q: batch `[B]`.
        x: images `[B, H, W, C]`.
        keys: typed keys `[B]`.
        y: labels `[B]` of a conditional model.

    Raises:
        VaeJaxError: as for `unconstrained`.
    """
    theta, make = unconstrained(q)
    adam = optax.scale_by_adam()

    def ascend(carry: tuple[Any, Any, Array], step: Array) -> tuple[tuple[Any, Any, Array], Array]:
        theta, state, rate = carry

        def bounds(theta: Any) -> tuple[Array, Array]:
            own = random.indexed(keys, step)
            bounds = bound(model, variables, make(theta), x, own, SAMPLES, y)
            return bounds.sum(), bounds

        gradient, bounds_here = jax.grad(bounds, has_aux=True)(theta)
        direction, state = adam.update(gradient, state)

        def move(theta: Array, direction: Array) -> Array:
            return theta + rate.reshape(-1, *[1] * (theta.ndim - 1)) * direction

        return (jax.tree.map(move, theta, direction), state, rate), bounds_here

    def block(carry: Any) -> Any:
        number, theta, state, rate, highest = carry
        steps = number * BLOCK + jnp.arange(BLOCK)
        (theta, state, _), bounds = lax.scan(ascend, (theta, state, rate), steps)
        mean = bounds.mean(0)
        rate = jnp.where(mean > highest, rate, rate / 2)
        rate = jnp.where(rate < LAST_RATE, 0.0, rate)
        return number + 1, theta, state, rate, jnp.maximum(highest, mean)

    def going(carry: Any) -> Array:
        number, _, _, rate, _ = carry
        return (number < MAX_BLOCKS) & (rate > 0).any()

    rate, highest = jnp.full(len(x), FIRST_RATE), jnp.full(len(x), -jnp.inf)
    start = 0, theta, adam.init(theta), rate, highest
    return make(lax.while_loop(going, block, start)[1])


def elbos(
    model: Model,
    variables: Any,
    x: Array,
    keys: Array,
    num_samples: int,
    y: Array | None = None,
) -> dict[str, Array]:
    """L[q] as `elbo` and L[q*] as `elbo_optimal`, `[B]` each, nats, with the same K samples' noise.

    Args:
        model: a VAE.
        variables: its variables.
        x: images `[B, H, W, C]`.
        keys: `[B]`.
        num_samples: K, to the next multiple of those drawn at once.
        y: labels `[B]` of a conditional model.

    Raises:
        VaeJaxError: as for `unconstrained`.
    """
    q: Any = model.apply(variables, x, y, method="encode")
    optimal = best(model, variables, q, x, random.purpose(keys, "optimization"), y)
    chunk = min(num_samples, SAMPLES_AT_ONCE)

    def mean_bound(q: Distribution) -> Array:
        def one_chunk(index: Array) -> Array:
            own = random.indexed(random.purpose(keys, "gap"), index)
            return bound(model, variables, q, x, own, chunk, y)

        return lax.map(one_chunk, jnp.arange(-(-num_samples // chunk))).mean(0)

    return {"elbo": mean_bound(q), "elbo_optimal": mean_bound(optimal)}


def make_optimizer(
    experiment: Experiment, split: SplitName, num_samples: int, num_images: int | None = None
) -> Callable[[Any], dict[str, np.ndarray]]:
    """`elbos` for a whole split, on all devices: as `over_split`, `[S, N]` each.

    Raises:
        VaeJaxError: the model has several layers or no bound; as for `unconstrained`, `over_split`.
    """
    model = experiment.model
    if not isinstance(model, VAE):
        raise VaeJaxError(
            f"The gaps are those of one q(z|x), and a {type(model).__name__} has one for each "
            "layer: leave the gaps out for this run."
        )
    if not has_bound(model):
        raise VaeJaxError("A model without a bound on ln p(x) has no gaps: leave them out.")

    def each_image(variables: Any, x: Array, keys: Array, y: Array | None) -> dict[str, Array]:
        return elbos(model, variables, x, keys, num_samples, y)

    decoded = math.prod(model.image_shape) * min(num_samples, SAMPLES_AT_ONCE)
    return over_split(experiment, split, num_images, DECODED_FLOATS // decoded, each_image)


def inference_gaps(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`approximation_gap` and `amortization_gap` of each image, `[S, N]`, nats.

    Args:
        values: `[S, N]`: `elbo` and `elbo_optimal` of `make_optimizer`, and upper bounds on
            -ln p(x), `nll` and perhaps `nll_ais`, of which for each seed the one with the lower
            mean counts.
    """
    nlls = np.stack([values[name] for name in ("nll", "nll_ais") if name in values])
    tightest = nlls.mean(2, dtype=np.float64).argmin(0)
    log_px = -nlls[tightest, np.arange(len(tightest))]
    return {
        "approximation_gap": log_px - values["elbo_optimal"],
        "amortization_gap": values["elbo_optimal"] - values["elbo"],
    }
