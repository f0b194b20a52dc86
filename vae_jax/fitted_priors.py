"""Priors fitted after training, to the aggregated posterior q(z) = 1/N sum_n q(z|x_n).

If q(z) does not fill the prior, some samples from the prior are latents that the decoder has never
learned to decode. A density of z itself, fitted by maximum likelihood to latents of the training
images, avoids that and leaves encoder and decoder as they are.

References:
    Ghosh et al. (2020), "From variational to deterministic autoencoders", section 4, for a mixture
        or a flow.
    Dai & Wipf (2019), "Diagnosing and enhancing VAE models", section 3, for a second VAE.
    van den Oord et al. (2017), "Neural discrete representation learning", section 3.3, for an
        autoregressive model of codes.
"""

import dataclasses
import math
import sys
from typing import Literal, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.typing import VariableDict
from jax import Array

from vae_jax import parallel, random
from vae_jax.checkpoint import made_once
from vae_jax.compatibility import check_prior
from vae_jax.deep import DeepVAE
from vae_jax.distributions import Bounded, Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.given import Count, checked
from vae_jax.interfaces import Model, Prior, Variables
from vae_jax.priors.autoregressive_codes import AutoregressiveCodes
from vae_jax.priors.diffusion import Diffusion
from vae_jax.priors.flow_matching import FlowMatching
from vae_jax.priors.gaussian_mixture import GaussianMixture
from vae_jax.priors.givt import GIVT
from vae_jax.priors.masked import MaskedCodes
from vae_jax.priors.real_nvp import RealNVP
from vae_jax.priors.second_stage_vae import SecondStageVAE
from vae_jax.priors.standardized import Standardized
from vae_jax.run import Run
from vae_jax.vae import Terms

Tree = TypeVar("Tree")
Quick = Literal["mixture", "flow", "vae", "autoregressive"]
Family = Quick | Literal["masked", "givt", "diffusion", "flow_matching"]

LATENTS = 50_000  # at least this many draws from the aggregated posterior
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 4000, 256, 3e-3
IMAGES_AT_ONCE = 1000


def latents_of(run: Run, seed: int = 0) -> np.ndarray:
    """Latents of the top layer from q(z|x) of a run's training images: `[M, *event]`, M >= 50,000.

    Every image has the same number of samples; their noise is a function of (image, sample, seed).
    """
    experiment, images = run.experiment, run.experiment.data.train.images
    protocol = experiment.data.protocol
    draws = -(-LATENTS // len(images))

    @parallel.jit
    def latents(
        variables: VariableDict, images: Array, image_keys: Array, keys: Array, y: Array | None
    ) -> Array:
        x = protocol.apply(images, random.purpose(image_keys, "protocol"))
        terms = cast(Terms, experiment.model.apply(variables, x, keys, y=y))
        return terms.z[-1][0]

    found = []
    for draw in range(draws):
        for first in range(0, len(images), IMAGES_AT_ONCE):
            rows = np.arange(first, min(first + IMAGES_AT_ONCE, len(images)))
            own = random.purpose(random.image_keys("train", rows, seed), "aggregated posterior")
            y = run.labels("train", rows)
            keys = random.indexed(own, draw)
            # As in training: pixels that a protocol fixes are the same in every sample.
            image_keys = keys if protocol.resampled else random.image_keys("train", rows)
            arguments = images[rows], image_keys, keys, y
            found.append(np.asarray(latents(run.seed_variables, *arguments)))
    return np.concatenate(found)


def check_replaced(run: Run, prior: Prior) -> None:
    """Check that `prior` can replace that of a run's model.

    Raises:
        VaeJaxError: it has no density of the latents, or the run's own is p(z|y) or a `DeepVAE`'s.
    """
    model = run.experiment.model
    if model.prior.label_classes is not None and prior.label_classes is None:
        raise VaeJaxError(
            f"{type(model.prior).__name__} has a density for each class, which a density fitted to "
            "the latents of all would replace: sample from the model's own prior."
        )
    if isinstance(model, DeepVAE):
        raise VaeJaxError(
            "The priors of a DeepVAE's layers are parts of its decoder, none of which is replaced: "
            "sample from the model's own, at another temperature perhaps."
        )
    check_prior(model.posteriors[-1], prior)


def location_and_scale(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of latents z `[M, *event]`, with 1 in place of 0."""
    loc, scale = z.mean(0, dtype=np.float64), z.std(0, dtype=np.float64)
    return loc.astype(z.dtype), np.where(scale > 0, scale, 1).astype(z.dtype)


@checked
def fit(run: Run, prior: Prior, *, num_steps: Count = NUM_STEPS, seed: int = 0) -> Run:
    """Fit a prior to the aggregated posterior of a run's first seed, with Adam.

    Real latents are standardized for it, so that their scale makes no difference. A line on stderr
    compares the result with the Gaussian of the latents' mean and covariance.

    Args:
        run: the trained model.
        prior: a prior; one that depends on q, like the VampPrior, is refused.
        num_steps: the number of Adam's steps, with batches of 256 latents.
        seed: the seed of the initial parameters, the latents and their order.

    Returns:
        The run with its first seed alone and the new prior in its model; it can be sampled from and
        evaluated like any other.

    Raises:
        VaeJaxError: the prior does not fit the latents, or would replace a p(z|y).

    Example:
        >>> images = generate.sample(fit(run, GaussianMixture(10, 20)), 64)
    """
    check_replaced(run, prior)
    model = run.experiment.model
    standardize = model.posteriors[-1].space == "real"
    model = model.clone(prior=prior)
    z, root = latents_of(run, seed), random.purpose(random.key(seed), "fit")
    loc, scale = np.zeros(z.shape[1:], z.dtype), np.ones(z.shape[1:], z.dtype)
    if standardize:
        loc, scale = location_and_scale(z)
    u = (z - loc) / scale
    variables = run.seed_variables
    frozen = {name: group for name, group in variables["params"].items() if name != "prior"}
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def prior_of(model: Model) -> Distribution:
        return model.prior(model)

    def bound(params: optax.Params, u: Array, keys: Array) -> Array:
        p = nn.apply(prior_of, model)({"params": frozen | {"prior": params}, **rest})
        if p.event_shape != z.shape[1:]:
            raise VaeJaxError(
                f"The latents have the shape {z.shape[1:]}, and {type(prior).__name__} is a prior "
                f"of latents of the shape {p.event_shape}: give both the same."
            )
        return p.elbo(u, keys) if isinstance(p, Bounded) else p.log_prob(u)

    def step(
        carry: tuple[optax.Params, optax.OptState], step: Array
    ) -> tuple[tuple[optax.Params, optax.OptState], Array]:
        params, state = carry
        key = random.indexed(random.purpose(root, "step"), step)
        key_rows, key_noise = random.purposes(key, "rows", "noise")
        rows = jax.random.randint(key_rows, (BATCH_SIZE,), 0, len(z))
        keys = random.draw_keys(key_noise, (), (BATCH_SIZE,))
        loss, gradients = jax.value_and_grad(
            lambda params: -bound(params, jnp.asarray(u)[rows], keys).mean()
        )(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    @parallel.jit
    def train(key: Array) -> tuple[optax.Params, Array]:
        params = initial_params(model, key)
        carry = params, optimizer.init(params)
        (params, _), losses = jax.lax.scan(step, carry, jnp.arange(num_steps))
        return params, losses

    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))
    params, losses = train(random.purpose(root, "init"))
    if not np.isfinite(losses[-1]):
        raise VaeJaxError(f"{type(prior).__name__} could not be fitted: its loss is not finite.")
    if standardize:

        @parallel.jit
        def bounds(params: optax.Params, u: Array) -> Array:
            keys = random.indexed(random.purpose(root, "report"), jnp.arange(len(u)))
            return jax.lax.map(
                lambda each: bound(params, each[0][None], each[1][None])[0],
                (u, keys),
                batch_size=BATCH_SIZE,
            )

        print(_compared(prior, np.asarray(bounds(params, u)), u, scale), file=sys.stderr)
        params = _over_latents(prior, cast(Variables, params), loc, scale)
    return _with_prior(run, _with_fitted(model, prior), params)


def _with_fitted(model: Model, prior: Prior) -> Model:
    """The model with a prior that is fitted to its latents, standardized if they are real."""
    closed = isinstance(prior, GaussianMixture) or model.posteriors[-1].space != "real"
    return model.clone(prior=prior if closed else Standardized(prior))


def _over_latents(prior: Prior, params: Variables, loc: np.ndarray, scale: np.ndarray) -> Variables:
    """The parameters in `_with_fitted` from those of the prior over (z - loc) / scale."""
    if isinstance(prior, GaussianMixture):  # closed under shifts and scales
        moved = {
            "loc": loc + scale * params["loc"],
            "log_scale": np.log(scale) + params["log_scale"],
        }
        return {**params, **moved}
    return {"loc": loc, "scale": scale, **({"prior": params} if params else {})}


def _compared(prior: Prior, bounds: np.ndarray, u: np.ndarray, scale: np.ndarray) -> str:
    """The mean of ln p(z), beside that of a Gaussian with the latents' moments."""
    flat = u.reshape(len(u), -1)
    _, log_det = np.linalg.slogdet(np.cov(flat, rowvar=False).reshape(flat.shape[1:] * 2))
    of_gaussian = -0.5 * (flat.shape[1] * (1 + math.log(2 * math.pi)) + log_det)
    ours, gaussian = (
        float(each - np.log(scale).sum(dtype=np.float64))
        for each in (bounds.mean(dtype=np.float64), of_gaussian)
    )
    better = ": take more steps, or another family" if ours < gaussian else ""
    return (
        f"ln p(z) of {len(u):,} latents is {ours:.2f} nats on average by {type(prior).__name__}, "
        f"{gaussian:.2f} by a Gaussian of their mean and covariance{better}."
    )


def initial_params(model: Model, key: Array) -> optax.Params:
    """The parameters of a model's prior before training, from a typed key."""

    def encode_first(model: Model) -> None:  # a prior may look at the posterior's variables
        model.encode(jnp.zeros((1, *model.image_shape)))
        model.prior(model)

    variables = cast(VariableDict, nn.init(encode_first, model)(key))
    return variables["params"].get("prior", {})


def _with_prior(run: Run, model: Model, params: optax.Params | Variables) -> Run:
    def first_seed(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf[:1], tree)

    params = jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)
    state = first_seed(run.state)
    groups = first_seed(run.variables["params"]) | {"prior": params}
    state = state.replace(params=groups, ema_params=None)
    return dataclasses.replace(run, experiment=run.experiment.with_model(model), state=state)


def prior_for(
    run: Run, family: Family, classes: int | None = None, network: nn.Module | None = None
) -> Prior:
    """A prior of a family, of the shape of a run's latents.

    Args:
        run: the trained model.
        family: the family.
        classes: the number of classes of the prior, in any family but mixture, flow and vae.
        network: the network of diffusion or flow matching; None takes their default.

    Returns:
        The prior, not yet fitted.

    Raises:
        VaeJaxError: no prior of the family fits the latents, or the family takes no classes or
            network.
    """
    model = run.experiment.model
    if classes is not None and family in ("mixture", "flow", "vae"):
        raise VaeJaxError(
            f"Of the family {family!r} no prior has classes: leave them out, or take "
            "autoregressive, masked, givt, diffusion or flow_matching."
        )
    if network is not None and family not in ("diffusion", "flow_matching"):
        raise VaeJaxError(
            f"Of the family {family!r} no prior has a network to choose: leave it out, or take "
            "diffusion or flow_matching."
        )
    space = model.posteriors[-1].space
    x = jnp.zeros((1, *model.image_shape))
    y = None if model.labels is None else jnp.zeros(1, jnp.int32)

    def top_layer(variables: VariableDict) -> Array:
        return cast(Terms, model.apply(variables, x, random.key(0)[None], y=y)).z[-1]

    shape = jax.eval_shape(top_layer, run.seed_variables).shape[2:]
    match family, len(shape):
        case "mixture", _ if space == "real":
            return GaussianMixture(100, shape)
        case "flow", 1:
            return RealNVP(shape[0])
        case "vae", 1:
            return SecondStageVAE(shape[0])
        case "autoregressive", _ if space == "codes":
            return AutoregressiveCodes(shape[:-1], num_classes=classes)
        case "masked", _ if space == "codes":
            return MaskedCodes(shape[:-1], num_classes=classes)
        case "givt", _ if space == "real":
            return GIVT(shape, num_classes=classes)
        case "diffusion", _ if space == "real":
            return Diffusion(shape, network, classes)
        case "flow_matching", _ if space == "real":
            return FlowMatching(shape, network, classes)
    raise VaeJaxError(
        f"No prior of the family {family!r} fits latents of the shape {shape}: take mixture, flow, "
        "vae, givt, diffusion or flow_matching for real vectors, all but flow and vae for other "
        "real latents, autoregressive or masked for codes."
    )


def fitted(run: Run, family: Quick) -> Run:
    """Fit a prior of a family to a run once: it is kept in the run folder for the next call.

    A damaged one is fitted again.

    Returns:
        The run with the new prior, as in `fit`.

    Raises:
        VaeJaxError: as in `prior_for` and `fit`.
    """
    prior = prior_for(run, family)
    model = _with_fitted(run.experiment.model, prior)
    like = jax.eval_shape(lambda: initial_params(model, random.key(0)))
    replica = f"-{run.first}" * (run.first > 0)
    folder = run.folder.path / "priors" / f"{family}-{run.checkpoint}{replica}"

    def fitted_params() -> Variables:
        return jax.tree.map(lambda leaf: leaf[0], fit(run, prior).state.params["prior"])

    params = made_once(folder, int(run.state.step[0]), like, fitted_params)
    return _with_prior(run, model, params)
