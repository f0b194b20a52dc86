"""What the parts of a model are: base classes with defaults, and what they declare.

A part that leaves a declaration out gets the default; `vae_jax.compatibility` compares the
declarations and refuses combinations that have no meaning.
"""

# pyright: strict, reportUnknownMemberType=false

import abc
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, ClassVar, Literal

import flax.linen as nn
from flax import struct
from jax import Array
from jax.nn.initializers import Initializer

from vae_jax.errors import VaeJaxError

if TYPE_CHECKING:
    from vae_jax.conditional import LabelEmbedding
    from vae_jax.distributions import Distribution
    from vae_jax.vae import Terms

Shape = tuple[int, ...]
Metrics = dict[str, Array]
Layers = tuple[Array, ...]
"""Latents of every layer, the bottom layer first."""

Space = Literal["real", "sphere", "onehot", "simplex", "codes"]
"""Where latents live: R^d, unit vectors, one-hot vectors `[n, C]`, probability vectors `[n, C]`, or
the vectors of a finite codebook."""

Trait = Literal["density", "path", "factors", "amortized", "noise", "codebook"]
"""What q(z|x) can do.

- `"density"`: `log_prob` is a density or mass, so that importance weights mean something.
- `"path"`: the density is differentiable along z with its parameters held fixed.
- `"factors"`: its components are independent, each with a KL.
- `"amortized"`: every parameter depends on x, so a mixture of q(z|u_c) can be indexed.
- `"noise"`: two draws differ.
- `"codebook"`: it is a `Quantized` with penalties.
"""

Support = Literal["binary", "uint8", "unit", "real"]
"""The values that pixels take: {0, 1}; k/255; (0, 1); any real number."""

Measure = Literal["mass", "density", "pseudo"]
"""What a likelihood's `log_prob` is; one that is not normalized is `"pseudo"`."""

SPACES: frozenset[Space] = frozenset({"real", "sphere", "onehot", "simplex", "codes"})
_EVENT_NDIMS: dict[Space, int] = {"real": 1, "sphere": 1, "onehot": 2, "simplex": 2, "codes": 3}


def latent_shape(shape: int | Sequence[int]) -> Shape:
    """The event shape of z: `(d,)` where a vector is given by its length d.

    Raises:
        VaeJaxError: a size is not a whole number above zero, or there is none.
    """
    event = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not event or any(not isinstance(size, Integral) or size < 1 for size in event):
        raise VaeJaxError(
            f"{shape} is not a shape of latents: take d for vectors, (n, d) for sets of n vectors "
            "or (h, w, c) for maps, all at least 1."
        )
    return tuple(int(size) for size in event)


class Pytree:
    """Gives each subclass, a `flax.struct.dataclass`, a static field with its own name.

    The tree structures of two dataclasses with equal fields are equal (jaxlib 0.10 to 0.12), so now
    and then `jax.jit` would take the program of one for the other.
    """

    def __init_subclass__(cls, **kwargs: object):
        super().__init_subclass__(**kwargs)
        cls.__annotations__ = inspect.get_annotations(cls) | {"_class": str}
        name = f"{cls.__module__}.{cls.__qualname__}"
        cls._class = struct.field(pytree_node=False, default=name, kw_only=True, repr=False)


@dataclass(frozen=True)
class Requirements:
    """What an objective needs of a model.

    Attributes:
        posterior: traits that q(z|x) must have, in every layer.
        without: traits that q(z|x) must not have.
        spaces: where z may live.
        factorized_prior: whether p(z) must have independent components.
        fixed_prior: whether p(z) must have no parameters, because the objective does not train
            them.
        critic: names of critic classes, one of which the model must have; empty if it needs none.
        mean_is_picture: whether the mean of p(x|z) must be a picture, because a critic sees it.
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


class Posterior(nn.Module):
    """q(z|x): the features of a network become a distribution over latents.

    Attributes:
        space: where z lives.
        traits: what the distribution can do.
        whole_batch: whether it looks at the batch as a whole.
    """

    space: ClassVar[Space] = "real"
    traits: ClassVar[frozenset[Trait]] = frozenset({"density", "noise"})
    whole_batch: ClassVar[bool] = False

    @property
    def event_ndims(self) -> int:
        """The number of axes of one z."""
        return _EVENT_NDIMS[self.space]

    def __call__(self, features: Array) -> "Distribution":
        """Features `[N, ...]` to a distribution with batch `[N]`."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__.")

    def affine(
        self, features: Array, shape: int | Shape, name: str, kernel_init: Initializer
    ) -> Array:
        """One affine output for each component of z, `[N, *shape]`, inside a compact method.

        For a vector z, the features are flattened, whatever they are. For a set of n vectors
        `(n, d)` or a map `(h, w, c)`, one affine map of the last axis is shared by all positions,
        so the features must be `[N, n, F]` or `[N, h, w, F]`.

        Args:
            features: the encoder's features.
            shape: the shape of z.
            name: the name of the layer.
            kernel_init: the initializer of its kernel.

        Raises:
            VaeJaxError: the features have other positions than z.
        """
        *positions, outputs = event = latent_shape(shape)
        own = features.shape[1:-1]
        if not positions:
            features = features.reshape(features.shape[0], -1)
        elif own != tuple(positions):
            fitting = f"shape={(*own, outputs)}, one number for a vector" if own else "one number"
            raise VaeJaxError(
                f"Latents of shape {event} are made of features {_axes(positions)}, and the "
                f"encoder's are {_axes(own)}: take {fitting}, or another encoder."
            )
        return nn.Dense(outputs, kernel_init=kernel_init, name=name)(features)


def _axes(positions: Sequence[int]) -> str:
    return f"[{', '.join(['N', *map(str, positions), 'F'])}]"


class Prior(nn.Module):
    """p(z), or p(z|y): called with the model that it is a part of.

    Most priors ignore the model; the VampPrior is made of its `encode`, a prior over codes asks its
    posterior for the codebook.

    Attributes:
        spaces: where z may live.
        needs: traits that the posterior must have.
        factors: whether the components are independent.
        whole_batch: whether it looks at the batch as a whole.
    """

    spaces: ClassVar[frozenset[Space]] = frozenset({"real"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False

    @property
    def label_classes(self) -> int | None:
        """The number of classes y where this is p(z|y), else None."""
        return None

    def __call__(self, model: "Model", y: Array | None = None) -> "Distribution":
        """A distribution with batch `[]`, or `[B]` for labels y `[B]` where it is p(z|y)."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__.")


class Likelihood(nn.Module):
    """p(x|z): the features of a decoder become a distribution over images.

    Attributes:
        supports: the values of pixels that it gives a probability to.
        measure: what its `log_prob` is.
        whole_batch: whether it looks at the batch as a whole.
    """

    supports: ClassVar[frozenset[Support]] = frozenset({"uint8", "unit", "real"})
    measure: ClassVar[Measure] = "density"
    whole_batch: ClassVar[bool] = False

    def __call__(self, features: Array, image_shape: Shape) -> "Distribution":
        """Features `[N, ...]` to a distribution with batch `[N]` and event `[H, W, C]`."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__.")

    def observe(self, px: "Distribution", x: Array, remember: bool = True) -> "Distribution":
        """p(x|z), batch `[K, B]`, after it has seen images `[B, H, W, C]`; by default the same.

        Args:
            px: what `__call__` made.
            x: this device's share of the batch.
            remember: whether what it remembers of images moves; once in a step, so a second density
                takes False.
        """
        del x, remember
        return px

    def per_pixel(
        self,
        features: Array,
        shape: Shape,
        name: str,
        kernel_init: Initializer,
        bias_init: Initializer = nn.initializers.zeros,
    ) -> Array:
        """Affine outputs for each pixel, `[N, H, W, ...]`, inside a compact method.

        Vector features `[N, F]` go through a dense layer to all outputs (so `bias_init` sees the
        shape `[H * W * ...]`); spatial features `[N, H, W, F]` through a 1x1 convolution (bias
        `[...]`).

        Args:
            features: the decoder's features.
            shape: the shape of one image's outputs: the image's (H, W, C), or (H, W) and whatever
                axes a pixel's parameters have.
            name: the name of the layer.
            kernel_init, bias_init: its initializers.

        Raises:
            VaeJaxError: spatial features have another height or width than the image.
        """
        height, width, *own = shape
        if features.ndim == 2:
            outputs = math.prod(shape)
        elif features.shape[1:3] == (height, width):
            outputs = math.prod(own)
        else:
            raise VaeJaxError(
                f"The decoder's features are {features.shape[1]}x{features.shape[2]} pixels, the "
                f"images {height}x{width}: take a decoder that meets the image's size."
            )
        dense = nn.Dense(outputs, kernel_init=kernel_init, bias_init=bias_init, name=name)
        return dense(features).reshape(-1, *shape)


class Model(nn.Module, kw_only=True):
    """A generative model p(x, z_1, ..., z_L) with its inference model q(z_1, ..., z_L | x).

    Latents are always a tuple of layers, the bottom layer z_1 first. Where `labels` is given, all
    densities are those given a class y.

    Attributes:
        prior: p(z_L).
        likelihood: p(x|z), on the features of a decoder.
        critic: what the objective plays against, if it needs one.
        labels: the embedding of y in a conditional model.
        image_shape: (H, W, C).
    """

    prior: Prior
    likelihood: Likelihood
    critic: nn.Module | None = None
    labels: "LabelEmbedding | None" = None
    image_shape: Shape = (28, 28, 1)

    if TYPE_CHECKING:  # an attribute of hierarchies, which a property here would become

        @property
        def posteriors(self) -> Sequence[Posterior]:
            """The posteriors of the layers, bottom first."""
            ...

    def __call__(
        self, x: Array, keys: Array, num_samples: int = 1, y: Array | None = None
    ) -> "Terms":
        """Encode, sample, decode.

        Args:
            x: images `[B, H, W, C]`, scaled by the data set's protocol.
            keys: typed keys `[B]`: each example draws its noise from its own.
            num_samples: K.
            y: labels `[B]` of a conditional model.
        """
        raise NotImplementedError

    def encode(self, x: Array, y: Array | None = None) -> "Distribution":
        """q(z_1|x) for images `[B, H, W, C]`."""
        raise NotImplementedError

    def decode(self, zs: Layers, y: Array | None = None) -> "Distribution":
        """p(x|z_1, ..., z_L) for latents `[..., *event_l]`: batch `[...]`, event `[H, W, C]`."""
        raise NotImplementedError

    def sample(self, keys: Array, y: Array | None = None) -> "tuple[Layers, Distribution]":
        """Latents `[N, *event_l]` from the prior, one for each key of `[N]`, and p(x|z) there."""
        raise NotImplementedError

    def log_prior(self, zs: Layers, y: Array | None = None) -> Array:
        """ln p(z_1, ..., z_L) for latents `[..., *event_l]`: `[...]`, nats."""
        raise NotImplementedError

    def log_joint(self, x: Array, zs: Layers, y: Array | None = None) -> Array:
        """ln p(x, z) for images `[B, H, W, C]` and latents `[..., B, *event_l]`: nats."""
        return self.decode(zs, y).log_prob(x) + self.log_prior(zs, y)


class Objective(abc.ABC):
    """From Terms to one scalar that is differentiated once: a frozen dataclass of its settings.

    Attributes:
        num_samples: K, the samples of q(z|x) that each example is given.
    """

    num_samples: int = 1

    @property
    def requires(self) -> Requirements:
        """What the model must have; by default nothing."""
        return Requirements()

    @abc.abstractmethod
    def __call__(self, terms: "Terms", step: Array, model: "Model") -> tuple[Array, Metrics]:
        """The loss (scalar, nats per image) and metrics (scalars).

        The metrics have `neg_elbo`, at beta = 1, where the model has a bound, and those of
        `Terms.rate_and_distortion`: a run's figures are drawn from them.

        Args:
            terms: those of this device's examples.
            step: the step of training, `[]`.
            model: bound to its parameters, for objectives that encode or decode again or have a
                critic.
        """


def has_bound(model: Model) -> bool:
    """Whether ln p(x, z) - ln q(z|x) bounds ln p(x): q has a density or is a mass on codes."""
    return model.likelihood.measure != "pseudo" and all(
        posterior.traits & {"density", "codebook"} for posterior in model.posteriors
    )
