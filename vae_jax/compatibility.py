"""Refusals: combinations of parts that have no meaning, each with a sentence and a way out.

Parts declare their properties and objectives their requirements (`vae_jax.interfaces`). Each
refusal names the public parts that would fit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.errors import ModifyScopeVariableError
from jax import Array

from vae_jax import likelihoods, posteriors, priors, random
from vae_jax.data import PROTOCOLS, Data
from vae_jax.data.augment import Augmentation, BrightnessJitter, ColourJitter, RandomAffine
from vae_jax.distributions import Distribution, Shape
from vae_jax.errors import VaeJaxError
from vae_jax.given import shown
from vae_jax.interfaces import (
    Likelihood,
    Model,
    Objective,
    Posterior,
    Prior,
    Requirements,
    Space,
    Trait,
    Variables,
)
from vae_jax.likelihoods.base import OfLevels
from vae_jax.networks.critics import ImageCritic, LatentCritic, PatchCritic
from vae_jax.objectives.geco import Multiplier
from vae_jax.optimizers import has_groups

_SPACE_NAMES: dict[Space, str] = {
    "real": "real vectors",
    "sphere": "unit vectors",
    "onehot": "one-hot vectors",
    "simplex": "logarithms of probability vectors",
    "codes": "codes of a codebook",
}
_TRAIT_NAMES: dict[Trait, str] = {
    "density": "a density of q(z|x)",
    "path": "a density of q(z|x) that is differentiable along z",
    "factors": "a q(z|x) of independent components with a KL each",
    "amortized": "a q(z|x) all of whose parameters depend on x",
    "noise": "a q(z|x) from which two draws differ",
    "codebook": "a codebook",
}
_FIXED_PRIORS: dict[Space, str] = {
    "real": "StandardNormal, StandardLaplace",
    "sphere": "HypersphericalUniform",
    "onehot": "UniformCategorical",
    "simplex": "UniformConcrete",
    "codes": "UniformCodes",
}
_PLAYING_AGAINST: dict[type[nn.Module], str] = {
    LatentCritic: "FactorVAE(...) or AdversarialAutoencoder()",
    ImageCritic: "VAEGAN(...)",
    PatchCritic: "PatchGAN(...)",
    Multiplier: "GECO(...)",
}
Kind = TypeVar("Kind")

POSTERIORS: list[type[Posterior]] = [getattr(posteriors, name) for name in posteriors.__all__]
PRIORS: list[type[Prior]] = [getattr(priors, name) for name in priors.__all__]
# Without those that take their declarations from another likelihood.
LIKELIHOODS: list[type[Likelihood]] = [
    getattr(likelihoods, name)
    for name in likelihoods.__all__
    if name not in ("AutoregressivePixels", "SeenPixels")
]


def _fitting(parts: Iterable[type[Kind]], fits: Callable[[type[Kind]], bool]) -> str:
    names = [part.__name__ for part in parts if fits(part)]
    return f"these do: {', '.join(names)}" if names else "no part of this package does"


def check_data(likelihood: Likelihood, data: Data) -> None:
    """Check that a likelihood gives a probability to the images of `data` under their protocol.

    Raises:
        VaeJaxError: the protocol's images are not among the likelihood's `supports`.
    """
    if data.support in likelihood.supports:
        return
    fitting = [p for p in PROTOCOLS.values() if p.support in likelihood.supports]
    if likelihood.measure != "mass":  # a density is for values that fill an interval
        fitting = [protocol for protocol in fitting if protocol.support != "uint5"]
        fitting.sort(key=lambda protocol: protocol.support != "unit")
    others = [part.__name__ for part in LIKELIHOODS if data.support in part.supports]
    if data.support == "uint5":
        of_levels = [part.__name__ for part in LIKELIHOODS if issubclass(part, OfLevels)]
        others = [f"{name}(levels=32)" for name in of_levels] + others
    ways = [
        f"take the protocol {' or '.join(protocol.name for protocol in fitting)}",
        f"of likelihoods, these do: {', '.join(others)}",
    ]
    if "binary" in likelihood.supports and data.image_shape[-1] > 1:
        ways.reverse()  # nobody binarizes colours
    if data.support == "uint5" and isinstance(likelihood, OfLevels):
        ways.reverse()  # a user who chose five bits need only set them in the likelihood too
    raise VaeJaxError(
        f"{type(likelihood).__name__} gives no probability to {data.support} images (protocol "
        f"{data.protocol.name} of {data.name}): {ways[0]}; or {ways[1]}."
    )


def check_labels(model: Model, data: Data) -> None:
    """Check that a conditional model and its prior have the classes of the data.

    Raises:
        VaeJaxError: the data have no labels or another number of classes, or a prior p(z|y) is in a
            model without labels.
    """
    prior = model.prior
    if model.labels is None:
        if prior.label_classes is not None:
            raise VaeJaxError(
                f"{type(prior).__name__} is p(z|y), for a model that is given y: add "
                "labels=LabelEmbedding(...) to the model, or take another prior."
            )
        return
    for split in ("train", "valid", "test"):
        if len(data[split]) and data[split].labels is None:
            raise VaeJaxError(
                f"The model is conditional, and the {split} images of {data.name} have no labels: "
                f"give them, as Data.from_arrays(..., labels={{'{split}': ...}}), or leave "
                "labels=LabelEmbedding(...) out of the model."
            )
    found = len(data.class_names or ())
    for part, classes in ((model.labels, model.labels.num_classes), (prior, prior.label_classes)):
        if classes not in (None, found):
            raise VaeJaxError(
                f"{type(part).__name__} is for {classes} classes, and {data.name} has {found}: set "
                f"num_classes={found}."
            )
    if prior.needs & {"amortized"}:
        raise VaeJaxError(
            f"{type(prior).__name__} is made of q(z|x), which in a conditional model is q(z|x, y) "
            "with no y to take: choose another prior, such as StandardNormal."
        )


def check_prior(posterior: Posterior, prior: Prior) -> None:
    """Check that a prior has a density in the posterior's space, and the traits that it needs.

    Raises:
        VaeJaxError: the posterior's space is not among the prior's `spaces`, or it lacks a trait
            that the prior `needs`.
    """
    name, q_name = type(prior).__name__, type(posterior).__name__
    if fits_prior(posterior, prior):
        return
    ways = [
        "of priors, " + _fitting(PRIORS, lambda p: fits_prior(posterior, p)),
        "of posteriors, " + _fitting(POSTERIORS, lambda q: fits_prior(q, prior)),
    ]
    missing = sorted(prior.needs - posterior.traits)
    problem = f"gives no density to {_SPACE_NAMES[posterior.space]}, the latents of {q_name}"
    if posterior.space in prior.spaces:
        problem = f"needs {_TRAIT_NAMES[missing[0]]}, which {q_name} does not have"
    if isinstance(posterior, posteriors.DiagonalGaussian) or posterior.space in prior.spaces:
        ways.reverse()  # of the two, the prior was chosen on purpose
    raise VaeJaxError(f"{name} {problem}; {ways[0]}; or {ways[1]}.")


def check_prior_density(prior: Prior, what: str) -> None:
    """Check that ln p(z) is known, rather than only a bound on it.

    Args:
        prior: the prior.
        what: the name of the computation that needs ln p(z).

    Raises:
        VaeJaxError: only a bound is known.
    """
    if prior.bound_alone:
        raise VaeJaxError(
            f"{what} needs ln p(z), on which {type(prior).__name__} has only a bound here: leave "
            "it out for this run."
        )


def fits_prior(posterior: Posterior | type[Posterior], prior: Prior | type[Prior]) -> bool:
    """Whether a posterior and a prior pass `check_prior`."""
    return posterior.space in prior.spaces and prior.needs <= posterior.traits


def fits_posterior(requires: Requirements, posterior: Posterior | type[Posterior]) -> bool:
    """Whether an objective with the requirements `requires` takes the posterior."""
    return (
        posterior.space in requires.spaces
        and requires.posterior <= posterior.traits
        and not requires.without & posterior.traits
    )


def check_objective(objective: Objective, model: Model) -> None:
    """Check that a model meets an objective's requirements.

    Raises:
        VaeJaxError: a part of the model does not meet one of `objective.requires`.
    """
    requires: Requirements = objective.requires
    name = type(objective).__name__
    if requires.one_layer and len(model.posteriors) > 1:
        raise VaeJaxError(
            f"{name} is for models with one layer of latents, and {type(model).__name__} has "
            "several: take another objective, such as ELBO(), or a VAE."
        )
    for posterior in model.posteriors:
        missing = sorted(requires.posterior - posterior.traits)
        excess = sorted(requires.without & posterior.traits)
        if missing:
            problem = f"needs {_TRAIT_NAMES[missing[0]]}, which {type(posterior).__name__} lacks"
        elif excess:
            problem = (
                f"has no use for {_TRAIT_NAMES[excess[0]]}, which {type(posterior).__name__} has"
            )
        elif posterior.space not in requires.spaces:
            problem = (
                f"has no meaning for {_SPACE_NAMES[posterior.space]}, the latents of "
                f"{type(posterior).__name__}"
            )
        else:
            continue
        fitting = "of posteriors, " + _fitting(POSTERIORS, lambda q: fits_posterior(requires, q))
        if "codebook" in posterior.traits:
            raise VaeJaxError(f"{name} {problem}: take the objective VQVAE(); or {fitting}.")
        if not posterior.traits & {"density", "noise"}:
            raise VaeJaxError(
                f"{name} {problem}: take the objective RAE() or WAE(...); or {fitting}."
            )
        raise VaeJaxError(
            f"{name} {problem}; {fitting}; or take another objective, such as ELBO()."
        )
    top = model.posteriors[-1]
    if requires.factorized_prior and not model.prior.factors:
        raise VaeJaxError(
            f"{name} needs a prior with independent components, which "
            f"{type(model.prior).__name__} does not have; "
            f"{_fitting(PRIORS, lambda p: p.factors and fits_prior(top, p))}."
        )
    for conditional in model.conditionals:
        if requires.factorized_prior and "factors" not in conditional.traits:
            raise VaeJaxError(
                f"{name} needs conditionals with independent components, which "
                f"{type(conditional).__name__} does not have; "
                f"{_fitting(POSTERIORS, lambda p: 'factors' in p.traits)}."
            )
    if requires.fixed_prior and (model.prior.needs or _is_learned(model)):
        raise VaeJaxError(
            f"{name} does not train a prior, so {type(model.prior).__name__} would stay as it is "
            f"initialized: take a fixed one ({_FIXED_PRIORS[top.space]}); `vae-jax sample --prior` "
            "fits another afterwards."
        )
    if requires.exact_prior and not model.prior.exact:
        raise VaeJaxError(
            f"{name} needs ln p(z) itself, and training has only a noisy bound on that of "
            f"{type(model.prior).__name__}: take the objective ELBO(), or fit the "
            "prior afterwards, by `vae-jax fit-prior`; of priors, "
            f"{_fitting(PRIORS, lambda p: p.exact and fits_prior(top, p))}."
        )
    if requires.image_by_image and model.likelihood.whole_batch:
        raise VaeJaxError(
            f"{name} needs p(x|z) of each image by itself, and that of "
            f"{type(model.likelihood).__name__} depends on the batch; "
            f"{_fitting(LIKELIHOODS, lambda p: not p.whole_batch)}."
        )
    critic = type(model.critic).__name__
    if requires.critic and not isinstance(model.critic, requires.critic):
        fitting = " or ".join(kind.__name__ for kind in requires.critic)
        raise VaeJaxError(
            f"{name} plays against a critic: give the model critic={fitting}(...)"
            f"{'' if model.critic is None else f' instead of {critic}'}."
        )
    if model.critic is not None and not requires.critic:
        objectives = _PLAYING_AGAINST.get(type(model.critic))
        way = f"take {objectives} for an objective, or " if objectives else ""
        raise VaeJaxError(f"{name} has no use for a critic: {way}leave {critic} out of the model.")


def _abstract(model: Model) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """The shapes of an image and of its key."""
    x = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    return x, jax.eval_shape(lambda: random.key(0)[None])


def _initial(model: Model) -> Variables:
    """The shapes of a model's variables."""
    x, keys = _abstract(model)
    return jax.eval_shape(lambda x, keys: model.init(keys[0], x, keys), x, keys)


def _initial_loss(model: Model, objective: Objective) -> Variables:
    """The shapes of the variables of a model and of a critic that only the objective calls."""
    x, keys = _abstract(model)
    y = None if model.labels is None else jnp.zeros(1, jnp.int32)

    def loss(model: Model, x: Array, keys: Array) -> object:
        terms = model(x, keys, objective.num_samples, y)
        return objective(terms, jnp.zeros((), jnp.int32), model)

    return jax.eval_shape(lambda x, keys: nn.init(loss, model)(keys[0], x, keys), x, keys)


def _is_learned(model: Model) -> bool:
    return "prior" in _initial(model).get("params", {})


# Models whose parts fit together, by identity, as long as they exist: they are immutable.
_FITTING: WeakValueDictionary[int, Model] = WeakValueDictionary()


def check_shapes(model: Model, objective: Objective | None = None) -> None:
    """Check that the parts of a model fit together: each takes the output of the one before.

    A model without a critic is traced once, however many experiments it is in.

    Args:
        model: the model.
        objective: the objective that calls its critic, if it has one.

    Raises:
        VaeJaxError: a part has an output of the wrong shape or kind for the next, or the model
            cannot be called.
    """
    if _FITTING.get(id(model)) is model:
        return
    shapes: dict[tuple[str, ...], Shape] = {}
    failed: list[str] = []

    def remember(
        method: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        context: nn.module.InterceptorContext,
    ) -> object:
        try:
            made = method(*args, **kwargs)
        except VaeJaxError:
            raise
        except Exception:
            if context.module.scope is not None and len(context.module.path) == 1:
                inputs = [str(arg.shape) for arg in args if isinstance(arg, jax.Array)]
                given = f"inputs of shape {' and '.join(inputs)}" if inputs else "its inputs"
                failed.append(
                    f"{context.module.path[0]}, {shown(context.module)}, cannot take {given}"
                )
            raise
        if isinstance(made, Distribution):
            shapes.setdefault(context.module.path, made.event_shape)
        return made

    failure, variables = None, {}
    try:
        with nn.intercept_methods(remember):
            variables = _initial(model)
            if objective is not None and model.critic is not None:
                _initial_loss(model, objective)
    except VaeJaxError:
        raise
    except Exception as error:  # Flax, JAX and a user's network may raise anything
        failure = error
    for q, p in _layers(model):
        if q in shapes and p in shapes and shapes[q] != shapes[p]:
            raise VaeJaxError(
                f"The posterior's latents have the shape {shapes[q]}, the prior's {shapes[p]}: "
                "give both the same."
            ) from failure
    if failure is not None:
        reason = next(iter(str(failure).splitlines()), "") or repr(failure)
        what = failed[0] if failed else "they make no model"
        raise VaeJaxError(
            f"The parts of the model do not fit together: {what} ({reason.rstrip('.')}); change "
            "it, or the part before it."
        ) from failure
    _check_unchanged(model, variables)
    if model.critic is None:
        _FITTING[id(model)] = model


def _layers(model: Model) -> list[tuple[tuple[str], tuple[str]]]:
    """The paths of the posterior and of the prior of each layer, in the model's scope."""
    if (count := len(model.posteriors)) == 1:
        return [(("posterior",), ("prior",))]
    priors = [*(f"conditionals_{layer}" for layer in range(count - 1)), "prior"]
    return [((f"posteriors_{layer}",), (prior,)) for layer, prior in enumerate(priors)]


def _check_unchanged(model: Model, variables: Variables) -> None:
    """Check that a model can be called without changing its variables, as evaluation does.

    Raises:
        VaeJaxError: a part always changes its own, as batch normalization does.
    """
    others = sorted(set(variables) - {"params"})
    if not others:
        return
    x, keys = _abstract(model)
    y = None if model.labels is None else jnp.zeros(1, jnp.int32)
    try:
        jax.eval_shape(lambda *given: model.apply(*given, 1, y), variables, x, keys)
    except ModifyScopeVariableError as error:
        raise VaeJaxError(
            f"A network changes variables of its own ({', '.join(others)}) whenever it is called, "
            "as batch normalization does, and then an image's latents depend on its batch: "
            "normalize within each image, as nn.LayerNorm and nn.GroupNorm do."
        ) from error


def check_densities(model: Model, objective: Objective) -> None:
    """Check that densities are as their parts declare, if an objective takes them apart.

    Args:
        model: the model.
        objective: the objective.

    Raises:
        VaeJaxError: the density of a user's own part contradicts its declaration.
    """
    if objective.requires.posterior & {"factors", "codebook"}:
        _initial_loss(model, objective)


def check_pictures(model: Model, objective: Objective) -> None:
    """Check that the mean of p(x|z) is a picture, if an objective shows it to a critic.

    Args:
        model: the model.
        objective: the objective.

    Raises:
        VaeJaxError: pictures are samples, through which no gradient passes, or images have missing
            pixels.
    """
    if not objective.requires.mean_is_picture:
        return
    if isinstance(model.likelihood, likelihoods.SeenPixels):
        raise VaeJaxError(
            f"{type(objective).__name__} compares whole images, and those of SeenPixels have "
            "missing pixels: take an objective of ln p(x|z) alone, such as ELBO() or IWAE(5)."
        )
    _, keys = _abstract(model)
    (_, px), _ = jax.eval_shape(
        lambda keys: model.init_with_output(keys[0], keys, method="sample"), keys
    )
    if not px.mean_is_picture:
        raise VaeJaxError(
            f"{type(objective).__name__} shows means of p(x|z) to its critic, and the pictures of "
            f"{type(model.likelihood).__name__} are draws: take a likelihood of independent "
            "pixels, such as Gaussian, or an objective without a critic of images."
        )


def check_moved(model: Model, augmentations: Sequence[Augmentation]) -> None:
    """Check that `augmentations` do not corrupt the channel of a model that marks seen pixels.

    Raises:
        VaeJaxError: an augmentation of this package mixes or scales values.
    """
    for each in augmentations:
        mixes = isinstance(each, RandomAffine | BrightnessJitter | ColourJitter)
        if mixes and isinstance(model.likelihood, likelihoods.SeenPixels):
            raise VaeJaxError(
                f"{type(each).__name__} mixes or scales values, among them those of the channel "
                "that says which pixels are seen: take HorizontalFlip() or RandomShift(...), which "
                "move whole pixels."
            )


def check_batch(objective: Objective, batch_size: int) -> None:
    """Check that a batch of `batch_size` images is large enough for the objective's estimates.

    Raises:
        VaeJaxError: the batch is smaller than the objective's `least_batch`.
    """
    least = objective.requires.least_batch
    if batch_size < least:
        raise VaeJaxError(
            f"{type(objective).__name__} compares the images of a batch, and batch_size is "
            f"{batch_size}: take at least {least}, better a hundred."
        )


def notes(objective: Objective, opt_state: optax.OptState) -> Iterator[str]:
    """Notes on settings that are allowed but needlessly weak.

    Args:
        objective: the objective.
        opt_state: the state of the optimizer.

    Yields:
        A sentence for each.
    """
    if Multiplier in objective.requires.critic and not has_groups(opt_state):
        yield (
            f"The multiplier of {type(objective).__name__} is moved by the model's optimizer: by "
            "Adam's learning rate in each step, however far the distortion is from the tolerance, "
            "and its gradient counts where gradients are clipped together; "
            "by_group(optimizer, critic=...) gives it its own."
        )


def check_accumulation(model: Model, objective: Objective) -> None:
    """Check that a batch taken in parts has the gradients of the batch taken at once.

    Args:
        model: the model.
        objective: the objective.

    Raises:
        VaeJaxError: the objective or a part of the model declares `whole_batch`.
    """
    state = set(_initial(model)) - {"params"}
    layers = [*model.posteriors, *model.conditionals]
    parts = [*layers, model.prior, model.likelihood]
    whole = [type(part).__name__ for part in parts if part.whole_batch]
    if objective.requires.whole_batch:
        whole.insert(0, type(objective).__name__)
    if whole:
        reason = f"{whole[0]} looks at the batch as a whole"
    elif state:
        reason = f"The model counts over batches ({', '.join(sorted(state))})"
    else:
        return
    raise VaeJaxError(
        f"{reason}, so it cannot be taken in parts: leave accumulate at 1, and take more devices "
        "or a smaller batch."
    )


def check_complete(model: Model) -> None:
    """Check that a user's own model defines everything that its base class leaves open.

    Raises:
        VaeJaxError: a method of `Model` is not defined, or the model has no posteriors.
    """
    left = ("__call__", "encode", "decode", "sample", "log_prior")
    own, base = type(model), Model
    missing = [name for name in left if getattr(own, name) is getattr(base, name)]
    if not model.posteriors:
        missing.insert(0, "posteriors")
    if missing:
        raise VaeJaxError(
            f"{own.__name__} is a model without {', '.join(missing)}: define what Model in "
            "vae_jax/interfaces.py says of each, as VAE in vae_jax/vae.py does."
        )


def check(model: Model, objective: Objective, data: Data) -> None:
    """Check everything that has to fit before training.

    Args:
        model: the model.
        objective: the objective.
        data: the data, with their protocol.

    Raises:
        VaeJaxError: a combination has no meaning; the sentence names what would fit.
    """
    check_complete(model)
    check_data(model.likelihood, data)
    check_labels(model, data)
    check_prior(model.posteriors[-1], model.prior)
    for module in [*model.posteriors[1:], *model.conditionals]:
        if "amortized" not in module.traits:
            raise VaeJaxError(
                f"{type(module).__name__} shares parameters between examples, which a layer that "
                "is given latents cannot; "
                f"{_fitting(POSTERIORS, lambda q: 'amortized' in q.traits)}."
            )
    check_objective(objective, model)
    check_shapes(model, objective)
    check_densities(model, objective)
    check_pictures(model, objective)
