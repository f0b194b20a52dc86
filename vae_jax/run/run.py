"""A trained model, and what it is used for: arrays of NumPy in, arrays of NumPy out."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict
from jax import Array

from vae_jax import given, parallel, random
from vae_jax.bounds import SAMPLES_AT_ONCE, bounded, per_image
from vae_jax.checkpoint import Which
from vae_jax.data import SplitName
from vae_jax.deep import DeepVAE
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import Experiment
from vae_jax.given import Count, Index, Seed, checked
from vae_jax.interfaces import Layers, has_bound
from vae_jax.run.folder import RunFolder
from vae_jax.run.latents import Encoded, between, centre, moments

Classes = Annotated[
    Sequence[str | int] | np.ndarray | Array | str | int | None,
    "classes by name or number, one for each image or one for all",
]
"""Classes of a conditional model."""


@dataclass(frozen=True)
class Run:
    """A trained model with all that belongs to it.

    `encode`, `decode`, `reconstruct`, `sample`, `log_prob` and `interpolate` show the first seed
    (`replica` makes another the first), on all devices. Images are bytes, which go through the
    data's protocol, or floats in [0, 1] as that makes them. Pictures are means of p(x|z), floats in
    [0, 1]; where pixels depend on each other, draws from p(x|z) instead.

    Attributes:
        folder: where it lives.
        experiment: what was trained.
        state: the training state, host arrays with a leading axis of seeds.
        checkpoint: which one `state` is.
        first: the position of the first seed in `state` among those that were trained.

    Example:
        >>> run = load_run("runs/readme")
        >>> z = run.encode(images).mean
        >>> pictures = run.decode(z)
    """

    folder: RunFolder
    experiment: Experiment
    state: Any
    checkpoint: Which
    first: int = 0

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables, `[S, ...]`: the parameters' running average where one was kept."""
        return self.state.variables

    @property
    def seed_variables(self) -> dict[str, Any]:
        """The first seed's variables, for `model.apply`."""
        return jax.tree.map(lambda leaf: leaf[0], self.variables)

    @checked
    def replica(self, index: Index) -> "Run":
        """The run with one of its seeds alone, counted from 0.

        Raises:
            VaeJaxError: there are fewer.
        """
        if index >= (count := len(self.state.step)):
            raise VaeJaxError(
                f"index of replica is {index}, and {self.folder.path} was trained with "
                f"{count} seed{'s' * (count > 1)}: give {' or '.join(map(str, range(count)[-2:]))}."
            )
        state = jax.tree.map(lambda leaf: leaf[index : index + 1], self.state)
        return dataclasses.replace(self, state=state, first=self.first + index)

    # Using the model

    @checked
    def encode(self, images: object, labels: Classes = None, *, seed: Seed = 0) -> Encoded:
        """q(z|x) of images: its means and standard deviations, and a draw of it.

        Args:
            images: bytes or floats `[n, H, W, C]`.
            labels: their classes in a conditional model.
            seed: the seed of the draw.

        Raises:
            VaeJaxError: images or labels do not fit the model.
        """
        model = self.experiment.model

        def encoded(variables: VariableDict, x: Array, keys: Array, y: Array | None) -> object:
            return moments(model, variables, x, keys, y)

        found = self._of_images("encode", encoded, images, labels, seed)
        assert isinstance(found, tuple)
        mean, std, sample = cast("tuple[list[np.ndarray], ...]", tuple(map(list, found)))
        if len(mean) > 1:
            return Encoded(tuple(mean), tuple(std), tuple(sample))
        return Encoded(mean[0], std[0], sample[0])

    @checked
    def decode(self, z: object, labels: Classes = None, *, seed: Seed = 0) -> np.ndarray:
        """Pictures `[..., H, W, C]` of latents.

        Args:
            z: latents `[..., *event]`, or a tuple of those of each layer. Of a `DeepVAE` the top n
                layers will do: those below are then at the means of their priors. Of other
                hierarchies the bottom layer will do.
            labels: their classes in a conditional model: one for all, or one for each position of
                the last axis of `[...]`.
            seed: the seed of the pixels where these are drawn.

        Raises:
            VaeJaxError: latents or labels do not fit the model.
        """
        model, variables = self.experiment.model, self.seed_variables
        several = z if isinstance(z, tuple | list) else ()
        layered = any(isinstance(each, np.ndarray | Array) for each in several)
        zs = tuple(several) if layered else (z,)
        from_top = isinstance(model, DeepVAE) and len(zs) < model.decoded_layers
        method = "decode_top" if from_top else "decode"
        model.admit(variables, method, (zs,), {})  # values, which a program cannot look at
        layers = [np.asarray(layer, np.float32) for layer in zs]
        shapes = model.latent_shapes(variables)
        layers = layers if from_top else layers[: model.decoded_layers]
        shapes = shapes[-len(layers) :] if from_top else shapes[: len(layers)]
        batches = [each.shape[: each.ndim - len(s)] for each, s in zip(layers, shapes, strict=True)]
        if len({*batches}) > 1 or not math.prod(batches[0]):
            raise VaeJaxError(
                f"The layers of z have the leading axes {', '.join(map(str, batches))}: give all "
                "the same, and at least one z."
            )
        flat = [each.reshape(-1, *shape) for each, shape in zip(layers, shapes, strict=True)]
        y = self.classes(labels, len(flat[0]))

        def decoded(
            variables: VariableDict, seed: Array, rows: Array, y: Array | None, *zs: Array
        ) -> Array:
            px = model.apply(variables, zs, y, method=method)
            return _pictures(cast(Distribution, px), seed, rows)

        def batch(rows: np.ndarray) -> tuple[np.ndarray | None, ...]:
            return _rows(rows), None if y is None else y[rows], *(each[rows] for each in flat)

        found = self._mapped((method, len(flat)), decoded, (_seed(seed),), batch, len(flat[0]))
        pictures = cast(np.ndarray, found)
        return pictures.reshape(*batches[0], *pictures.shape[1:])

    @checked
    def reconstruct(
        self, images: object, labels: Classes = None, *, top: int | None = None, seed: Seed = 0
    ) -> np.ndarray:
        """Pictures `[n, H, W, C]` of the latents in the middle of q(z|x); see `posterior_means`.

        Args:
            images: bytes or floats `[n, H, W, C]`.
            labels: their classes in a conditional model.
            top: the number of layers of a `DeepVAE`, from the top, that are encoded; those below
                are at the means of their priors. None encodes all.
            seed: the seed of the pixels where these are drawn.

        Raises:
            VaeJaxError: images or labels do not fit the model, or it has not so many layers.
        """
        top = self.layers_or_refuse("top", top)
        return self.decode(self.posterior_means(images, labels)[-top:], labels, seed=seed)

    @checked
    def sample(
        self,
        num: Count = 64,
        *,
        label: str | int | Sequence[str | int] | None = None,
        temperature: float | Sequence[float] | None = None,
        seed: Seed = 0,
    ) -> np.ndarray:
        """Pictures `[num, H, W, C]` of latents from the prior.

        Args:
            num: the number of pictures.
            label: a class of a conditional model, by name or number, or several, one after the
                other with equal shares of the pictures; None takes all classes.
            temperature: the factor of the scales of a `DeepVAE`'s priors: one number, or one for
                each layer, the bottom layer first; None leaves them.
            seed: the seed of the draws.

        Raises:
            VaeJaxError: there is no such class, or the model has no such temperatures.
        """
        model, factors = self.experiment.model, self._temperatures(temperature)
        if label is None and model.labels is not None:
            label = self.class_names
        y = None
        if label is not None:
            several = isinstance(label, Sequence) and not isinstance(label, str)
            names = cast("Sequence[str | int]", label if several else [label])
            classes = np.array([self.find_label(name) for name in names], np.int32)
            y = classes[np.arange(num) * len(classes) // num]

        def drawn(
            variables: VariableDict,
            seed: Array,
            factors: tuple[Array, ...],
            rows: Array,
            y: Array | None,
        ) -> Array:
            keys = random.indexed(random.purpose(random.key(seed), "samples"), rows)
            found = model.apply(variables, keys, y, *factors, method="sample")
            return _pictures(cast("tuple[Layers, Distribution]", found)[1], seed, rows)

        def batch(rows: np.ndarray) -> tuple[np.ndarray | None, ...]:
            return _rows(rows), None if y is None else y[rows]

        found = self._mapped(("sample", len(factors)), drawn, (_seed(seed), factors), batch, num)
        return cast(np.ndarray, found)

    @checked
    def log_prob(
        self,
        images: object,
        labels: Classes = None,
        *,
        num_samples: Count = 5000,
        seed: Seed = 0,
    ) -> np.ndarray:
        """L_K of each image, `[n]` in nats: a lower bound on ln p(x), tighter as K grows.

        Args:
            images: bytes or floats `[n, H, W, C]`.
            labels: their classes in a conditional model, whose bound is on ln p(x|y).
            num_samples: the number of samples K.
            seed: the seed of the samples.

        Raises:
            VaeJaxError: images or labels do not fit the model, or nothing bounds its likelihood.

        References:
            Burda et al. (2015), "Importance weighted autoencoders", equation 8.
        """
        if not has_bound(self.experiment.model):
            raise VaeJaxError(
                f"There is no bound on ln p(x) of {self.folder.path}, whose q(z|x) has no density "
                "or whose p(x|z) is not normalized: compare `run.bounds(images)['distortion']`."
            )
        return -self.bounds(images, labels, num_samples=num_samples, seed=seed)["nll"]

    @checked
    def bounds(
        self,
        images: object,
        labels: Classes = None,
        *,
        num_samples: Count = 5000,
        seed: Seed = 0,
    ) -> dict[str, np.ndarray]:
        """The bound on -ln p(x) of each image and its parts, `[n]` each in nats.

        They are `nll`, which is -L_K, `neg_elbo`, `distortion`, `kl_sampled`, `kl` where the KL is
        known exactly, and `rate_z1`, ... where there are several layers, as in
        `vae_jax.bounds.per_image`; or the `distortion` alone where nothing bounds the likelihood.

        Args:
            images: bytes or floats `[n, H, W, C]`.
            labels: their classes in a conditional model.
            num_samples: the number of samples K.
            seed: the seed of the samples.

        Raises:
            VaeJaxError: images or labels do not fit the model.
        """
        model = self.experiment.model

        def values(
            variables: VariableDict, x: Array, keys: Array, y: Array | None
        ) -> dict[str, Array]:
            found = bounded(model, per_image(model, variables, x, keys, num_samples, y))
            return {name: each for name, each in found.items() if each.ndim == 1}

        decoded = min(num_samples, SAMPLES_AT_ONCE)
        name = "evaluation", num_samples
        found = self._of_images(name, values, images, labels, seed, decoded)
        return cast("dict[str, np.ndarray]", found)

    @checked
    def interpolate(
        self,
        a: object,
        b: object,
        labels: Classes = None,
        *,
        steps: Count = 11,
        top: int | None = None,
        seed: Seed = 0,
    ) -> np.ndarray:
        """Pictures `[n, steps, H, W, C]` of the shortest lines between the latents of two images.

        Lines between real vectors are straight; those between unit vectors are great circles.

        Args:
            a: images `[n, H, W, C]`, with whose latents the lines begin.
            b: images `[n, H, W, C]`, with whose latents they end.
            labels: the classes of both in a conditional model.
            steps: the number of pictures on each line.
            top: the number of layers of a `DeepVAE`, from the top, that the lines run through;
                those below are at the means of their priors. None takes all.
            seed: the seed of the pixels where these are drawn.

        Raises:
            VaeJaxError: images or labels do not fit the model or each other, there is nothing
                between two of its latents, or it has not so many layers.
        """
        top = self.layers_or_refuse("top", top)
        space = self.experiment.model.posteriors[0].space
        if space not in ("real", "sphere"):
            raise VaeJaxError(
                f"There is nothing between two latents of {self.folder.path} (space {space!r}): "
                "only real and unit vectors can be interpolated."
            )
        ends = [self.posterior_means(images, labels)[-top:] for images in (a, b)]
        if len(ends[0][0]) != len(ends[1][0]):
            raise VaeJaxError(
                f"interpolate was given {len(ends[0][0])} images to begin with and "
                f"{len(ends[1][0])} to end with: give pairs."
            )
        lines = tuple(between(one, other, steps, space) for one, other in zip(*ends, strict=True))
        y = self.classes(labels, len(lines[0]))
        return self.decode(lines, None if y is None else np.repeat(y, steps), seed=seed)

    def posterior_means(self, images: object, labels: Classes = None) -> tuple[np.ndarray, ...]:
        """The latents in the middle of q(z|x), in the space that z lives in, from which to decode.

        They are the mean or, where it has no closed form, a central point: the image of the base's
        mean under the flows. Of unit vectors they are the mean's direction, of one-hot vectors the
        likeliest.

        Args:
            images: bytes or floats `[n, H, W, C]`.
            labels: their classes in a conditional model.

        Returns:
            All layers of a `DeepVAE`, `[n, h, w, c]`, the bottom layer first, and the bottom layer
            alone of any other model, `[n, *event]`.

        Raises:
            VaeJaxError: images or labels do not fit the model.
        """
        model = self.experiment.model

        def centres(variables: VariableDict, x: Array, keys: Array, y: Array | None) -> Layers:
            qs = cast("tuple[Distribution, ...]", model.apply(variables, x, y, method="infer"))
            each = zip(qs, model.posteriors, strict=True)
            return tuple(centre(q, layer.space) for q, layer in each)[: model.decoded_layers]

        found = self._of_images("posterior means", centres, images, labels)
        return cast("tuple[np.ndarray, ...]", found)

    # The data that it knows

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of a conditional model.

        Raises:
            VaeJaxError: the model is not conditional.
        """
        names = self.experiment.data.class_names
        if self.experiment.model.labels is None or names is None:
            raise VaeJaxError(
                f"The model of {self.folder.path} was trained without labels, so it has no classes "
                "to choose from: leave the label out, or train with labels=LabelEmbedding(...)."
            )
        return names

    def find_label(self, label: str | int) -> int:
        """The number of a class by its name, or by the number itself.

        Raises:
            VaeJaxError: the model is not conditional, or has no such class; the sentence names
                those that it has.
        """
        names = self.class_names
        if label in names:
            return names.index(str(label))
        if str(label).isdecimal() and int(label) < len(names):
            return int(label)
        raise VaeJaxError(
            f"{self.experiment.data.name} has no class '{label}': choose one of {', '.join(names)}."
        )

    def images(self, split: SplitName, rows: np.ndarray) -> Array:
        """Images `[n, H, W, C]` of a split as the model sees them.

        Raises:
            VaeJaxError: the split has no such rows.
        """
        images = getattr(self.experiment.data, split).images
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(images):
            raise VaeJaxError(
                f"The {split} split of {self.experiment.data.name} has {len(images)} images; rows "
                f"{rows.min()} to {rows.max()} were asked for."
            )
        keys = random.purpose(random.image_keys(split, rows), "protocol")
        return self.experiment.data.protocol.apply(images[rows], keys)

    def labels(self, split: SplitName, rows: np.ndarray) -> np.ndarray | None:
        """The labels `[n]` of images of a split; None where the model takes none."""
        if self.experiment.model.labels is None:
            return None
        return getattr(self.experiment.data, split).labels[rows]

    def observed(self, images: object) -> Array:
        """Images `[n, H, W, C]` that a user gives, as the model sees them.

        Args:
            images: bytes, which go through the data's protocol with noise of their own, or floats,
                which are taken to be what it makes.

        Raises:
            VaeJaxError: they have another layout, shape, type or range than the model's.
        """
        found = self._given(images)
        return self._seen(jnp.asarray(found), jnp.arange(len(found)))

    def classes(self, labels: Classes, count: int) -> np.ndarray | None:
        """The numbers `[count]` of classes that a user gives.

        Args:
            labels: classes by name or number, `[B]` with B a divisor of `count`; one for all will
                do.
            count: the number of images or latents.

        Raises:
            VaeJaxError: they are no classes of the model, or it has none, or needs them.
        """
        embedding = self.experiment.model.labels
        if labels is None and embedding is not None:
            raise VaeJaxError(
                f"The model of {self.folder.path} is conditional: give the classes too, labels=, "
                "by name or number, one for each image or one for all."
            )
        if labels is not None and np.ndim(labels) == 0:
            labels = [cast("str | int", labels)]
        if isinstance(labels, tuple | list) and any(isinstance(each, str) for each in labels):
            labels = [self.find_label(cast("str | int", each)) for each in labels]
        if labels is not None and not isinstance(labels, Array):
            labels = np.asarray(labels)
        y = given.labels(labels, None if embedding is None else embedding.num_classes)
        if y is None:
            return None
        if count % len(y):
            raise VaeJaxError(
                f"{len(y)} labels were given for {count} inputs: give one label for each, or one "
                "for all."
            )
        return np.resize(np.asarray(y, np.int32), count)

    def metric(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps `[T]` at which a metric was logged, and its values `[T, S]`.

        Where nothing was finite, a value is nan.
        """
        lines = [line for line in self.folder.read_metrics() if name in line]
        values = np.array([line[name] for line in lines], dtype=float).reshape(len(lines), -1)
        own = slice(self.first, self.first + len(self.state.step))
        return np.array([line["step"] for line in lines]), values[:, own]

    def layers_or_refuse(self, name: str, number: int | None) -> int:
        """A number of layers from which pictures are decoded; None stands for all.

        Raises:
            VaeJaxError: there are fewer.
        """
        layers = self.experiment.model.decoded_layers
        if number is not None and not 1 <= number <= layers:
            way_out = f"take 1 to {layers}" if layers > 1 else "leave it out"
            raise VaeJaxError(
                f"{name} is {number}, and the number of layers from which pictures of "
                f"{self.folder.path} are decoded is {layers}: {way_out}."
            )
        return layers if number is None else number

    def _temperatures(self, temperature: float | Sequence[float] | None) -> tuple[np.ndarray, ...]:
        """The further argument of the model's `sample`, if any."""
        if temperature is None:
            return ()
        layers = self.experiment.model.decoded_layers
        if not isinstance(self.experiment.model, DeepVAE):
            raise VaeJaxError(
                f"Temperatures are of a DeepVAE's layers, and {self.folder.path} is the run of "
                "another model: leave the temperature out."
            )
        factors = [temperature] if isinstance(temperature, int | float) else list(temperature)
        if len(factors) not in (1, layers) or min(factors) < 0:
            raise VaeJaxError(
                f"The temperatures are {factors}: give one number, or one for each of the "
                f"{layers} layers, none below zero."
            )
        return (np.broadcast_to(np.asarray(factors, np.float32), (layers,)),)

    # From arrays to programs, each compiled once for each size of batch

    def _given(self, images: object) -> np.ndarray:
        """Images that fit the model, bytes or float32."""
        shape = self.experiment.data.image_shape
        found = given.laid_out(images, shape)
        if found.dtype != np.uint8:
            found = given.images(found, shape, pixels_in_unit=True)
        if not len(found):
            raise VaeJaxError(f"x has the shape {found.shape}: give at least one image.")
        return np.asarray(found, np.uint8 if found.dtype == np.uint8 else np.float32)

    def _seen(self, images: Array, rows: Array) -> Array:
        """Images at these positions of those that were given, as the model sees them."""
        if images.dtype != jnp.uint8:
            return images
        keys = random.purpose(random.image_keys("given", rows), "protocol")
        return self.experiment.data.protocol.apply(images, keys)

    def _of_images(
        self,
        name: str | tuple[str, int],
        function: Callable[[VariableDict, Array, Array, Array | None], object],
        images: object,
        labels: Classes,
        seed: int = 0,
        decoded: int = 1,
    ) -> object:
        """A function of variables, images `[b, H, W, C]`, keys and classes, over all images."""
        x = self._given(images)
        y = self.classes(labels, len(x))
        purpose = name if isinstance(name, str) else name[0]

        def of_images(
            variables: VariableDict, seed: Array, images: Array, rows: Array, y: Array | None
        ) -> object:
            keys = random.purpose(random.image_keys("given", rows, seed), purpose)
            return function(variables, self._seen(images, rows), keys, y)

        def batch(rows: np.ndarray) -> tuple[np.ndarray | None, ...]:
            return x[rows], _rows(rows), None if y is None else y[rows]

        return self._mapped(name, of_images, (_seed(seed),), batch, len(x), decoded)

    def _mapped(
        self,
        name: Hashable,
        function: Callable[..., object],
        shared: tuple[object, ...],
        batch: Callable[[np.ndarray], tuple[np.ndarray | None, ...]],
        count: int,
        decoded: int = 1,
    ) -> object:
        """A function of the first seed's variables, of what is shared and of batches, for all."""
        key = name, parallel.num_devices()
        if key not in self._programs:
            floats = math.prod(self.experiment.data.image_shape) * decoded
            self._programs[key] = parallel.InBatches(function, floats)
        shared = self.seed_variables, *shared
        return self._programs[key](shared, batch, count, rounded=True)

    @cached_property
    def _programs(self) -> dict[Hashable, parallel.InBatches[object]]:
        return {}


def _seed(seed: int) -> np.ndarray:
    return np.asarray(seed, np.uint32)


def _rows(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.int32)


def _pictures(px: Distribution, seed: Array, rows: Array) -> Array:
    """Pictures `[b, H, W, C]`: means, or draws where these are the pictures."""
    if px.mean_is_picture:
        values = px.mean
    else:
        key = random.indexed(random.purpose(random.key(seed), "pixels"), 0)
        values = px.sample(random.indexed(key, rows))
    # The mean of a Gaussian that is not squashed can lie outside the range of a picture.
    return jnp.clip(values, 0.0, 1.0)
