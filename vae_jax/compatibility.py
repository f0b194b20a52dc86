"""Which parts make a model that means something, and a sentence for those that do not.

Every part declares what it is (see `vae_jax.posteriors`, `vae_jax.priors`, `vae_jax.likelihoods`)
and every objective what it requires. Refusals name the public parts that would fit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

import vae_jax
from vae_jax.errors import VaeJaxError

if TYPE_CHECKING:
    from vae_jax.data import Data
    from vae_jax.distributions import Distribution

Space = Literal["real", "sphere", "onehot", "simplex", "codes"]
Trait = Literal["density", "path", "factors", "amortized", "noise", "codebook"]

SPACES: frozenset[Space] = frozenset({"real", "sphere", "onehot", "simplex", "codes"})
_SPACE_NAMES: dict[Space, str] = {
    "real": "real vectors",
    "sphere": "unit vectors",
    "onehot": "one-hot vectors",
    "simplex": "probability vectors",
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


@dataclass(frozen=True)
class Requirements:
    """What an objective needs of a model.

    Attributes:
        posterior: traits of q(z|x), of every layer.
        without: traits that q(z|x) must not have.
        spaces: where z may live.
        factorized_prior: whether p(z) must have independent components.
        fixed_prior: whether p(z) must have no parameters, for the objective would not train them.
        critic: names of critic classes of which the model must have one; empty if it needs none.
        mean_is_picture: whether the mean of p(x|z) must be a picture, for it is what a critic sees.
        one_layer: whether hierarchical models are excluded.
        whole_batch: whether the loss is more than a mean over examples, so that a batch taken in
            parts would have another.
    """

    posterior: frozenset[Trait] = frozenset()
    without: frozenset[Trait] = frozenset()
    spaces: frozenset[Space] = SPACES
    factorized_prior: bool = False
    fixed_prior: bool = False
    critic: tuple[str, ...] = ()
    mean_is_picture: bool = False
    one_layer: bool = False
    whole_batch: bool = False


@runtime_checkable
class PerClass(Protocol):
    """A part with parameters for each class y; a prior that is one is p(z|y).

    Attributes:
        num_classes: of the labels.
    """

    num_classes: int


def latent_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """The event shape of z: `(d,)` where a vector is given by its length d.

    Raises:
        VaeJaxError: a size is no whole number above zero, or there is none.
    """
    event = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not event or any(not isinstance(size, Integral) or size < 1 for size in event):
        raise VaeJaxError(
            f"{shape} is no shape of latents: take d for vectors, (n, d) for sets of n vectors or "
            "(h, w, c) for maps, all at least 1."
        )
    return tuple(int(size) for size in event)


Kind = Literal["posterior", "prior", "likelihood", "objective"]
_DECLARES = {
    "posterior": "traits",
    "prior": "spaces",
    "likelihood": "supports",
    "objective": "requires",
}


def public(kind: Kind) -> list[type]:
    """The public parts of a kind, told by what they declare, in alphabetical order.

    Without those that declare what a part of theirs does, as `AutoregressivePixels`.
    """
    named = [getattr(vae_jax, name) for name in dir(vae_jax)]
    parts = [part for part in named if isinstance(part, type) and hasattr(part, _DECLARES[kind])]
    borrowed = kind == "likelihood"
    return [part for part in parts if not (borrowed and isinstance(part.supports, property))]


def _fitting(kind: Kind, fits: Callable[[Any], bool]) -> str:
    names = [part.__name__ for part in public(kind) if fits(part)]
    return f"these do: {', '.join(names)}" if names else "no part of this package does"


def posteriors_of(model: Any) -> Sequence[Any]:
    """The posterior modules of a model's layers, bottom first."""
    return model.posteriors if hasattr(model, "posteriors") else [model.posterior]


def has_bound(model: Any) -> bool:
    """Whether ln p(x, z) - ln q(z|x) bounds ln p(x): q has a density or is a mass on codes."""
    return model.likelihood.measure != "pseudo" and all(
        posterior.traits & {"density", "codebook"} for posterior in posteriors_of(model)
    )


def check_data(likelihood: Any, data: "Data") -> None:
    """The likelihood gives a probability to what the data's protocol makes.

    Raises:
        VaeJaxError: it does not.
    """
    if data.support not in likelihood.supports:
        raise VaeJaxError(
            f"{type(likelihood).__name__} gives no probability to {data.support} images (protocol "
            f"{data.protocol.name} of {data.name}); "
            f"{_fitting('likelihood', lambda part: data.support in part.supports)}."
        )


def check_labels(model: Any, data: "Data") -> None:
    """Conditional models and priors have the classes of the data.

    Raises:
        VaeJaxError: they have not.
    """
    prior = model.prior
    if model.labels is None:
        if isinstance(prior, PerClass):
            raise VaeJaxError(
                f"{type(prior).__name__} is p(z|y), for a model that is given y: add "
                "labels=LabelEmbedding(...) to the model, or take another prior."
            )
        return
    for split in ("train", "valid", "test"):
        if len(getattr(data, split)) and getattr(data, split).labels is None:
            raise VaeJaxError(
                f"The model is conditional, and the {split} images of {data.name} have no labels: "
                "leave labels=LabelEmbedding(...) out, or give them to Data.from_arrays."
            )
    found = len(data.class_names or ())
    for part in (model.labels, prior):
        if isinstance(part, PerClass) and part.num_classes != found:
            raise VaeJaxError(
                f"{type(part).__name__} is for {part.num_classes} classes, and {data.name} has "
                f"{found}: set num_classes={found}."
            )
    if prior.needs & {"amortized"}:
        raise VaeJaxError(
            f"{type(prior).__name__} is made of q(z|x), which in a conditional model is q(z|x, y) "
            "with no y to take: choose another prior, such as StandardNormal."
        )


def check_prior(posterior: Any, prior: Any) -> None:
    """The prior covers the space of the posterior and can be made of it.

    Raises:
        VaeJaxError: it does not, or cannot.
    """
    name, q_name = type(prior).__name__, type(posterior).__name__
    if posterior.space not in prior.spaces:
        raise VaeJaxError(
            f"{name} gives no density to {_SPACE_NAMES[posterior.space]}, the latents of {q_name}; "
            f"{_fitting('prior', lambda p: fits_prior(posterior, p))}."
        )
    for trait in sorted(prior.needs - posterior.traits):
        raise VaeJaxError(
            f"{name} needs {_TRAIT_NAMES[trait]}, which {q_name} does not have; "
            f"{_fitting('posterior', lambda q: fits_prior(q, prior))}."
        )


def fits_prior(posterior: Any, prior: Any) -> bool:
    """Whether `check_prior` lets the pair pass."""
    return posterior.space in prior.spaces and prior.needs <= posterior.traits


def fits_posterior(requires: Requirements, posterior: Any) -> bool:
    """Whether an objective with these requirements takes the posterior."""
    return (
        posterior.space in requires.spaces
        and requires.posterior <= posterior.traits
        and not requires.without & posterior.traits
    )


def check_objective(objective: Any, model: Any) -> None:
    """The model has what the objective requires.

    Raises:
        VaeJaxError: it has not.
    """
    requires: Requirements = objective.requires
    name = type(objective).__name__
    if requires.one_layer and hasattr(model, "posteriors"):
        raise VaeJaxError(
            f"{name} is for models with one layer of latents, and {type(model).__name__} has "
            "several: take a VAE, or another objective, such as ELBO."
        )
    for posterior in posteriors_of(model):
        missing = sorted(requires.posterior - posterior.traits)
        excess = sorted(requires.without & posterior.traits)
        if missing:
            problem = f"needs {_TRAIT_NAMES[missing[0]]}, which {type(posterior).__name__} lacks"
        elif excess:
            problem = f"has no use for {_TRAIT_NAMES[excess[0]]}, as {type(posterior).__name__} has"
        elif posterior.space not in requires.spaces:
            problem = (
                f"has no meaning for {_SPACE_NAMES[posterior.space]}, the latents of "
                f"{type(posterior).__name__}"
            )
        else:
            continue
        raise VaeJaxError(
            f"{name} {problem}; for posteriors, "
            f"{_fitting('posterior', lambda q: fits_posterior(requires, q))}."
        )
    top = posteriors_of(model)[-1]
    if requires.factorized_prior and not model.prior.factors:
        raise VaeJaxError(
            f"{name} needs a prior with independent components, which "
            f"{type(model.prior).__name__} has not; "
            f"{_fitting('prior', lambda p: p.factors and fits_prior(top, p))}."
        )
    if requires.fixed_prior and model.prior.learned:
        raise VaeJaxError(
            f"{name} does not train a prior, so {type(model.prior).__name__} would stay as it is "
            f"initialised; {_fitting('prior', lambda p: not p.learned and fits_prior(top, p))}, "
            "and `vae-jax sample --prior` fits one afterwards."
        )
    critic = type(model.critic).__name__
    if requires.critic and critic not in requires.critic:
        raise VaeJaxError(
            f"{name} plays against a critic: give the model critic={' or '.join(requires.critic)}"
            f"(...){'' if model.critic is None else f' instead of {critic}'}."
        )
    if model.critic is not None and not requires.critic:
        raise VaeJaxError(
            f"{name} has no use for a critic: leave {critic} out, or take another objective."
        )


def check_shapes(model: Any) -> None:
    """Vectors are given by their length; every network and density takes what it is given.

    Raises:
        VaeJaxError: the parts do not fit together.
    """
    for part in [*posteriors_of(model), *getattr(model, "conditionals", ()), model.prior]:
        dim = getattr(part, "dim", 1)
        if not isinstance(dim, Integral) or dim < 1:
            raise VaeJaxError(
                f"{type(part).__name__} is for vectors, of a number of dimensions above zero, not "
                f"{dim}: take one, or a part for any shape, such as DiagonalGaussian and "
                "StandardNormal."
            )
    x = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    try:
        jax.eval_shape(model.init, key, x, keys)
    except (TypeError, ValueError) as error:
        first = next(iter(str(error).splitlines()), repr(error))
        raise VaeJaxError(f"The parts of the model do not fit together: {first}") from error


def check_pictures(model: Any, objective: Any) -> None:
    """The mean of p(x|z) is a picture, where an objective shows it to a critic.

    Raises:
        VaeJaxError: it is not: pictures are draws, which no gradient passes.
    """
    if not objective.requires.mean_is_picture:
        return
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))

    def sample(keys: Any) -> "Distribution":
        (_, px), _ = model.init_with_output(keys[0], keys, method="sample")
        return px

    if not jax.eval_shape(sample, keys).mean_is_picture:
        raise VaeJaxError(
            f"{type(objective).__name__} shows means of p(x|z) to its critic, and the pictures of "
            f"{type(model.likelihood).__name__} are draws: take a likelihood of independent "
            "pixels, such as Gaussian, or an objective without a critic of images."
        )


def check_events(q: "Distribution", p: "Distribution") -> None:
    """A layer's q and p are over latents of one shape, which broadcasting alone would not ensure.

    Raises:
        VaeJaxError: they are not.
    """
    if q.event_shape != p.event_shape:
        raise VaeJaxError(
            f"The posterior's latents have the shape {q.event_shape}, the prior's "
            f"{p.event_shape}: give both the same."
        )


def check_accumulation(model: Any, objective: Any) -> None:
    """A batch taken in parts has the gradients of the batch taken at once.

    Raises:
        VaeJaxError: it has not.
    """
    x = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = set(jax.eval_shape(model.init, key, x, keys)) - {"params", "given"}
    if objective.requires.whole_batch:
        reason = f"{type(objective).__name__} looks at the batch as a whole"
    elif state:
        reason = f"The model counts over batches ({', '.join(sorted(state))})"
    else:
        return
    raise VaeJaxError(
        f"{reason}, so it cannot be taken in parts: leave accumulate at 1, and take more devices "
        "or a smaller batch."
    )


def check(model: Any, objective: Any, data: "Data") -> None:
    """Everything that has to fit before training.

    Raises:
        VaeJaxError: a combination has no meaning; the sentence names what would fit.
    """
    check_data(model.likelihood, data)
    check_labels(model, data)
    check_prior(posteriors_of(model)[-1], model.prior)
    for module in [*posteriors_of(model)[1:], *getattr(model, "conditionals", ())]:
        if "amortized" not in module.traits:
            raise VaeJaxError(
                f"{type(module).__name__} shares parameters between examples, which a layer that "
                "is given latents cannot; "
                f"{_fitting('posterior', lambda q: 'amortized' in q.traits)}."
            )
    check_objective(objective, model)
    check_shapes(model)
    check_pictures(model, objective)
