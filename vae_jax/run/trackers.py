"""Trackers of experiments: callbacks of training that pass its metrics and figures on.

Each opens its output at its first call and flushes it at every call. Its library is an extra of
this package: `pip install "vae_jax[tensorboard]"`, `[wandb]` or `[mlflow]`.
"""

import contextlib
import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from vae_jax.errors import VaeJaxError
from vae_jax.run.folder import RunFolder
from vae_jax.run.same import Record

Values = Mapping[str, float | Path]
"""Metrics, floats by name, or figures, the paths of PNG files by name."""
Callback = Callable[[int, Values], None]
"""A function that `train` calls with the step and its new values."""


def by_name(row: Mapping[str, np.ndarray], seeds: np.ndarray) -> dict[str, float]:
    """Metrics `[S]` in `row` as floats by name, such as `loss`, the mean over seeds; of several
    `seeds` also `loss/seed_0` and so on."""
    values: dict[str, float] = {}
    for name, each in row.items():
        values[name] = float(each.mean())
        if len(seeds) > 1:
            values |= {f"{name}/seed_{seed}": float(v) for seed, v in zip(seeds, each, strict=True)}
    return values


def _library(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise VaeJaxError(
            f'--{extra} needs {name}, which is not installed: pip install "vae_jax[{extra}]".'
        ) from error


def _identity(folder: Path) -> tuple[str, Record]:
    """An identifier of the run in a folder, which is the same after resuming, and its arguments."""
    record = RunFolder(folder).read_record()
    checksum = hashlib.sha256(json.dumps([folder.name, record], sort_keys=True).encode())
    about = record["experiment"]
    return checksum.hexdigest()[:16], {} if about is None else about["arguments"]


class TensorBoard:
    """Event files in `tensorboard/` of the run folder, for `tensorboard --logdir runs`.

    Args:
        folder: the run folder.

    Example:
        >>> train(experiment, "runs/mine", callback=TensorBoard("runs/mine"))
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder) / "tensorboard"
        self._library = _library("tensorboardX", "tensorboard")

    @cached_property
    def _writer(self):
        name = f".{time.time_ns()}"  # or a run resumed at once would overwrite its first file
        return self._library.SummaryWriter(str(self._folder), filename_suffix=name)

    def __call__(self, step: int, values: Values) -> None:
        """Write the `values` of a `step`: scalars and images."""
        for name, value in values.items():
            if isinstance(value, Path):
                pixels = np.asarray(Image.open(value).convert("RGB"))
                self._writer.add_image(name, pixels, step, dataformats="HWC")
            else:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file, if there is one."""
        if "_writer" in vars(self):
            self._writer.close()


class WandB:
    """A run of Weights & Biases, located by WANDB_PROJECT, WANDB_MODE=offline and so on.

    Training that resumes adds to the run that it began.

    Args:
        folder: the run folder, which holds its files in `wandb/`.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._library = _library("wandb", "wandb")

    @cached_property
    def _run(self):
        name, arguments = _identity(self._folder)
        return self._library.init(
            id=name,
            resume="allow",
            name=self._folder.name,
            dir=str(self._folder),
            config=arguments,
        )

    def __call__(self, step: int, values: Values) -> None:
        """Log the `values` of a `step`: scalars and images."""
        image = self._library.Image
        shown = {n: image(str(v)) if isinstance(v, Path) else v for n, v in values.items()}
        self._run.log(shown, step=step)

    def close(self) -> None:
        """Finish the run, if it was begun."""
        if "_run" in vars(self):
            self._run.finish()


class MLflow:
    """A run of MLflow, located by MLFLOW_TRACKING_URI (a server) and MLFLOW_EXPERIMENT_NAME.

    Training that resumes finds the run that it began by a tag, `vae_jax`.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        library = _library("mlflow", "mlflow")
        try:
            self._client = library.MlflowClient()
            self._client.search_experiments(max_results=1)
        except Exception as error:
            raise VaeJaxError(
                "MLflow has no place for runs: set MLFLOW_TRACKING_URI to a server's address "
                f"({str(error).strip()})."
            ) from error

    @cached_property
    def _run(self) -> str:
        name, arguments = _identity(self._folder)
        group = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        known = self._client.get_experiment_by_name(group)
        number = known.experiment_id if known else self._client.create_experiment(group)
        for run in self._client.search_runs([number], f"tags.vae_jax = '{name}'"):
            return run.info.run_id
        run = self._client.create_run(number, tags={"vae_jax": name}, run_name=self._folder.name)
        for argument, value in arguments.items():
            self._client.log_param(run.info.run_id, argument, value)
        return run.info.run_id

    def __call__(self, step: int, values: Values) -> None:
        """Log the `values` of a `step`: metrics, and figures as artifacts."""
        for name, value in values.items():
            if isinstance(value, Path):
                self._client.log_artifact(self._run, str(value), str(Path(name).parent))
            else:
                self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        """Mark the run as finished, if it was begun."""
        if "_run" in vars(self):
            self._client.set_terminated(self._run)


Tracker = TensorBoard | WandB | MLflow


class Trackers(contextlib.ExitStack):
    """Trackers of one run or of several, closed together.

    Args:
        kinds: their classes.
    """

    def __init__(self, kinds: Sequence[type[Tracker]]):
        super().__init__()
        self._kinds = kinds
        self._of: dict[Path, list[Tracker]] = {}

    def of(self, folder: Path) -> Callback:
        """The callback for the run in `folder`."""
        if folder not in self._of:
            self._of[folder] = [kind(folder) for kind in self._kinds]
            for tracker in self._of[folder]:
                self.callback(tracker.close)

        def call(step: int, values: Values) -> None:
            for tracker in self._of[folder]:
                tracker(step, values)

        return call
