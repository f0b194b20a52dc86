"""The run folder: what is in it, who may write to it, and how a run comes back from it.

experiment.json   what the run is: experiment file and arguments, data, seeds, versions, devices
metrics.jsonl     a line for every chunk of training steps and for every validation
checkpoints/      Orbax
figures/          PNG
summary.json      final metrics, step, params_sha256; written when the run is finished
evaluation.json   what `vae-jax evaluate` found
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from vae_jax import parallel, random
from vae_jax.checkpoint import Which
from vae_jax.data import SplitName
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import Experiment, Origin

PACKAGES = ("vae_jax", "jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write into a sentence.

    Raises:
        VaeJaxError: `path` cannot be written: no permission, no space, not a folder.
    """
    try:
        yield
    except OSError as error:
        raise VaeJaxError(f"{path} cannot be written: {error.strerror or error}.") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    with writing(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)


def git_commit() -> str | None:
    """The commit of the working folder, with "+changes" where files differ; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and the rules for them."""

    path: Path

    @property
    def record(self) -> Path:
        """experiment.json."""
        return self.path / "experiment.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """checkpoints/."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """figures/."""
        return self.path / "figures"

    @property
    def summary(self) -> Path:
        """summary.json."""
        return self.path / "summary.json"

    @property
    def evaluation(self) -> Path:
        """evaluation.json."""
        return self.path / "evaluation.json"

    def claim(self, experiment: Experiment, seed: int, num_seeds: int, origin: Origin | None):
        """Makes this folder the experiment's, or makes sure that it is.

        Raises:
            VaeJaxError: it is another experiment's, is used for something else, or cannot be
                written.
        """
        if not parallel.is_main_process():
            return
        identity = {
            "experiment": None
            if origin is None
            else {
                "arguments": origin.arguments,
                "code_sha256": origin.sha256,
            },
            "data": {
                "description": experiment.data.description,
                "fingerprint": experiment.data.fingerprint,
            },
            "seed": seed,
            "num_seeds": num_seeds,
            "num_steps": experiment.num_steps,
            "batch_size": experiment.batch_size,
        }
        identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        if self.record.exists():
            there, here = _flat(self.read_record()), _flat(identity)
            for name, value in here.items():
                if there.get(name) != value:
                    raise VaeJaxError(
                        f"{self.path} is the run of another experiment ({name} is "
                        f"{there.get(name)} there, {value} here): choose another --workdir."
                    )
            return
        with writing(self.path):
            unfinished = set(self.path.glob(f".{self.record.name}.*"))  # by a killed process
            if self.path.is_dir() and set(self.path.iterdir()) - unfinished:
                raise VaeJaxError(
                    f"{self.path} is not empty and not a run folder: choose another --workdir."
                )
            self.path.mkdir(parents=True, exist_ok=True)
        write_json(
            self.record,
            identity
            | {
                "file": None if origin is None else origin.file,
                "source": None if origin is None else origin.source,
                "git_commit": git_commit(),
                "devices": parallel.describe_devices(),
                "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
                | {"python": platform.python_version()},
                "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        )

    def write_summary(self, content: dict[str, Any]) -> None:
        """Writes summary.json."""
        if parallel.is_main_process():
            write_json(self.summary, content)

    def read_record(self) -> dict[str, Any]:
        """The content of experiment.json.

        Raises:
            VaeJaxError: there is none: this is no run folder.
        """
        try:
            return json.loads(self.record.read_text())
        except OSError as error:
            raise VaeJaxError(
                f"{self.path} is no run folder: it has no experiment.json."
            ) from error
        except ValueError as error:
            raise VaeJaxError(f"{self.record} is damaged: {error}.") from error

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl; non-finite numbers become null."""
        with writing(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps({name: jsonable(value) for name, value in line.items()}) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one cut off by a crash is left out."""
        lines = []
        if self.metrics.exists():
            for line in self.metrics.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    lines.append(json.loads(line))
        return lines

    def truncate_metrics(self, step: int) -> None:
        """Forgets what was logged after the step that training goes on from."""
        kept = [json.dumps(line) + "\n" for line in self.read_metrics() if line["step"] <= step]
        with writing(self.metrics):
            temporary = self.metrics.with_name(".metrics.jsonl")
            temporary.write_text("".join(kept))
            temporary.rename(self.metrics)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat = {}
    for name, value in tree.items():
        below = (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
        flat |= below
    return flat


def jsonable(value: Any) -> Any:
    """A number, or a list of one for each seed when there are several; null if not finite."""
    if isinstance(value, np.ndarray | np.generic | float):
        values = [float(v) if np.isfinite(v) else None for v in np.atleast_1d(value)]
        return values[0] if len(values) == 1 else values
    return value


@dataclass(frozen=True)
class Run:
    """A trained model with all that belongs to it.

    Attributes:
        folder: where it lives.
        experiment: what was trained.
        state: the training state, host arrays with a leading axis of seeds.
        checkpoint: which one `state` is.
    """

    folder: RunFolder
    experiment: Experiment
    state: Any
    checkpoint: Which

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables, `[S, ...]`: the parameters' running average where one was kept."""
        return self.state.variables

    @property
    def seed_variables(self) -> dict[str, Any]:
        """The first seed's variables, for `model.apply`."""
        return jax.tree.map(lambda leaf: leaf[0], self.variables)

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

    def metric(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps `[T]` at which a metric was logged, and its values `[T, S]`.

        Where nothing was finite, a value is nan.
        """
        lines = [line for line in self.folder.read_metrics() if name in line]
        values = np.array([line[name] for line in lines], dtype=float)
        return np.array([line["step"] for line in lines]), values.reshape(len(lines), -1)
