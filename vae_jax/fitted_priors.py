"""Priors fitted after training, to the aggregated posterior q(z) = 1/N sum_n q(z|x_n).

Samples from a prior that q(z) does not fill are what an autoencoder was never asked to decode. A
density of z itself, fitted by maximum likelihood to latents of the training images, mends that
without touching encoder or decoder: a mixture or a flow (as Ghosh et al. 2020, section 4, do for
deterministic autoencoders), a second VAE (Dai & Wipf 2019, section 3), an autoregressive model of
codes (van den Oord et al. 2017, section 3.3).
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array

from vae_jax.checkpoint import Checkpoints
from vae_jax.compatibility import PerClass, Space, Trait, check_prior, posteriors_of
from vae_jax.conditional import given, labels_of
from vae_jax.cpu import threefry
from vae_jax.data import index_keys
from vae_jax.distributions import Distribution, Shape
from vae_jax.errors import VaeJaxError
from vae_jax.likelihoods.gaussian import Gaussian
from vae_jax.networks import MLP
from vae_jax.posteriors.gaussian import DiagonalGaussian
from vae_jax.priors.codes import AutoregressiveCodes
from vae_jax.priors.flows import RealNVP
from vae_jax.priors.mixtures import GaussianMixture
from vae_jax.priors.simple import StandardNormal
from vae_jax.run import Run
from vae_jax.vae import VAE, fold_in_each

Family = Literal["mixture", "flow", "vae", "autoregressive"]

LATENTS = 50_000  # at least so many are drawn from the aggregated posterior
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 4000, 256, 3e-3
IMAGES_AT_ONCE = 1000


@struct.dataclass
class SecondStage(Distribution):
    """p(z) = E_p(u)[p(z|u)] of a VAE over latents `[d]`: it can be sampled, not evaluated."""

    variables: Any
    vae: VAE = struct.field(pytree_node=False)

    @property
    def batch_shape(self) -> Shape:
        """As the base class says."""
        return ()

    @property
    def event_shape(self) -> Shape:
        """`[d]`."""
        return self.vae.image_shape[:1]

    @property
    def mean(self) -> Array:
        """The decoder's mean at u = 0."""
        u = jnp.zeros(self.event_shape)
        pz: Any = self.vae.apply(self.variables, u, method="decode")
        return pz.mean.reshape(self.event_shape)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """u from N(0, I), then z from p(z|u), noise included."""
        keys = jax.random.split(key, sample_shape).reshape(-1)
        u_and_pz: Any = self.vae.apply(self.variables, keys, method="sample")
        z = u_and_pz[1].sample(fold_in_each(keys, 1))
        return z.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Array) -> Array:
        """There is only a bound, which `elbo` has.

        Raises:
            VaeJaxError: always.
        """
        raise VaeJaxError(
            "A second-stage VAE has no density of z, only a bound on it: sample from it, or fit a "
            "mixture or a flow to evaluate likelihoods."
        )

    def elbo(self, z: Array, keys: Array) -> Array:
        """The bound on ln p(z) with one sample of u, `[N, d]` and keys `[N]` to `[N]`, nats."""
        terms: Any = self.vae.apply(self.variables, z.reshape(-1, *self.vae.image_shape), keys)
        return terms.log_px[0] - terms.kl[0]


class SecondStageVAE(nn.Module):
    """A VAE over latents `[dim]`, as wide in u as in z (Dai & Wipf 2019).

    Attributes:
        dim: latent dimensions d, of z and of u.
        hidden: widths of the hidden layers of encoder and decoder.
    """

    dim: int
    hidden: tuple[int, ...] = (512, 512)

    spaces: ClassVar[frozenset[Space]] = frozenset({"real"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = False
    learned: ClassVar[bool] = True

    def setup(self):
        """Latents are images of `dim` x 1 pixels."""
        self.vae = VAE(
            encoder=MLP(self.hidden, jax.nn.relu),
            posterior=DiagonalGaussian(self.dim),
            prior=StandardNormal(self.dim),
            decoder=MLP(self.hidden, jax.nn.relu),
            likelihood=Gaussian(squash=_identity),
            image_shape=(self.dim, 1, 1),
        )

    def __call__(self, model: Any) -> SecondStage:
        """Batch `[]`, event `[dim]`."""
        if self.is_initializing():
            self.vae(jnp.zeros((1, self.dim, 1, 1)), jax.random.split(threefry.key(0), 1))
        return SecondStage(self.vae.variables, self.vae.clone(parent=None))


def _identity(x: Array) -> Array:
    return x


def latents_of(run: Run, seed: int = 0) -> np.ndarray:
    """Draws from q(z|x) of the training images, of the top layer: `[M, *event]`, M >= 50,000.

    Each image is drawn from equally often; the noise is a function of (image, draw, seed).
    """
    experiment, images = run.experiment, run.experiment.data.train.images
    draws = -(-LATENTS // len(images))

    @jax.jit
    def latents(variables: Any, images: Array, rows: Array, keys: Array) -> Array:
        variables = given(variables, labels_of(experiment.model, experiment.data.train, rows))
        x = experiment.data.protocol.apply(images, fold_in_each(keys, 0))
        terms: Any = experiment.model.apply(variables, x, fold_in_each(keys, 1))
        return (terms.z[-1] if isinstance(terms.z, tuple) else terms.z)[0]

    found = []
    for draw in range(draws):
        for first in range(0, len(images), IMAGES_AT_ONCE):
            rows = np.arange(first, min(first + IMAGES_AT_ONCE, len(images)))
            keys = fold_in_each(index_keys(seed, "train", jnp.asarray(rows)), 2 + draw)
            found.append(np.asarray(latents(run.seed_variables, images[rows], rows, keys)))
    return np.concatenate(found)


def fit(run: Run, prior: Any, *, num_steps: int = NUM_STEPS, seed: int = 0) -> Run:
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
    model: Any = run.experiment.model
    if isinstance(model.prior, PerClass):
        raise VaeJaxError(
            f"{type(model.prior).__name__} has a density for each class, which one fitted to the "
            "latents of all would replace: sample from the model's own prior."
        )
    check_prior(posteriors_of(model)[-1], prior)
    model = model.clone(prior=prior)
    z = latents_of(run, seed)
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
        key = jax.random.fold_in(threefry.key(seed), step)
        rows = jax.random.randint(key, (BATCH_SIZE,), 0, len(z))
        keys = jax.random.split(jax.random.fold_in(key, 1), BATCH_SIZE)
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
    params, losses = train(threefry.key(seed))
    if not np.isfinite(losses[-1]):
        raise VaeJaxError(f"{type(prior).__name__} could not be fitted: its loss is not finite.")
    return _with_prior(run, model, params)


def initial_params(model: Any, key: Array) -> Any:
    """Parameters of a model's prior, before training."""

    def encode_first(model: Any) -> None:  # a prior may look at the posterior's variables
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


def prior_for(run: Run, family: Family) -> Any:
    """A prior of this family for the latents of a run.

    Raises:
        VaeJaxError: the family has none for them.
    """
    model: Any = run.experiment.model
    space = posteriors_of(model)[-1].space
    variables = given(run.seed_variables, None if model.labels is None else [0])
    shape = jax.eval_shape(partial(latents_shape, model), variables).shape
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


def latents_shape(model: Any, variables: Any) -> Array:
    """One latent of the top layer, `[*event]`, for its shape."""
    key = threefry.key(0)
    terms = model.apply(variables, jnp.zeros((1, *model.image_shape)), key[None])
    return (terms.z[-1] if isinstance(terms.z, tuple) else terms.z)[0, 0]


def fitted(run: Run, family: Family) -> Run:
    """`fit` with a prior of this family, kept in the run folder: the second call reads it.

    A damaged one is fitted again.

    Raises:
        VaeJaxError: as for `prior_for` and `fit`.
    """
    prior = prior_for(run, family)
    model: Any = run.experiment.model.clone(prior=prior)
    like = jax.eval_shape(lambda: initial_params(model, threefry.key(0)))
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
