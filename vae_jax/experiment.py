"""The Experiment: everything that defines a run but its seed, and the files that define them."""

import ast
import copy
import hashlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from vae_jax.compatibility import check, check_accumulation
from vae_jax.data import Data
from vae_jax.data.augment import Augmentation, check_augmentations
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Model, Objective


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A data set, a model, an objective and how they are trained.

    Attributes:
        data: images with their protocol.
        model: returns Terms.
        objective: from Terms to a loss.
        augment: what training, and never evaluation, does to each image, in this order.
        optimizer: optax transformation, with the schedule and the gradient clipping in it.
        num_steps: optimizer steps in all.
        batch_size: global batch, over all devices.
        accumulate: parts that a device takes its share of a batch in, one after the other, for
            batches that its memory does not hold at once: the same gradients.
        compute_dtype: of encoders and decoders in training, e.g. `jnp.bfloat16`; parameters,
            densities and evaluation are float32 all the same.
        remat: compute each block of encoders and decoders again in the backward pass, for deep
            networks whose layers' outputs the memory does not hold: the same gradients.
        ema_decay: of an average of the parameters that evaluation then uses; None keeps none.
        shuffle: visit the training images in a new order in each epoch, or always as they stand.
        log_every: steps in one scan on the device, and between two lines of metrics.
        checkpoint_every: steps between validations and checkpoints; a multiple of `log_every`.
        keep_checkpoints: the latest so many are kept, and the best by validation.
        max_nonfinite: training stops after so many skipped steps in a row.

    Raises:
        VaeJaxError: the parts, the objective and the data do not fit, or a number makes no sense.
    """

    data: Data
    model: Model
    objective: Objective
    augment: Sequence[Augmentation] = ()
    optimizer: optax.GradientTransformation
    num_steps: int
    batch_size: int = 128
    accumulate: int = 1
    compute_dtype: DTypeLike = jnp.float32
    remat: bool = False
    ema_decay: float | None = None
    shuffle: bool = True
    log_every: int = 100
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    max_nonfinite: int = 100

    def __post_init__(self):
        counts = ("num_steps", "batch_size", "accumulate", "log_every", "keep_checkpoints")
        for name in (*counts, "max_nonfinite"):
            if getattr(self, name) < 1:
                raise VaeJaxError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise VaeJaxError(f"ema_decay is {self.ema_decay}; it must be in [0, 1), or None.")
        if self.checkpoint_every < 1 or self.checkpoint_every % self.log_every:
            raise VaeJaxError(
                f"checkpoint_every ({self.checkpoint_every}) must be a positive multiple of "
                f"log_every ({self.log_every})."
            )
        if not self.model.image_shape:
            model = self.model.clone(image_shape=self.data.image_shape)
            object.__setattr__(self, "model", model)
        if self.model.image_shape != self.data.image_shape:
            raise VaeJaxError(
                f"The model is for images of shape {self.model.image_shape}, {self.data.name} has "
                f"{self.data.image_shape}: leave image_shape out, and the data's is taken."
            )
        check_augmentations(self.augment, self.data)
        check(self.model, self.objective, self.data)
        if self.accumulate > 1:
            check_accumulation(self.model, self.objective)

    def with_model(self, model: Model) -> "Experiment":
        """The same with another model, to sample and evaluate: the objective may not suit it."""
        other = copy.copy(self)
        object.__setattr__(other, "model", model)
        return other


@dataclass(frozen=True)
class Origin:
    """The file and the arguments that an experiment was made from, enough to make it again.

    Attributes:
        file: path of the experiment file, for the reader.
        source: its text.
        arguments: of its function `experiment`.
    """

    file: str
    source: str
    arguments: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of the code: comments, docstrings and layout may change while a run goes on."""
        tree = ast.parse(self.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                is_docstring = ast.get_docstring(node) is not None
                node.body = node.body[is_docstring:]
        return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()

    def make(self) -> Experiment:
        """Runs the file's `experiment` function with the arguments.

        Raises:
            VaeJaxError: they make no experiment.
        """
        try:
            made = load_module(self.file, self.source).experiment(**self.arguments)
        except ValueError as error:
            raise VaeJaxError(f"These arguments do not suit {self.file}: {error}") from error
        if not isinstance(made, Experiment):
            raise VaeJaxError(
                f"`experiment` in {self.file} returned {made!r}: let it return an Experiment."
            )
        return made


def load_module(file: str, source: str) -> ModuleType:
    """An experiment file as a module.

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
    function: Callable | None = getattr(module, "experiment", None)
    if not callable(function) or any(
        parameter.kind is not parameter.KEYWORD_ONLY
        for parameter in inspect.signature(function).parameters.values()
    ):
        raise VaeJaxError(
            f"The experiment file {file} must define `def experiment(*, ...) -> Experiment` with "
            "keyword-only arguments."
        )
    return module


def read_module(file: Path) -> tuple[str, ModuleType]:
    """The source of an experiment file, and its module.

    Raises:
        VaeJaxError: it is not there, or as for `load_module`.
    """
    try:
        source = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise VaeJaxError(f"The experiment file {file} cannot be read: {error}.") from error
    return source, load_module(str(file), source)
