"""What the latents say of the images: the rate, divided (Hoffman & Johnson 2016).

E_n KL(q(z|x_n) || p(z)) = I_q(n; z) + KL(q(z) || p(z)), q(z) = 1/N sum_n q(z|x_n): the information
of z on which of the N images it is of, at most ln N, and how far the aggregated posterior is from
the prior.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from jax import Array, lax

from vae_jax import parallel, random
from vae_jax.data import SplitName
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.evaluation.over_split import DECODED_FLOATS, over_split
from vae_jax.experiment import Experiment
from vae_jax.vae import VAE

SAMPLES = 10  # of each image's q(z|x); their noise is small beside that of the images


def log_aggregated(q: Distribution, z: Array) -> Array:
    """ln 1/N sum_n q(z|x_n), exactly, in memory that does not grow with the number of z.

    Args:
        q: the N posteriors, batch `[N]`.
        z: `[M, *event]`.

    Returns:
        `[M]`, nats.
    """
    (count,) = q.batch_shape
    chunk = max(1, DECODED_FLOATS // (count * math.prod(q.event_shape)))

    def one(z: Array) -> Array:
        return jax.nn.logsumexp(q.log_prob_pairs(z)) - math.log(count)

    return lax.map(one, z, batch_size=chunk)


def decompose(
    q: Distribution, aggregated: Distribution, p: Distribution, keys: Array
) -> dict[str, Array]:
    """The two parts of the rate of each image, `[B]` each, in nats.

    Args:
        q: posteriors of B images.
        aggregated: those of all N images, of which these are some.
        p: the prior.
        keys: `[B]`.

    Returns:
        `mutual_information` E_q[ln q(z|x) - ln q(z)] and `marginal_kl` E_q[ln q(z) - ln p(z)],
        sampled; their means over the N images are I_q(n; z) and KL(q(z) || p(z)).
    """
    z, log_q = q.sample_and_log_prob(keys, (SAMPLES,))
    flat = z.reshape(-1, *q.event_shape)
    log_aggregate = log_aggregated(aggregated, flat).reshape(log_q.shape)
    return {
        "mutual_information": (log_q - log_aggregate).mean(0),
        "marginal_kl": (log_aggregate - p.log_prob(z)).mean(0),
    }


def make_decomposer(
    experiment: Experiment, split: SplitName, num_images: int | None = None
) -> Callable[[Any], dict[str, np.ndarray]]:
    """`decompose` for a whole split, on all devices.

    Args:
        experiment: its data and model.
        split: of the data.
        num_images: N, evenly spaced over the split; None takes all.

    Returns:
        As `over_split`, `[S, N]` each.

    Raises:
        VaeJaxError: the model has several layers or a prior for each class, or no mixture of its
            posteriors has a density; or as for `over_split`.
    """
    model = experiment.model
    if not isinstance(model, VAE):
        raise VaeJaxError(
            f"The rate of a {type(model).__name__} has no aggregated posterior to be divided by: "
            "several layers are only evaluated without the decomposition."
        )
    if model.prior.label_classes is not None:
        raise VaeJaxError(
            f"The aggregated posterior is of all classes, and {type(model.prior).__name__} is a "
            "prior of each: evaluate this run without the decomposition."
        )
    if not {"density", "amortized"} <= model.posterior.traits:
        raise VaeJaxError(
            "The aggregated posterior is a mixture of densities whose parameters all depend on x, "
            f"and those of {type(model.posterior).__name__} are not: evaluate this run without it."
        )

    def encode(variables: Any, x: Array, keys: Array, y: Array | None) -> Distribution:
        del keys
        return cast(Distribution, model.apply(variables, x, y, method="encode"))

    def each_image(
        variables: Any, x: Array, keys: Array, y: Array | None, aggregated: Distribution
    ) -> dict[str, Array]:
        p: Any = model.apply(variables, method=lambda model: model.prior(model, y))
        own = random.purpose(keys, "information")
        return decompose(encode(variables, x, keys, y), aggregated, p, own)

    at_once = DECODED_FLOATS // math.prod(model.image_shape)
    encode_split = over_split(experiment, split, num_images, at_once, encode)
    compare = over_split(experiment, split, num_images, at_once, each_image)

    def on_split(variables: Any) -> dict[str, np.ndarray]:
        aggregated = encode_split(variables)
        return compare(variables, parallel.replicate(aggregated))

    return on_split
