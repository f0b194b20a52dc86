"""The distance of the ELBO from ln p(x), divided between the family of q and the encoder.

ln p(x) - L[q] = (ln p(x) - L[q*]) + (L[q*] - L[q]), the approximation gap and the amortization gap,
where q* is the best density for the image within the family of q.

References:
    Cremer et al. (2018), "Inference suboptimality in variational autoencoders".
"""

import dataclasses
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.typing import VariableDict
from jax import Array, lax

from vae_jax import random
from vae_jax.bounds import SAMPLES_AT_ONCE
from vae_jax.compatibility import check_prior_density
from vae_jax.data import SplitName
from vae_jax.distributions import (
    Distribution,
    MultivariateNormal,
    Normal,
    Shape,
    Transformed,
    VonMisesFisherDistribution,
    exact_kl,
)
from vae_jax.errors import VaeJaxError
from vae_jax.evaluation.over_split import Evaluator, PerImage, over_split
from vae_jax.experiment import Experiment
from vae_jax.flows import (
    Flow,
    Householder,
    Planar,
    Reverse,
    Sylvester,
    direction,
    orthogonalize,
)
from vae_jax.interfaces import Model
from vae_jax.vae import VAE, has_bound

# Adam on each image separately: its rate is halved after a block of steps whose mean bound is not
# the highest so far, and it ends when the rate falls below LAST_RATE.
SAMPLES, BLOCK, MAX_BLOCKS = 16, 100, 100
FIRST_RATE, LAST_RATE = 3e-2, 5e-4
OF_ONE_IMAGE = Householder, Planar, Reverse, Sylvester
"""The flows that a posterior can give each image for itself."""
Parameters = tuple[Array, ...]
"""The parameters of a density as any real numbers, `[B, ...]` each."""
Ascent = tuple[Parameters, optax.OptState, Array]
"""Parameters, Adam's state and each image's rate `[B]`."""
Search = tuple[Array | int, Parameters, optax.OptState, Array, Array]
"""The number of blocks done, an Ascent, and the highest mean bound of each image, `[B]`."""


def unconstrained(q: Distribution) -> tuple[Parameters, Callable[[Parameters], Distribution]]:
    """The parameters of q as any real numbers, and the map back to the density.

    The family is that of all densities of q's kind, whatever range the encoder leaves them.

    Raises:
        VaeJaxError: the parameters of q are not known, or all images share some of them.
    """
    match q:
        case Normal(loc, scale, event_ndims=ndims):
            log_scale = jnp.broadcast_to(jnp.log(scale), loc.shape)

            def make_normal(theta: Parameters) -> Distribution:
                return Normal(theta[0], jnp.exp(theta[1]), event_ndims=ndims)

            return (loc, log_scale), make_normal
        case MultivariateNormal(loc, scale_tril):
            diagonal = jnp.eye(loc.shape[-1], dtype=bool)
            theta = loc, jnp.where(diagonal, jnp.log(scale_tril), scale_tril)

            def make_with_covariance(theta: Parameters) -> Distribution:
                loc, free = theta
                scale_tril = jnp.where(diagonal, jnp.exp(free), jnp.tril(free))
                return MultivariateNormal(loc, scale_tril)

            return theta, make_with_covariance
        case VonMisesFisherDistribution(loc, kappa):
            first = jnp.eye(1, loc.shape[-1], dtype=loc.dtype)[0]

            def make_on_sphere(theta: Parameters) -> Distribution:
                return VonMisesFisherDistribution(direction(theta[0], first), jnp.exp(theta[1]))

            return (loc, jnp.log(jnp.broadcast_to(kappa, loc.shape[:-1]))), make_on_sphere
        case Transformed(base, flows) if _are_of_each_image(flows, q.batch_shape):
            of_base, make_base = unconstrained(base)
            of_flows, structure = jax.tree.flatten(flows)

            def make_transformed(theta: Parameters) -> Distribution:
                base = make_base(theta[: len(of_base)])
                flows = jax.tree.unflatten(structure, theta[len(of_base) :])
                return Transformed(base, tuple(map(in_its_family, flows)))

            return (*of_base, *of_flows), make_transformed
    raise VaeJaxError(
        "The amortization gap needs the best q(z|x) of a family for each image, which is found for "
        "Gaussians, densities on the sphere, and flows whose parameters are each image's own; this "
        "posterior is none of them: leave the gaps out for this run."
    )


def _are_of_each_image(flows: tuple[Flow, ...], batch: Shape) -> bool:
    """Whether all parameters of `flows` are each image's own, `[*batch, ...]`."""
    return all(isinstance(flow, OF_ONE_IMAGE) for flow in flows) and all(
        leaf.shape[: len(batch)] == batch for leaf in jax.tree.leaves(flows)
    )


def in_its_family(flow: Flow) -> Flow:
    """The flow with the parameters that a step of ascent has moved, invertible again."""
    if isinstance(flow, Sylvester) and isinstance(flow.q, jax.Array):
        return dataclasses.replace(flow, q=orthogonalize(flow.q))
    return flow


def bound(
    model: Model,
    variables: VariableDict,
    q: Distribution,
    x: Array,
    keys: Array,
    num_samples: int,
    y: Array | None = None,
) -> Array:
    """The ELBO of any density q in nats, `[B]`, with the exact KL if there is one.

    Args:
        model: a VAE.
        variables: its variables.
        q: a density of z, batch `[B]`.
        x: images `[B, H, W, C]`.
        keys: typed keys `[B]`.
        num_samples: the number of samples K.
        y: labels `[B]` of a conditional model.
    """
    p = cast(Distribution, model.apply(variables, method=lambda model: model.prior(model, y)))
    kl = exact_kl(q, p)
    if kl is None:
        z, log_qz = q.sample_and_log_prob(keys, (num_samples,))
        kl = (log_qz - p.log_prob(z)).mean(0)
    else:
        z = q.sample(keys, (num_samples,))
    px = cast(Distribution, model.apply(variables, (z,), y, method="decode"))
    return px.log_prob(x).mean(0) - kl


def best(
    model: Model,
    variables: VariableDict,
    q: Distribution,
    x: Array,
    keys: Array,
    y: Array | None = None,
) -> Distribution:
    """The best density q* for each image in the family of q, by gradient ascent from q.

    With a flow the bound has several local maxima, and q* may be at one of the lower ones.

    Args:
        model: a VAE.
        variables: its variables.
        q: the start, batch `[B]`.
        x: images `[B, H, W, C]`.
        keys: typed keys `[B]`.
        y: labels `[B]` of a conditional model.

    Raises:
        VaeJaxError: as in `unconstrained`.
    """
    theta, make = unconstrained(q)
    adam = optax.scale_by_adam()

    def ascend(carry: Ascent, step: Array) -> tuple[Ascent, Array]:
        theta, state, rate = carry

        def bounds(theta: Parameters) -> tuple[Array, Array]:
            own = random.indexed(keys, step)
            bounds = bound(model, variables, make(theta), x, own, SAMPLES, y)
            return bounds.sum(), bounds

        gradient, bounds_here = jax.grad(bounds, has_aux=True)(theta)
        update, state = adam.update(gradient, state)

        def move(theta: Array, update: Array) -> Array:
            return theta + rate.reshape(-1, *[1] * (theta.ndim - 1)) * update

        return (jax.tree.map(move, theta, update), state, rate), bounds_here

    def block(carry: Search) -> Search:
        number, theta, state, rate, highest = carry
        steps = number * BLOCK + jnp.arange(BLOCK)
        (theta, state, _), bounds = lax.scan(ascend, (theta, state, rate), steps)
        mean = bounds.mean(0)
        rate = jnp.where(mean > highest, rate, rate / 2)
        rate = jnp.where(rate < LAST_RATE, 0.0, rate)
        return number + 1, theta, state, rate, jnp.maximum(highest, mean)

    def goes_on(carry: Search) -> Array:
        number, _, _, rate, _ = carry
        return (number < MAX_BLOCKS) & (rate > 0).any()

    rate, highest = jnp.full(len(x), FIRST_RATE), jnp.full(len(x), -jnp.inf)
    start = 0, theta, adam.init(theta), rate, highest
    return make(lax.while_loop(goes_on, block, start)[1])


def elbos(
    model: Model,
    variables: VariableDict,
    x: Array,
    keys: Array,
    num_samples: int,
    y: Array | None = None,
) -> dict[str, Array]:
    """The ELBO with the encoder's q and with the best q*, from the same noise of K samples.

    Args:
        model: a VAE.
        variables: its variables.
        x: images `[B, H, W, C]`.
        keys: typed keys `[B]`.
        num_samples: the number of samples K, rounded up to a multiple of those drawn at once.
        y: labels `[B]` of a conditional model.

    Returns:
        `elbo`, L[q], and `elbo_optimal`, L[q*], in nats, `[B]` each.

    Raises:
        VaeJaxError: as in `unconstrained`.
    """
    q = cast(Distribution, model.apply(variables, x, y, method="encode"))
    optimal = best(model, variables, q, x, random.purpose(keys, "optimization"), y)
    chunk = min(num_samples, SAMPLES_AT_ONCE)

    def mean_bound(q: Distribution) -> Array:
        def one_chunk(index: Array) -> Array:
            own = random.indexed(random.purpose(keys, "gap"), index)
            return bound(model, variables, q, x, own, chunk, y)

        return lax.map(one_chunk, jnp.arange(-(-num_samples // chunk))).mean(0)

    return {"elbo": mean_bound(q), "elbo_optimal": mean_bound(optimal)}


def make_gaps_evaluator(
    experiment: Experiment, split: SplitName, num_samples: int, num_images: int | None = None
) -> Evaluator:
    """Compile `elbos` for a whole split, on all devices.

    Args:
        experiment: the experiment, for its data and model.
        split: the split of the data.
        num_samples: the number of samples K.
        num_images: the number of images N, evenly spaced over the split; None takes all.

    Returns:
        An evaluator of the values of `elbos`, `[S, N]` each; `inference_gaps` takes them.

    Raises:
        VaeJaxError: the model has several layers or no bound, or as in `unconstrained` and
            `over_split`.
    """
    model = experiment.model
    if not isinstance(model, VAE):
        raise VaeJaxError(
            f"The gaps are defined for one q(z|x), and a {type(model).__name__} has one for each "
            "layer: leave the gaps out for this run."
        )
    if not has_bound(model):
        raise VaeJaxError("A model without a bound on ln p(x) has no gaps: leave them out.")
    check_prior_density(model.prior, "The amortization gap")

    def each_image(
        variables: VariableDict, x: Array, keys: Array, y: Array | None
    ) -> dict[str, Array]:
        return elbos(model, variables, x, keys, num_samples, y)

    samples = min(num_samples, SAMPLES_AT_ONCE)
    return over_split(experiment, split, each_image, num_images, samples)


def inference_gaps(values: PerImage) -> PerImage:
    """The two gaps of each image in nats, `approximation_gap` and `amortization_gap`, `[S, N]`.

    Args:
        values: `elbo` and `elbo_optimal` from `make_gaps_evaluator`, and upper bounds on -ln p(x),
            `nll` and perhaps `nll_ais`, `[S, N]` each. For each seed, the bound with the lower mean
            is used.
    """
    nlls = np.stack([values[name] for name in ("nll", "nll_ais") if name in values])
    tightest = nlls.mean(2, dtype=np.float64).argmin(0)
    log_px = -nlls[tightest, np.arange(len(tightest))]
    return {
        "approximation_gap": log_px - values["elbo_optimal"],
        "amortization_gap": values["elbo_optimal"] - values["elbo"],
    }
