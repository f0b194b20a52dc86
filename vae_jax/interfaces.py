"""The parts of a model: base classes with defaults, and their declarations.

`vae_jax.compatibility` refuses combinations whose declarations contradict each other.
"""

# The stubs of jax.numpy leave members partly unknown.
# pyright: strict, reportUnknownMemberType=false

import abc
import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import Scope
from jax import Array
from jax.nn.initializers import Initializer
from jaxtyping import Float, Int, Key, Num

from vae_jax import given, random
from vae_jax.errors import VaeJaxError

if TYPE_CHECKING:
    from vae_jax.distributions import Distribution
    from vae_jax.vae import Terms

Own = TypeVar("Own", bound="Part")
Shape = tuple[int, ...]
Variables = Mapping[str, Any]
"""The variables that a module's `apply` takes: its collections by name, trees of arrays."""
Metrics = dict[str, Num[Array, ""]]
Layers = tuple[Float[Array, "..."], ...]
"""The latents of every layer, the bottom layer first."""

Space = Literal["real", "sphere", "onehot", "simplex", "codes"]
"""The space of latents: R^d, unit vectors, one-hot vectors `[n, C]`, logarithms of probability
vectors `[n, C]`, or maps `[h, w, D]` of the vectors of a finite codebook."""

Trait = Literal["density", "path", "factors", "amortized", "noise", "codebook"]
"""A capability of q(z|x).

- `"density"`: its `log_prob` is a density or a mass, so importance weights have a meaning.
- `"path"`: its density is differentiable along z with the parameters held fixed.
- `"factors"`: it is an `Elementwise`: its components are independent, and each has a KL.
- `"amortized"`: all its parameters depend on x, so the components q(z|u_c) of a mixture can be
  indexed.
- `"noise"`: two draws differ.
- `"codebook"`: it is a `Quantized` with penalties.
"""

Support = Literal["binary", "uint8", "uint5", "unit", "real"]
"""The values of pixels: {0, 1}; {0, 1/255, ..., 1}; {0, 1/31, ..., 1}; (0, 1); any real number."""

Measure = Literal["mass", "density", "pseudo"]
"""The kind of a likelihood's `log_prob`; `"pseudo"` if it is not normalized."""

SPACES: frozenset[Space] = frozenset({"real", "sphere", "onehot", "simplex", "codes"})
_EVENT_NDIMS: dict[Space, int] = {"real": 1, "sphere": 1, "onehot": 2, "simplex": 2, "codes": 3}
_NO_CALL = "{} has no __call__: define it, as in the example of its base class."


def latent_shape(shape: int | Sequence[int]) -> Shape:
    """The event shape of z from its `shape`; a vector's length d makes `(d,)`."""
    return tuple(int(size) for size in (shape if isinstance(shape, Sequence) else (shape,)))


@dataclass(frozen=True)
class Requirements:
    """The requirements of an objective on a model.

    Attributes:
        posterior: the traits that q(z|x) must have, in every layer.
        without: the traits that q(z|x) must not have.
        spaces: the spaces in which z may live.
        factorized_prior: whether p(z) must have independent components.
        fixed_prior: whether p(z) must have no parameters, because the objective trains none.
        exact_prior: whether ln p(z) must be known exactly, as inside the logarithm of a mean.
        critic: the classes of critics of which the model must have one; empty if none is needed.
        mean_is_picture: whether the mean of p(x|z) must be a picture, because a critic sees it.
        one_layer: whether hierarchical models are excluded.
        image_by_image: whether p(x|z) must not depend on the other images of a batch.
        whole_batch: whether the loss is more than a mean of losses per example.
        least_batch: the least number of images in a batch; with fewer, the loss is undefined.
    """

    posterior: frozenset[Trait] = frozenset()
    without: frozenset[Trait] = frozenset()
    spaces: frozenset[Space] = SPACES
    factorized_prior: bool = False
    fixed_prior: bool = False
    exact_prior: bool = False
    critic: tuple[type[nn.Module], ...] = ()
    mean_is_picture: bool = False
    one_layer: bool = False
    image_by_image: bool = False
    whole_batch: bool = False
    least_batch: int = 1


class Part(nn.Module):
    """A Linen module whose constructor refuses values that its fields' annotations exclude.

    Example:
        `Noisy(0)`, `Noisy(2.5)` and `Noisy(dim="2")` are refused with a sentence::

            class Noisy(Part):
                dim: given.Count
    """

    def __post_init__(self):
        # A module that is bound, or copied to be bound, was checked when it was made.
        if not (self.parent is None or isinstance(self.parent, nn.Module | Scope)):
            self.check()
        super().__post_init__()

    @nn.nowrap
    def check(self) -> None:
        """Check the fields; a subclass adds, with `nn.nowrap`, the conditions between them.

        Raises:
            VaeJaxError: a field does not fit, or a module is in two positions.
        """
        given.check_fields(self)
        given.check_apart(self)

    @nn.nowrap
    def clone(  # pyright: ignore[reportIncompatibleMethodOverride]
        self: Own, **updates: object
    ) -> Own:
        """Linen's `clone`, which also checks the fields that `updates` replaces."""
        copied = super().clone(**updates)  # pyright: ignore[reportArgumentType]
        if not updates.keys() <= {"parent", "name", "_deep_clone", "_reset_names"}:
            copied.check()
        return copied


class Posterior(Part):
    """q(z|x): from the features of a network to a distribution over latents.

    Attributes:
        space: the space in which z lives.
        traits: the capabilities of q(z|x).
        whole_batch: whether it looks at the batch as a whole.

    Example:
        A Gaussian of one fixed scale::

            class FixedScale(Posterior):
                dim: int
                traits = frozenset({"density", "path", "factors", "noise"})

                @nn.compact
                def __call__(self, features: Array) -> Normal:
                    loc = self.affine(features, self.dim, "loc", nn.initializers.lecun_normal())
                    return Normal(loc, jnp.full_like(loc, 0.1))
    """

    space: ClassVar[Space] = "real"
    traits: ClassVar[frozenset[Trait]] = frozenset({"density", "noise"})
    whole_batch: ClassVar[bool] = False

    @property
    def event_ndims(self) -> int:
        """The number of axes of one z."""
        return _EVENT_NDIMS[self.space]

    def __call__(self, features: Float[Array, "N ..."]) -> "Distribution":
        """q(z|x), batch `[N]`, from the `features` of N inputs.

        Raises:
            VaeJaxError: the features do not fit the shape of z.
        """
        raise NotImplementedError(_NO_CALL.format(type(self).__name__))

    def seen(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The form of latents z that networks receive; by default z itself."""
        return z

    def affine(
        self,
        features: Float[Array, "N ..."],
        shape: int | Shape,
        name: str,
        kernel_init: Initializer,
    ) -> Float[Array, "N *event"]:
        """One affine output for each component of z; call it in a compact method.

        A vector z takes all features, flattened. All positions of a set `(n, d)` or of a map
        `(h, w, c)` share one affine map of the features `[N, n, F]` or `[N, h, w, F]`.

        Args:
            features: the features of the encoder.
            shape: the shape of z.
            name: the name of the layer.
            kernel_init: the initializer of its kernel.

        Raises:
            VaeJaxError: the positions of the features are not those of z.
        """
        *positions, outputs = event = latent_shape(shape)
        own = features.shape[1:-1]
        if not positions:
            features = features.reshape(features.shape[0], -1)
        elif own != tuple(positions):
            fitting = f"shape={(*own, outputs)}, one number for a vector" if own else "one number"
            axes = [f"[{', '.join(['N', *map(str, each), 'F'])}]" for each in (positions, own)]
            raise VaeJaxError(
                f"Latents of shape {event} are made of features {axes[0]}, and the "
                f"encoder's are {axes[1]}: take {fitting}, or another encoder."
            )
        return nn.Dense(outputs, kernel_init=kernel_init, name=name)(features)


class Prior(Part):
    """p(z), or p(z|y), called with its model.

    Most priors ignore the model. The VampPrior calls the model's `encode`, and a prior over codes
    takes the codebook from the model's posterior.

    Attributes:
        spaces: the spaces in which z may live.
        needs: the traits that the posterior must have.
        factors: whether the components are independent, as those of an `Elementwise` are.
        exact: whether training can compute ln p(z), rather than a noisy estimate of a bound on it.
        bound_alone: whether only that bound is available, so that evaluation also takes it.
        draws_by: its fields among "guidance", "temperature", "top_k", "top_p" of `Run.sample`.
        whole_batch: whether it looks at the batch as a whole.

    Example:
        N(m, I) with a learned mean::

            class LearnedMean(Prior):
                dim: int
                factors = True

                @nn.compact
                def __call__(self, model: Model, y: Array | None = None) -> Normal:
                    loc = self.param("loc", nn.initializers.zeros, (self.dim,))
                    return Normal(loc, jnp.ones_like(loc))
    """

    spaces: ClassVar[frozenset[Space]] = frozenset({"real"})
    needs: ClassVar[frozenset[Trait]] = frozenset()
    factors: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    bound_alone: ClassVar[bool] = False
    draws_by: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = False

    @property
    def label_classes(self) -> int | None:
        """The number of classes y if this is p(z|y), else None."""
        return None

    def __call__(self, model: "Model", y: Int[Array, "B"] | None = None) -> "Distribution":
        """p(z), batch `[]`; or p(z|y), batch `[B]`.

        Args:
            model: the model, bound to its parameters.
            y: the labels of a conditional model.
        """
        raise NotImplementedError(_NO_CALL.format(type(self).__name__))


class Likelihood(Part):
    """p(x|z): from the features of a decoder to a distribution over images.

    Attributes:
        supports: the values of pixels to which it gives a probability.
        measure: the kind of its `log_prob`.
        whole_batch: whether it looks at the batch as a whole.

    Example:
        Least squares, up to a constant::

            class LeastSquares(Likelihood):
                @nn.compact
                def __call__(self, features: Array, image_shape: Shape) -> Normal:
                    init = nn.initializers.lecun_normal()
                    loc = self.per_pixel(features, image_shape, "loc", init)
                    return Normal(loc, jnp.full_like(loc, 0.5**0.5), event_ndims=3)
    """

    supports: ClassVar[frozenset[Support]] = frozenset({"uint8", "uint5", "unit", "real"})
    measure: ClassVar[Measure] = "density"
    whole_batch: ClassVar[bool] = False

    def __call__(self, features: Float[Array, "N ..."], image_shape: Shape) -> "Distribution":
        """p(x|z), batch `[N]` and event `[H, W, C]`, from the features of N latents.

        Args:
            features: `[N, F]`, or `[N, H, W, F]` with the image's height and width.
            image_shape: (H, W, C).

        Raises:
            VaeJaxError: the features have a different height or width than the image.
        """
        raise NotImplementedError(_NO_CALL.format(type(self).__name__))

    def observe(
        self, px: "Distribution", x: Float[Array, "B H W C"], remember: bool = True
    ) -> "Distribution":
        """p(x|z) once the images of the batch are known; by default unchanged.

        Args:
            px: the distribution that `__call__` returned, batch `[K, B]`.
            x: this device's share of the batch.
            remember: whether to update statistics of the images, which happens once in a step.
        """
        return px

    def per_pixel(
        self,
        features: Float[Array, "N ..."],
        shape: Shape,
        name: str,
        kernel_init: Initializer,
        bias_init: Initializer = nn.initializers.zeros,
    ) -> Float[Array, "N H W ..."]:
        """Affine outputs for each pixel; call it in a compact method.

        Vector features `[N, F]` pass through a dense layer with bias `[H * W * ...]`, spatial
        features `[N, H, W, F]` through a 1x1 convolution with bias `[...]`.

        Args:
            features: the features of the decoder.
            shape: (H, W) and the axes of the outputs for each pixel, often (H, W, C).
            name: the name of the layer.
            kernel_init: the initializer of its kernel.
            bias_init: the initializer of its bias.

        Raises:
            VaeJaxError: spatial features have a different height or width than the image.
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


class Labels(Part):
    """The classes y of a model in which only the prior depends on them: p(z|y), but q(z|x), p(x|z).

    With these a second stage has classes even if the first has none.

    Attributes:
        num_classes: the number of classes; labels are 0 to `num_classes` - 1.
    """

    num_classes: given.Count

    def for_encoder(
        self, x: Float[Array, "N *axes C"], y: Int[Array, "B"] | None
    ) -> Float[Array, "N ..."]:
        """The input of an encoder, from images or latents x and labels y; by default x."""
        return x

    def for_decoder(
        self, z: Float[Array, "N *axes d"], y: Int[Array, "B"] | None
    ) -> Float[Array, "N ..."]:
        """The input of a decoder, from latents z and labels y; by default z."""
        return z


@functools.cache
def _arguments_of(method: str) -> tuple[str, ...]:
    """The names of the arguments of the model's method `method`; none for any other name."""
    function = getattr(Model, method, None)
    return () if function is None else tuple(inspect.signature(function).parameters)[1:]


class Model(Part, kw_only=True):
    """A generative model p(x, z_1, ..., z_L) with its inference model q(z_1, ..., z_L | x).

    Latents are always a tuple of layers, the bottom layer z_1 first. In a conditional model, one
    with `labels`, every density is conditioned on a class y.

    Attributes:
        prior: p(z_L).
        likelihood: p(x|z), on the features of a decoder.
        critic: the module that the objective plays against, if it needs one.
        labels: the classes y of a conditional model, and their embedding.
        image_shape: (H, W, C); if left out, an `Experiment` takes that of its data.

    Raises:
        VaeJaxError: a part is of another kind, or in two positions.
    """

    prior: Annotated[Prior, "a prior, such as StandardNormal(20)"]
    likelihood: Annotated[Likelihood, "a likelihood, such as Bernoulli()"]
    critic: Annotated[nn.Module | None, "a critic, such as LatentCritic(MLP((8,))), or None"] = None
    labels: Annotated[Labels | None, "a LabelEmbedding, or None"] = None
    image_shape: Annotated[
        tuple[()] | tuple[given.Count, given.Count, given.Count], "(H, W, C), such as (28, 28, 1)"
    ] = ()

    if TYPE_CHECKING:

        @property
        def posteriors(self) -> Sequence[Posterior]:
            """The posteriors of the layers, the bottom layer first."""
            ...

    else:  # a property would hide the field of a hierarchy
        posteriors = ()
    conditionals: ClassVar[Sequence[Posterior]] = ()  # p(z_1|z_2), ..., where parts make them

    def setup(self):
        """Refuse a model of unknown image shape.

        Raises:
            VaeJaxError: neither the model nor an `Experiment` has set `image_shape`.
        """
        if not self.image_shape:
            raise VaeJaxError(
                f"This {type(self).__name__} does not know the shape of its images: give it to an "
                "Experiment, whose model knows it from the data, or set image_shape=(H, W, C)."
            )

    apply = given.admitted(nn.Module.apply)  # pyright: ignore
    init_with_output = given.admitted(nn.Module.init_with_output)  # pyright: ignore

    @property
    def decoded_layers(self) -> int:
        """The number of layers, from the bottom one up, that p(x|z) depends on directly."""
        return 1

    @nn.nowrap
    def admit(
        self, variables: object, method: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> None:
        """Check images x, latents zs and labels y before a method of the model gets them.

        Args:
            variables: the variables to apply the model with.
            method: the name of the method.
            args: its positional arguments.
            kwargs: its named arguments.

        Raises:
            VaeJaxError: one of them has the wrong shape, type or range of values for the model.
        """
        names = _arguments_of("decode" if method == "decode_top" else method)
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if "x" in arguments and self.image_shape:
            in_unit = "real" not in self.likelihood.supports
            given.images(arguments["x"], self.image_shape, in_unit)
        given.labels(arguments.get("y"), None if self.labels is None else self.labels.num_classes)
        if "zs" in arguments:
            shapes = self.latent_shapes(cast(Variables, variables))
            spaces = [posterior.space for posterior in self.posteriors]
            if method == "decode_top":
                given.top_layers(arguments["zs"], shapes, spaces)
            else:
                fewest = self.decoded_layers if method == "decode" else len(shapes)
                given.layers(arguments["zs"], shapes, spaces, fewest)

    @nn.nowrap
    def latent_shapes(self, variables: Variables) -> list[Shape]:
        """The shapes of z in every layer, for a model with these `variables`."""
        y = None if self.labels is None else jnp.zeros(1, jnp.int32)

        def sample(variables: Variables) -> Layers:
            zs, _ = self.apply(variables, random.key(0)[None], y, method="sample")
            return zs

        return [z.shape[1:] for z in jax.eval_shape(sample, variables)]

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        keys: Key[Array, "B"],
        num_samples: int = 1,
        y: Int[Array, "_"] | None = None,
    ) -> "Terms":
        """Encode images, sample latents, decode them.

        Args:
            x: images in the form of the data's protocol.
            keys: typed keys; the noise of an example depends on its own key alone.
            num_samples: the number of samples K of each example.
            y: the labels of a conditional model, or one label for all examples.

        Raises:
            VaeJaxError: the model is conditional and `y` is None.
        """
        raise NotImplementedError

    def encode(
        self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None
    ) -> "Distribution":
        """q(z_1|x), or q(z_1|x, y) given labels y, batch `[B]`."""
        raise NotImplementedError

    def infer(
        self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None
    ) -> "tuple[Distribution, ...]":
        """q(z_l|x, y, ...) of every layer, z_1 first, given the means of those inferred before."""
        return (self.encode(x, y),)

    def decode(self, zs: Layers, y: Int[Array, "B"] | None = None) -> "Distribution":
        """p(x|z_1, ..., z_L), batch `[...]` and event `[H, W, C]`.

        Args:
            zs: latents `[..., *event]` of every layer.
            y: the labels of a conditional model; they match the last axis of `[...]`.
        """
        raise NotImplementedError

    def sample(
        self, keys: Key[Array, "N"], y: Int[Array, "B"] | None = None
    ) -> "tuple[Layers, Distribution]":
        """Latents `[N, *event]` of every layer from the prior, and p(x|z).

        Args:
            keys: typed keys, one for each sample.
            y: the labels of a conditional model; N is a multiple of their number B.
        """
        raise NotImplementedError

    def log_prior(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Float[Array, "..."]:
        """ln p(z_1, ..., z_L | y) in nats, for latents zs `[..., *event]` of every layer."""
        raise NotImplementedError

    def log_densities(
        self, x: Float[Array, "B H W C"], zs: Layers, y: Int[Array, "_"] | None = None
    ) -> tuple[Float[Array, "... B"], Float[Array, "... B"]]:
        """ln p(x|z) and ln p(z) in nats.

        Args:
            x: images in the form of the data's protocol.
            zs: latents `[..., B, *event]` of every layer.
            y: the labels of a conditional model, or one label for all examples.
        """
        return self.decode(zs, y).log_prob(x), self.log_prior(zs, y)

    def held(self, terms: "Terms") -> "Terms":
        """`terms` for DReG: q's parameters fixed in ln q(z|x), gradients of z by `path`."""
        raise NotImplementedError

    def log_joint(
        self, x: Float[Array, "B H W C"], zs: Layers, y: Int[Array, "_"] | None = None
    ) -> Float[Array, "... B"]:
        """ln p(x, z_1, ..., z_L) in nats, the sum of `log_densities(x, zs, y)`."""
        log_px, log_pz = self.log_densities(x, zs, y)
        return log_px + log_pz


class Objective(given.Checked, abc.ABC):
    """From Terms to one scalar, differentiated once: a frozen dataclass of its settings.

    Attributes:
        num_samples: the number of samples K from q(z|x) for each example.
        holds_state: whether the model's running counts, such as a codebook's use, are held fixed.

    Example:
        The ELBO with the sampled estimate of the KL::

            @dataclass(frozen=True)
            class SampledELBO(Objective):
                def __call__(self, terms, step, model):
                    return -terms.log_w.mean(), terms.bound_metrics()
    """

    num_samples: int = 1
    holds_state: ClassVar[bool] = False

    @property
    def requires(self) -> Requirements:
        """The objective's requirements on the model; by default none."""
        return Requirements()

    @abc.abstractmethod
    def __call__(
        self, terms: "Terms", step: Int[Array, ""], model: "Model"
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image, and metrics, both means over the examples.

        The metrics include those of `Terms.rate_and_distortion` and, if the model has a bound,
        `neg_elbo`, the bound at beta = 1: a run's figures show them.

        Args:
            terms: the Terms of this device's examples.
            step: the step of training.
            model: the model, bound to its parameters, for a critic or to encode or decode again.
        """
