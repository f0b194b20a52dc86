"""The information of the latents about the images: the rate, divided in two.

E_n KL(q(z|x_n) || p(z)) = I_q(n; z) + KL(q(z) || p(z)) with q(z) = 1/N sum_n q(z|x_n): the
information in z about the index of its image among N, at most ln N, and the divergence of the
aggregated posterior from the prior.

References:
    Hoffman & Johnson (2016), "ELBO surgery: yet another way to carve up the variational evidence
        lower bound".
"""

import math
from typing import cast

import jax
from flax.typing import VariableDict
from jax import Array, lax

from vae_jax import random
from vae_jax.compatibility import check_prior_density
from vae_jax.data import SplitName
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.evaluation.over_split import Evaluator, OfSeeds, PerImage, over_split
from vae_jax.experiment import Experiment
from vae_jax.run.batches import floats_at_once
from vae_jax.vae import VAE

SAMPLES = 10  # from each image's q(z|x); their noise is small compared with the spread over images


def log_aggregated_posterior(q: Distribution, z: Array) -> Array:
    """The aggregated posterior ln q(z) = ln 1/N sum_n q(z|x_n), exactly.

    Its memory does not grow with the number of latents.

    Args:
        q: the N posteriors, batch `[N]`.
        z: latents `[M, *event]`.

    Returns:
        Log-densities in nats, `[M]`.
    """
    (count,) = q.batch_shape
    chunk = max(1, floats_at_once() // (count * math.prod(q.event_shape)))

    def one(z: Array) -> Array:
        return jax.nn.logsumexp(q.log_prob_pairs(z)) - math.log(count)

    return lax.map(one, z, batch_size=chunk)


def decompose(
    q: Distribution, aggregated: Distribution, p: Distribution, keys: Array
) -> dict[str, Array]:
    """The two parts of the rate of each image, sampled.

    Args:
        q: the posteriors of B images, batch `[B]`.
        aggregated: the posteriors of all N images, these included, batch `[N]`.
        p: the prior.
        keys: typed keys `[B]`.

    Returns:
        `mutual_information`, E_q[ln q(z|x) - ln q(z)], and `marginal_kl`, E_q[ln q(z) - ln p(z)],
        in nats, `[B]` each; their means over the N images are I_q(n; z) and KL(q(z) || p(z)).
    """
    z, log_q = q.sample_and_log_prob(keys, (SAMPLES,))
    flat = z.reshape(-1, *q.event_shape)
    log_aggregate = log_aggregated_posterior(aggregated, flat).reshape(log_q.shape)
    return {
        "mutual_information": (log_q - log_aggregate).mean(0),
        "marginal_kl": (log_aggregate - p.log_prob(z)).mean(0),
    }


def make_information_evaluator(
    experiment: Experiment, split: SplitName, num_images: int | None = None
) -> Evaluator:
    """Compile `decompose` for a whole split, on all devices.

    Args:
        experiment: the experiment, for its data and model.
        split: the split of the data.
        num_images: the number of images N, evenly spaced over the split; None takes all.

    Returns:
        An evaluator of the values of `decompose`, `[S, N]` each.

    Raises:
        VaeJaxError: the model has several layers or a prior for each class, no mixture of its
            posteriors has a density, or as in `over_split`.
    """
    model = experiment.model
    if not isinstance(model, VAE):
        raise VaeJaxError(
            f"The rate of a {type(model).__name__}, which has several layers, has no aggregated "
            "posterior to be divided by: evaluate this run without the decomposition."
        )
    check_prior_density(model.prior, "The decomposition of the rate")
    if model.prior.label_classes is not None:
        raise VaeJaxError(
            f"The aggregated posterior covers all classes, and {type(model.prior).__name__} is a "
            "prior for each: evaluate this run without the decomposition."
        )
    if not {"density", "amortized"} <= model.posterior.traits:
        raise VaeJaxError(
            "The aggregated posterior is a mixture of densities whose parameters all depend on x, "
            f"and those of {type(model.posterior).__name__} are not: evaluate this run without it."
        )

    def encode(variables: VariableDict, x: Array, keys: Array, y: Array | None) -> Distribution:
        del keys
        return cast(Distribution, model.apply(variables, x, y, method="encode"))

    def each_image(
        variables: VariableDict, x: Array, keys: Array, y: Array | None, aggregated: Distribution
    ) -> dict[str, Array]:
        p = cast(Distribution, model.apply(variables, method=lambda model: model.prior(model, y)))
        own = random.purpose(keys, "information")
        return decompose(encode(variables, x, keys, y), aggregated, p, own)

    encode_split = over_split(experiment, split, encode, num_images)
    decompose_split = over_split(experiment, split, each_image, num_images)

    def evaluate(variables: OfSeeds) -> PerImage:
        return decompose_split(variables, encode_split(variables))

    return evaluate
