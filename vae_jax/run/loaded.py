"""A trained model with its variables and data, and checks of the user's arguments."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict
from jax import Array

from vae_jax import given, parallel, random
from vae_jax.checkpoint import Checkpoint
from vae_jax.data import SplitName
from vae_jax.data.datasets import shortened
from vae_jax.errors import Shown, VaeJaxError
from vae_jax.experiment import Experiment
from vae_jax.given import Index, checked
from vae_jax.interfaces import Model, Variables
from vae_jax.priors.standardized import Standardized
from vae_jax.run.arrays import check_alike, flattened
from vae_jax.run.batches import InBatches
from vae_jax.run.folder import RunFolder

Classes = Annotated[
    Sequence[str | int] | np.ndarray | Array | str | int | None,
    "classes by name or number, one for each image or one for all",
]
"""Classes of a conditional model."""


@dataclass(frozen=True, repr=False)
class Loaded(Shown):
    """A trained model with all that belongs to it: the base of `Run`, which adds its uses."""

    folder: RunFolder
    experiment: Experiment
    state: Any
    checkpoint: Checkpoint
    first: int = 0

    @property
    def shown(self) -> dict[str, str]:
        """A summary of the run in a few lines."""
        experiment, model = self.experiment, self.experiment.model
        latents = zip(model.posteriors, model.latent_shapes(self.seed_variables), strict=True)
        layers = [f"{type(q).__name__} {'x'.join(map(str, shape))}" for q, shape in latents]
        count = sum(leaf[0].size for leaf in jax.tree.leaves(self.variables["params"]))
        seeds, steps = len(self.state.step), int(self.state.step[0])
        summary = self.folder.read_summary() or {}
        scores = [
            f"{name.removeprefix('valid_')} {np.mean(value):.2f}"
            for name, value in summary.items()
            if name.startswith("valid_") and isinstance(value, float | list)
        ]
        return {
            "run": f"{self.folder.path}, {self.checkpoint} checkpoint",
            "trained": f"{steps:,} of {experiment.num_steps:,} steps"
            + (f", {seeds} seeds" if seeds > 1 else ""),
            "data": experiment.data.description,
            "model": f"{type(model).__name__}, {count:,} parameters",
            "latents": shortened(layers),
            "prior": type(model.prior).__name__,
            "likelihood": type(model.likelihood).__name__,
            "objective": repr(experiment.objective),
        } | ({"validation": f"{', '.join(scores)} nats"} if scores else {})

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables, `[S, ...]`; the running average of parameters if it was kept."""
        return self.state.variables

    @property
    def seed_variables(self) -> dict[str, Any]:
        """The first seed's variables, for `model.apply`."""
        return jax.tree.map(lambda leaf: leaf[0], self.variables)

    @checked
    def replica(self, index: Index) -> Self:
        """The run with the seed at position `index` alone, counted from 0.

        Raises:
            VaeJaxError: the run has fewer seeds.
        """
        if index >= (count := len(self.state.step)):
            raise VaeJaxError(
                f"index of replica is {index}, and {self.folder.path} was trained with "
                f"{count} seed{'s' * (count > 1)}: give {' or '.join(map(str, range(count)[-2:]))}."
            )
        state = jax.tree.map(lambda leaf: leaf[index : index + 1], self.state)
        return dataclasses.replace(self, state=state, first=self.first + index)

    def with_variables(self, variables: Variables) -> Self:
        """The run with other variables in its model, such as `load_variables` reads.

        Args:
            variables: those of one seed, or of all with a leading axis `[S, ...]`.

        Raises:
            VaeJaxError: their names or shapes are not those of this model.
        """
        arrays, own = flattened(variables), flattened(self.variables)
        single = {name: array[0] for name, array in own.items()}
        is_single = arrays.keys() & own.keys() and all(
            arrays[name].ndim < own[name].ndim for name in arrays.keys() & own.keys()
        )
        check_alike(arrays, single if is_single else own)
        run = self.replica(0) if is_single else self
        every = jax.tree.map(lambda leaf: np.asarray(leaf)[None] if is_single else leaf, variables)
        state = {name: tree for name, tree in every.items() if name != "params"}
        changed = run.state.replace(params=every["params"], ema_params=None, model_state=state)
        return dataclasses.replace(run, state=changed)

    # Its own data

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
                "to choose from: leave the label out, or train a conditional model (`vae-jax train "
                "folder --styles`, `vae-jax train conditional`; in Python labels="
                "LabelEmbedding(...))."
            )
        return names

    def find_label(self, label: str | int) -> int:
        """The number of the class `label`, a name or the number itself.

        Raises:
            VaeJaxError: the model is not conditional, or has no such class; the sentence names its
                classes.
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
        """The images `[n, H, W, C]` in `rows` of a split, as the model sees them.

        Raises:
            VaeJaxError: the split has no such rows.
        """
        images = self.experiment.data[split].images
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(images):
            raise VaeJaxError(
                f"The {split} split of {self.experiment.data.name} has {len(images)} images; rows "
                f"{rows.min()} to {rows.max()} were asked for."
            )
        keys = random.purpose(random.image_keys(split, rows), "protocol")
        return self.experiment.data.protocol.apply(jnp.asarray(images[rows]), keys)

    def labels(self, split: SplitName, rows: np.ndarray) -> np.ndarray | None:
        """The labels `[n]` of the images in `rows` of a split; None if the model takes none."""
        labels = self.experiment.data[split].labels
        return None if self.experiment.model.labels is None or labels is None else labels[rows]

    def observed(self, images: object) -> Array:
        """A user's images `[n, H, W, C]` as the model sees them.

        Args:
            images: bytes, which go through the data's protocol with separate noise, or floats,
                which are taken as its output.

        Raises:
            VaeJaxError: the images have another layout, shape, type or range than the model's.
        """
        found = self._given(images)
        return self._seen(jnp.asarray(found), jnp.arange(len(found)))

    def classes(self, labels: Classes, count: int, each_of: int | None = None) -> np.ndarray | None:
        """The numbers `[count]` of a user's classes.

        Args:
            labels: classes by name or number, one for each image or latent, or one for all.
            count: the number of images or latents.
            each_of: another allowed number of labels, which are then repeated in turn.

        Raises:
            VaeJaxError: the labels are no classes of the model, it has none, or it needs some.
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
        if len(y) not in (1, each_of, count):
            raise VaeJaxError(
                f"{len(y)} labels were given for {count} inputs: give one label for each, or one "
                "for all."
            )
        return np.resize(np.asarray(y, np.int32), count)

    def metric(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps `[T]` at which the metric `name` was logged, and its values `[T, S]`.

        A value is nan if nothing was finite.
        """
        steps, values = self.folder.metric(name)
        return steps, values[:, self.first : self.first + len(self.state.step)]

    def layers_or_refuse(self, name: str, number: int | None) -> int:
        """The number of layers for the argument `name`; None stands for all.

        Raises:
            VaeJaxError: the model has fewer layers, or decodes from one alone.
        """
        layers = self.experiment.model.decoded_layers
        if number is not None and not 1 <= number <= layers:
            way_out = f"take 1 to {layers}" if layers > 1 else "leave it out"
            raise VaeJaxError(
                f"{name} is {number}, and the number of layers from which pictures of "
                f"{self.folder.path} are decoded is {layers}: {way_out}."
            )
        return layers if number is None else number

    def temperatures(self, temperature: float | Sequence[float] | None) -> tuple[np.ndarray, ...]:
        """The arguments of `sample` for a `temperature`: that of a `DeepVAE`, or none.

        Raises:
            VaeJaxError: there is not one, or one for each layer, or one is below zero.
        """
        if temperature is None:
            return ()
        layers = self.experiment.model.decoded_layers
        factors = [temperature] if isinstance(temperature, int | float) else list(temperature)
        if len(factors) not in (1, layers) or min(factors) < 0:
            raise VaeJaxError(
                f"The temperatures are {factors}: give one number, or one for each of the "
                f"{layers} layers, none below zero."
            )
        return (np.broadcast_to(np.asarray(factors, np.float32), (layers,)),)

    def drawn_by(self, **settings: float | Sequence[float] | None) -> Model:
        """The model with `settings` of sampling from its prior; None keeps the prior's own.

        Raises:
            VaeJaxError: the prior has no such field, or no classes to be guided to.
        """
        model = self.experiment.model
        asked = {name: value for name, value in settings.items() if value is not None}
        if not asked:
            return model
        outer = model.prior
        prior = outer.prior if isinstance(outer, Standardized) else outer
        kind = type(prior).__name__
        family = "masked" if "codes" in prior.spaces else "diffusion"
        for name, value in asked.items():
            if name == "guidance" and (name not in prior.draws_by or prior.label_classes is None):
                raise VaeJaxError(
                    f"Guidance is towards the classes of a prior, and that of {self.folder.path} "
                    f"is {kind} without such classes: leave the guidance out, or fit one by "
                    f"`vae-jax fit-prior RUN --prior {family} --classes`."
                )
            if name not in prior.draws_by:
                raise VaeJaxError(
                    f"The prior of {self.folder.path} is {kind}, whose draws take no {name}: leave "
                    f"the {name} out."
                )
            if isinstance(value, Sequence):
                if len(value) != 1:
                    raise VaeJaxError(
                        f"The {name} of {kind} is {list(value)}: give one number, for all of z."
                    )
                asked[name] = value[0]
        prior = prior.clone(**asked)
        return model.clone(
            prior=outer.clone(prior=prior) if isinstance(outer, Standardized) else prior
        )

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
        """The user's images at positions `rows`, as the model sees them."""
        if images.dtype != jnp.uint8:
            return images
        keys = random.purpose(random.image_keys("given", rows), "protocol")
        return self.experiment.data.protocol.apply(images, keys)

    def of_images(
        self,
        name: str | tuple[str, int],
        function: Callable[[VariableDict, Array, Array, Array | None], object],
        images: object,
        labels: Classes,
        seed: int = 0,
        decoded: int = 1,
    ) -> object:
        """The results of a function for all of a user's images, batch by batch.

        Args:
            name: the name of the function's program, whose first part is the purpose of its noise.
            function: a function of variables, images `[b, H, W, C]`, keys and classes.
            images: the user's images, bytes or floats.
            labels: their classes in a conditional model.
            seed: the seed of the noise.
            decoded: the number of images that the function decodes for each.

        Returns:
            A tree of host arrays with an axis over the images.

        Raises:
            VaeJaxError: images or labels do not fit the model.
        """
        x = self._given(images)
        y = self.classes(labels, len(x))
        purpose = name if isinstance(name, str) else name[0]

        def of_images(
            variables: VariableDict, seed: Array, images: Array, rows: Array, y: Array | None
        ) -> object:
            keys = random.purpose(random.image_keys("given", rows, seed), purpose)
            return function(variables, self._seen(images, rows), keys, y)

        def batch(rows: np.ndarray) -> tuple[np.ndarray | None, ...]:
            return x[rows], as_rows(rows), None if y is None else y[rows]

        return self.mapped(name, of_images, (as_seed(seed),), batch, len(x), decoded)

    def mapped(
        self,
        name: Hashable,
        function: Callable[..., object],
        shared: tuple[object, ...],
        batch: Callable[[np.ndarray], tuple[np.ndarray | None, ...]],
        count: int,
        decoded: int = 1,
    ) -> object:
        """The results of a function for all examples, batch by batch.

        Args:
            name: the name of the function's program.
            function: a function of the first seed's variables, shared arrays and a batch.
            shared: arrays that all examples share.
            batch: a function from positions of examples to their arrays.
            count: the number of examples.
            decoded: the number of images that the function decodes for each.

        Returns:
            A tree of host arrays with an axis over the examples.
        """
        key = name, parallel.num_devices()
        if key not in self._programs:
            floats = math.prod(self.experiment.data.image_shape) * decoded
            self._programs[key] = InBatches(function, floats)
        shared = self.seed_variables, *shared
        return self._programs[key](shared, batch, count, rounded=True)

    @cached_property
    def _programs(self) -> dict[Hashable, InBatches[object]]:
        return {}


def as_seed(seed: int) -> np.ndarray:
    """The seed in the type that programs take."""
    return np.asarray(seed, np.uint32)


def as_rows(rows: np.ndarray) -> np.ndarray:
    """Rows in the type that programs take."""
    return rows.astype(np.int32)
