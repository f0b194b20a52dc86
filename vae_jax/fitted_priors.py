"""Priors fitted after training, to the aggregated posterior q(z) = 1/N sum_n q(z|x_n).

Samples from a prior that q(z) does not fill are what an autoencoder was never asked to decode. A
density of z itself, fitted by maximum likelihood to latents of the training images, mends that
without touching encoder or decoder: a mixture or a flow (as Ghosh et al. 2020, section 4, do for
deterministic autoencoders), a second VAE (Dai & Wipf 2019, section 3), an autoregressive model of
codes (van den Oord et al. 2017, section 3.3).
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from vae_jax import random
from vae_jax.checkpoint import Checkpoints
from vae_jax.compatibility import check_prior
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Model, Prior
from vae_jax.priors.codes import AutoregressiveCodes
from vae_jax.priors.flows import RealNVP
from vae_jax.priors.mixtures import GaussianMixture
from vae_jax.priors.second_stage import SecondStage, SecondStageVAE
from vae_jax.run import Run

Family = Literal["mixture", "flow", "vae", "autoregressive"]

LATENTS = 50_000  # at least so many are drawn from the aggregated posterior
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 4000, 256, 3e-3
IMAGES_AT_ONCE = 1000


def latents_of(run: Run, seed: int = 0) -> np.ndarray:
    """Draws from q(z|x) of the training images, of the top layer: `[M, *event]`, M >= 50,000.

    Each image is drawn from equally often; the noise is a function of (image, draw, seed).
    """
    experiment, images = run.experiment, run.experiment.data.train.images
    draws = -(-LATENTS // len(images))

    @jax.jit
    def latents(variables: Any, images: Array, keys: Array, y: Array | None) -> Array:
        x = experiment.data.protocol.apply(images, random.purpose(keys, "protocol"))
        terms: Any = experiment.model.apply(variables, x, keys, y=y)
        return terms.z[-1][0]

    found = []
    for draw in range(draws):
        for first in range(0, len(images), IMAGES_AT_ONCE):
            rows = np.arange(first, min(first + IMAGES_AT_ONCE, len(images)))
            own = random.purpose(random.image_keys("train", rows, seed), "aggregated posterior")
            y = run.labels("train", rows)
            keys = random.indexed(own, draw)
            found.append(np.asarray(latents(run.seed_variables, images[rows], keys, y)))
    return np.concatenate(found)


def fit(run: Run, prior: Prior, *, num_steps: int = NUM_STEPS, seed: int = 0) -> Run:
    """Fits a prior to the aggregated posterior of a run's first seed, with Adam.

    Args:
        run: the trained model.
        prior: a prior module; one that is made of q, like the VampPrior, is refused.
        num_steps: of Adam, with batches of 256 latents.
        seed: of the initial parameters, the latents and their order.

    Returns:
        The run with its first seed alone and the new prior in its model: sample from it or
        evaluate it like any other.

    Raises:
        VaeJaxError: the prior does not fit the latents, or is to replace a p(z|y).
    """
    model = run.experiment.model
    if model.prior.label_classes is not None:
        raise VaeJaxError(
            f"{type(model.prior).__name__} has a density for each class, which one fitted to the "
            "latents of all would replace: sample from the model's own prior."
        )
    check_prior(model.posteriors[-1], prior)
    model = model.clone(prior=prior)
    z, root = latents_of(run, seed), random.purpose(random.key(seed), "fit")
    variables = run.seed_variables
    frozen = {name: group for name, group in variables["params"].items() if name != "prior"}
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def prior_of(model: Any) -> Distribution:
        return model.prior(model)

    def bound(params: Any, z: Array, keys: Array) -> Array:
        p = nn.apply(prior_of, model)({"params": frozen | {"prior": params}, **rest})
        if p.event_shape != z.shape[1:]:
            raise VaeJaxError(
                f"The latents have the shape {z.shape[1:]}, those of {type(prior).__name__} "
                f"{p.event_shape}: give both the same."
            )
        return p.elbo(z, keys) if isinstance(p, SecondStage) else p.log_prob(z)

    def step(carry: Any, step: Array) -> tuple[Any, Array]:
        params, state = carry
        key = random.indexed(random.purpose(root, "step"), step)
        key_rows, key_noise = random.purposes(key, "rows", "noise")
        rows = jax.random.randint(key_rows, (BATCH_SIZE,), 0, len(z))
        keys = random.draw_keys(key_noise, (), (BATCH_SIZE,))
        loss, gradients = jax.value_and_grad(
            lambda params: -bound(params, jnp.asarray(z)[rows], keys).mean()
        )(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    @jax.jit
    def train(key: Array) -> tuple[Any, Array]:
        params = initial_params(model, key)
        carry = params, optimizer.init(params)
        (params, _), losses = jax.lax.scan(step, carry, jnp.arange(num_steps))
        return params, losses

    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))
    params, losses = train(random.purpose(root, "init"))
    if not np.isfinite(losses[-1]):
        raise VaeJaxError(f"{type(prior).__name__} could not be fitted: its loss is not finite.")
    return _with_prior(run, model, params)


def initial_params(model: Model, key: Array) -> Any:
    """Parameters of a model's prior, before training."""

    def encode_first(model: Model) -> None:  # a prior may look at the posterior's variables
        model.encode(jnp.zeros((1, *model.image_shape)))
        model.prior(model)

    return nn.init(encode_first, model)(key)["params"].get("prior", {})


def _with_prior(run: Run, model: Any, params: Any) -> Run:
    def first_seed(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[:1], tree)

    params = jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)
    state = first_seed(run.state)
    groups = first_seed(run.variables["params"]) | {"prior": params}
    state = state.replace(params=groups, ema_params=None)
    return dataclasses.replace(run, experiment=run.experiment.with_model(model), state=state)


def prior_for(run: Run, family: Family) -> Prior:
    """A prior of this family for the latents of a run.

    Raises:
        VaeJaxError: the family has none for them.
    """
    model = run.experiment.model
    space = model.posteriors[-1].space
    x = jnp.zeros((1, *model.image_shape))
    y = None if model.labels is None else jnp.zeros(1, jnp.int32)
    terms: Any = jax.eval_shape(
        lambda variables: model.apply(variables, x, random.key(0)[None], y=y), run.seed_variables
    )
    shape = terms.z[-1].shape[2:]
    match family, len(shape):
        case "mixture", _ if space == "real":
            return GaussianMixture(100, shape)
        case "flow", 1:
            return RealNVP(shape[0])
        case "vae", 1:
            return SecondStageVAE(shape[0])
        case "autoregressive", _ if space == "codes":
            return AutoregressiveCodes(shape[:-1])
    raise VaeJaxError(
        f"No prior of the family {family!r} fits latents of the shape {shape}: for real vectors "
        "take mixture, flow or vae; for other real latents mixture; for codes autoregressive."
    )


def fitted(run: Run, family: Family) -> Run:
    """`fit` with a prior of this family, kept in the run folder: the second call reads it.

    A damaged one is fitted again.

    Raises:
        VaeJaxError: as for `prior_for` and `fit`.
    """
    prior = prior_for(run, family)
    model = run.experiment.model.clone(prior=prior)
    like = jax.eval_shape(lambda: initial_params(model, random.key(0)))
    folder = run.folder.path / "priors" / f"{family}-{run.checkpoint}"
    with Checkpoints(folder) as checkpoints:
        step = int(run.state.step[0])
        params = checkpoints.read(step, like)
        if params is not None:
            return _with_prior(run, model, params)
        result = fit(run, prior)
        checkpoints.save(
            step, jax.tree.map(lambda leaf: leaf[0], result.state.params["prior"]), None
        )
        checkpoints.wait()
    return result
