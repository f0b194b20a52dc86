"""The Experiment, everything that defines a run except its seed; and files that define one."""

import ast
import copy
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Never, cast

import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jax.typing import DTypeLike
from typing_extensions import override

from vae_jax import storage
from vae_jax.compatibility import check, check_accumulation, check_batch, check_moved
from vae_jax.data import Data
from vae_jax.data.augment import Augmentation, check_augmentations
from vae_jax.errors import VaeJaxError
from vae_jax.given import Checked, Count, Decay, Positive
from vae_jax.identity import Json, NotImportableError, describe, made_from
from vae_jax.interfaces import Model, Objective
from vae_jax.objectives.perceptual import learning_from
from vae_jax.optimizers import Optimizer


def _computes(dtype: object) -> bool:
    """Whether networks can compute in `dtype`."""
    try:
        found = jnp.dtype(cast(DTypeLike, dtype))
    except TypeError:
        return False
    # No float8, and nothing that JAX turns into another type, such as float64 without x64.
    is_float = jnp.issubdtype(found, jnp.floating) and found.itemsize > 1
    return is_float and dtypes.canonicalize_dtype(found) == found


@dataclass(frozen=True, kw_only=True)
class Experiment(Checked):
    """A data set, a model, an objective and the settings of training.

    Attributes:
        data: images with their protocol.
        model: the model; if its `image_shape` is left out, it is that of the data.
        objective: the objective, from the model's Terms to a loss.
        augment: the augmentations that training, and never evaluation, applies to each image, in
            this order.
        optimizer: an optax transformation, which includes the schedule and gradient clipping.
        num_steps: the number of optimizer steps in all.
        batch_size: the number of images in a batch, over all devices.
        accumulate: the number of parts into which a device cuts its share of a batch, to process
            them in turn if its memory does not hold them at once. Gradients are the same.
        compute_dtype: the type of float in which training computes encoders and decoders, such as
            `jnp.bfloat16`; parameters, densities and evaluation remain float32.
        remat: whether each block of encoders and decoders is computed again in the backward pass,
            for deep networks whose layers' outputs do not fit the memory; or a policy of
            `jax.checkpoint_policies` for the results to keep. Gradients are the same.
        ema_decay: the decay of a running average of the parameters, which evaluation uses; None
            keeps none.
        shuffle: whether the training images are visited in a new order in each epoch, or always in
            the order of the data.
        log_every: the number of steps between two lines of metrics, and the largest number in one
            scan on the devices; a scan that would take longer than a few seconds has fewer.
        checkpoint_every: the number of steps between checkpoints, a multiple of `log_every`.
        validate_every: the number of steps between validations, a multiple of `log_every`; None
            validates at each checkpoint. The best checkpoint is among those with a validation.
        validate_images: the number of validation images, evenly spaced over their split; None takes
            all.
        patience: the number of validations in a row without an improvement after which training
            ends, with the best state among the checkpoints; None trains to the last step. Replicas
            end together, by the mean of their validations.
        keep_checkpoints: the number of latest checkpoints that are kept, besides the best by
            validation.
        skip_above: the norm of the gradient, of a loss in nats per image, above which a step is
            skipped, as deep hierarchies need (Child 2021, whose loss and limit are per dimension);
            None skips only steps that are not finite.
        max_nonfinite: the number of steps skipped in a row, whether not finite or because of
            `skip_above`, after which training stops.
        start: the folder of a finished run whose parameters are the initial ones, relative to the
            parent of the run's own folder; the model and the seeds are the same. None begins with
            random ones.

    Raises:
        VaeJaxError: the parts, the objective and the data do not fit together, or a number is out
            of range.
    """

    data: Annotated[Data, "data, such as load('mnist') or Data.from_arrays(...)"]
    model: Annotated[Model, "a model, such as VAE(...)"]
    objective: Annotated[Objective, "an objective, such as ELBO()"]
    augment: Annotated[
        Sequence[Augmentation], "a tuple of augmentations, such as (HorizontalFlip(),)"
    ] = ()
    optimizer: Optimizer
    num_steps: Count
    batch_size: Count = 128
    accumulate: Count = 1
    compute_dtype: Annotated[
        DTypeLike, _computes, "a type of float to compute in, such as jnp.bfloat16"
    ] = jnp.float32
    remat: bool | Callable[..., bool] = False
    ema_decay: Decay | None = None
    shuffle: bool = True
    log_every: Count = 100
    checkpoint_every: Count = 1000
    validate_every: Count | None = None
    validate_images: Count | None = None
    patience: Count | None = None
    keep_checkpoints: Count = 2
    skip_above: Positive | None = None
    max_nonfinite: Count = 100
    start: Annotated[str | None, "the folder of a run, in words"] = None

    @override
    def __post_init__(self):
        super().__post_init__()
        for name in ("checkpoint_every", "validate_every"):
            if (every := getattr(self, name)) and every % self.log_every:
                raise VaeJaxError(
                    f"{name} of Experiment is {every}, no multiple of log_every, "
                    f"{self.log_every}: give one."
                )
        if (self.validate_images or 0) > (count := len(self.data.valid)):
            raise VaeJaxError(
                f"validate_images of Experiment is {self.validate_images}, and the validation "
                f"split of {self.data.name} has {count} images: give no more, or leave it out."
            )
        if self.patience is not None and count == 0:
            raise VaeJaxError(
                f"patience of Experiment counts validations, and {self.data.name} has no "
                "validation split: leave it out, or load the data with one."
            )
        if not self.model.image_shape:
            model = self.model.clone(image_shape=self.data.image_shape)
            object.__setattr__(self, "model", model)
        if self.model.image_shape != self.data.image_shape:
            raise VaeJaxError(
                f"The model is for images of shape {self.model.image_shape}, {self.data.name} has "
                f"{self.data.image_shape}: leave image_shape out, and the data's is taken."
            )
        objective = learning_from(self.objective, self.data.train)
        object.__setattr__(self, "objective", objective)
        check_augmentations(self.augment, self.data)
        check_moved(self.model, self.augment)
        check(self.model, self.objective, self.data)
        check_batch(self.objective, self.batch_size)
        if self.accumulate > 1:
            check_accumulation(self.model, self.objective)

    @property
    def description(self) -> dict[str, Json]:
        """The identity of the experiment in JSON, described from its objects."""
        class_names = self.data.class_names
        data: dict[str, Json] = {
            "name": self.data.name,
            "class_names": None if class_names is None else list(class_names),
            "description": self.data.description,
            "fingerprint": self.data.fingerprint,
            "protocol": describe(self.data.protocol),
            "source": describe(self.data.source),
        }
        names = [field.name for field in dataclasses.fields(self) if field.name != "data"]
        found: dict[str, Json] = {"data": data}
        for name in names:
            value: object = getattr(self, name)
            found[name] = describe(value.item() if isinstance(value, np.generic) else value)
        return found | {"compute_dtype": str(jnp.dtype(self.compute_dtype))}

    def with_model(self, model: Model) -> "Experiment":
        """A copy with another `model`, to sample and evaluate: the objective may not suit it."""
        other = copy.copy(self)
        object.__setattr__(other, "model", model)
        return other


# Fields that do not affect a run's result, except for rounding.
INCIDENTAL = (
    "accumulate",
    "remat",
    "log_every",
    "checkpoint_every",
    "validate_every",
    "validate_images",
    "keep_checkpoints",
    "max_nonfinite",
)


def load_again(source: Json) -> Data:
    """The data of the description `source`, loaded by the call that it names.

    Raises:
        NotImportableError: the data were given as arrays.
    """
    call = made_from(source, lambda _: None)
    if not isinstance(call, functools.partial):
        raise NotImportableError("the arrays of its data")
    return cast("functools.partial[Data]", call)()


def experiment_of(description: Mapping[str, Json], data: Data) -> Experiment:
    """The experiment of a description, with parts imported by their names and these `data`.

    Raises:
        NotImportableError: a part cannot be imported.
    """

    def array_of(about: dict[str, Json]) -> np.ndarray | None:
        """An array in the model: images of the data."""
        for split in (data.train, data.valid, data.test):
            match about["shape"]:
                case [int(count), *_] if describe(split.images[:count]) == about:
                    return split.images[:count]
        return None

    names = [field.name for field in dataclasses.fields(Experiment) if field.name != "data"]
    found = [name for name in names if name in description]  # others are newer than the description
    parts = {name: made_from(description[name], array_of) for name in found}
    return Experiment(data=data, **cast("dict[str, Never]", parts))


@dataclass(frozen=True)
class Origin:
    """The file and the arguments of an experiment, from which it can be remade.

    Attributes:
        file: the path of the experiment file, for readers.
        source: the text of the file.
        arguments: the arguments of its function `experiment`.
    """

    file: str
    source: str
    arguments: dict[str, object]

    def make(self) -> Experiment:
        """Make the experiment, by the file's function `experiment` with the arguments.

        Raises:
            VaeJaxError: the file cannot be run, or its function does not take the arguments or
                returns no Experiment.
        """
        function = load_module(self.file, self.source).experiment
        taken = inspect.signature(function)
        try:
            taken.bind(**self.arguments)
        except TypeError as error:
            raise VaeJaxError(
                f"These arguments do not suit {self.file}: {error}, and it takes "
                f"{', '.join(taken.parameters) or 'none'}."
            ) from error
        try:
            made = function(**self.arguments)
        except ValueError as error:
            raise VaeJaxError(f"These arguments do not suit {self.file}: {error}") from error
        if not isinstance(made, Experiment):
            raise VaeJaxError(
                f"`experiment` in {self.file} returned {made!r}: let it return an Experiment."
            )
        return made


def load_module(file: str, source: str) -> ModuleType:
    """Run an experiment file as a module.

    Args:
        file: the path of the file, for messages.
        source: the text of the file.

    Raises:
        VaeJaxError: the file cannot be run, or does not define `experiment(*, ...)`.
    """
    module = ModuleType(f"experiment_file_{Path(file).stem}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # where dataclasses look up annotations
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except (ImportError, SyntaxError, NameError, ValueError) as error:
        raise VaeJaxError(f"The experiment file {file} cannot be run: {error}.") from error
    function = getattr(module, "experiment", None)
    if not callable(function) or any(
        parameter.kind is not parameter.KEYWORD_ONLY
        for parameter in inspect.signature(function).parameters.values()
    ):
        raise VaeJaxError(
            f"The experiment file {file} must define `def experiment(*, ...) -> Experiment` with "
            "keyword-only arguments."
        )
    return module


def shipped() -> dict[str, Path]:
    """The experiment files that come with the package, by name: in its wheel, or in its clone."""
    package = Path(__file__).parent
    in_wheel = package / "experiments"
    folder = in_wheel if in_wheel.is_dir() else package.parent / "experiments"
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def summaries() -> dict[str, str]:
    """The first lines of these files' docstrings, by name."""
    docs = {
        name: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        for name, file in shipped().items()
    }
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def find_file(name: str) -> Path:
    """The experiment file at the path `name`, or the package's own file of that name.

    Raises:
        VaeJaxError: there is no such file, here or in the package.
    """
    path, files = Path(name), shipped()
    if path.is_file() or path.suffix or (path.exists() and name not in files):
        return path
    if name not in files:
        raise VaeJaxError(
            f"There is no file {name}, and no experiment of this name comes with vae_jax: give the "
            f"path of a file, or one of {', '.join(files)}."
        )
    return files[name]


def copy_file(name: str, folder: Path) -> Path:
    """Copy the experiment file `name` of the package into a folder.

    Returns:
        The path of the copy.

    Raises:
        VaeJaxError: there is no such experiment, the folder has a file of its name, or it cannot be
            written.
    """
    source = find_file(name)
    copied = folder / source.name
    if copied.exists():
        raise VaeJaxError(f"{copied} is there already: copy into another folder, or rename it.")
    with storage.writing(copied), storage.whole_file(copied) as partial:
        partial.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return copied


def read_module(file: Path) -> tuple[str, ModuleType]:
    """Read an experiment file.

    Args:
        file: the path of the file.

    Returns:
        Its source, and its module.

    Raises:
        VaeJaxError: the file cannot be read, or as in `load_module`.
    """
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VaeJaxError(f"The experiment file {file} cannot be read: {error}.") from error
    return source, load_module(str(file), source)
