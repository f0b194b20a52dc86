"""The run folder: what is in it, who may write to it, and how a run comes back from it.

experiment.json   what the run is: experiment file and arguments, data, seeds, versions, devices
.experiment.json  a copy, for when that is lost or damaged
metrics.jsonl     a line for every chunk of training steps and for every validation
checkpoints/      Orbax
figures/          PNG
summary.json      final metrics, step, params_sha256; written when the run is finished
evaluation.json   what `vae-jax evaluate` found
.training.lock    held by the process that trains here
"""

import contextlib
import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from vae_jax import parallel, random, storage
from vae_jax.checkpoint import Which
from vae_jax.data import SplitName
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import Experiment, Origin

PACKAGES = ("vae_jax", "jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


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

    @property
    def record_copy(self) -> Path:
        """.experiment.json."""
        return self.path / ".experiment.json"

    @property
    def lock_file(self) -> Path:
        """.training.lock."""
        return self.path / ".training.lock"

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
        if not self.record.exists() and not self.record_copy.exists():
            self._create(identity | _circumstances(origin))
        there, here = _flat(self.read_record()), _flat(identity)
        for name, value in here.items():
            if there.get(name) != value:
                raise VaeJaxError(
                    f"{self.path} is the run of another experiment ({name} is "
                    f"{there.get(name)} there, {value} here): choose another --workdir."
                )

    def _create(self, content: dict[str, Any]) -> None:
        """Writes experiment.json into a new or empty folder, unless another process is first."""
        with storage.writing(self.path):
            found = set(self.path.iterdir()) if self.path.exists() else set()
            storage.make_folder(self.path)
        strangers = [path for path in found - {self.lock_file} if not storage.is_litter(path)]
        if strangers and not self.record.exists():
            what = (
                "has checkpoints but no experiment.json, which said what they are of: put it back, "
                "or"
                if self.checkpoints in strangers
                else "is not empty and not a run folder:"
            )
            raise VaeJaxError(f"{self.path} {what} choose another --workdir.")
        with storage.lock(self.lock_file, self._refusal):
            if not self.record.exists():
                storage.write_json(self.record, content)

    @property
    def _refusal(self) -> str:
        return (
            f"{self.path} is being trained in by {{holder}}: wait for its end, or choose another "
            "--workdir."
        )

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Keeps other processes from training here; released when this one ends, however it ends.

        Raises:
            VaeJaxError: another process trains here.
        """
        if not parallel.is_main_process():
            yield
            return
        with storage.lock(self.lock_file, self._refusal):
            storage.sweep(self.path)
            self._repair()
            yield

    def _repair(self) -> None:
        """Makes experiment.json and its copy two good files, of one that is."""
        for path, other in ((self.record, self.record_copy), (self.record_copy, self.record)):
            try:
                _read_record(path)
            except storage.DamagedError:
                if path.exists():
                    path.rename(storage.free_name(path.with_name("experiment.damaged.json")))
                storage.write_json(path, _read_record(other))

    def write_summary(self, content: dict[str, Any]) -> None:
        """Writes summary.json."""
        if parallel.is_main_process():
            storage.write_json(self.summary, content)

    def read_summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None where there is none, or a damaged one."""
        with contextlib.suppress(storage.DamagedError):
            match summary := storage.read_json(self.summary):
                case {"step": int(), "params_sha256": str()}:
                    return summary
        return None

    def read_record(self) -> dict[str, Any]:
        """The content of experiment.json or, where that is lost or damaged, of its copy.

        Raises:
            VaeJaxError: there is neither: this is no run folder; or both are damaged.
        """
        if not self.record.exists() and not self.record_copy.exists():
            raise VaeJaxError(f"{self.path} is no run folder: it has no experiment.json.")
        try:
            return _read_record(self.record)
        except storage.DamagedError as error:
            try:
                record = _read_record(self.record_copy)
            except storage.DamagedError:
                raise VaeJaxError(
                    f"{error} Put a good copy back, or choose another --workdir."
                ) from error
            print(f"{error} Its copy {self.record_copy.name} is used.", file=sys.stderr)
            return record

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl; non-finite numbers become null."""
        content = {name: jsonable(value) for name, value in line.items()}
        storage.append_line(self.metrics, content)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are whole: a step, and numbers by name."""
        return [line for line in storage.read_lines(self.metrics) if _is_of_metrics(line)]

    def truncate_metrics(self, step: int) -> None:
        """Forgets what was logged after the step that training goes on from."""
        kept = [json.dumps(line) + "\n" for line in self.read_metrics() if line["step"] <= step]
        with storage.writing(self.metrics), storage.whole_file(self.metrics) as partial:
            partial.write_text("".join(kept))

    def append_evaluation(self, entry: dict[str, Any]) -> None:
        """Adds an entry to evaluation.json; those of several processes are all kept."""
        storage.append_entry(self.evaluation, entry)


def _circumstances(origin: Origin | None) -> dict[str, Any]:
    """What experiment.json says of a run beside its identity."""
    return {
        "file": None if origin is None else origin.file,
        "source": None if origin is None else origin.source,
        "git_commit": git_commit(),
        "devices": parallel.describe_devices(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _read_record(path: Path) -> dict[str, Any]:
    """An experiment.json whose values that a run comes back from have their types.

    Raises:
        DamagedError: it is damaged.
    """
    match record := storage.read_json(path):
        case {
            "experiment": {"arguments": dict()} | None,
            "data": {"fingerprint": str()},
            "file": str() | None,
            "source": str() | None,
            "num_seeds": int(),
        }:
            return record
    raise storage.DamagedError(f"{path} is damaged (an entry is missing or of another type).")


def _is_of_metrics(line: dict[str, Any]) -> bool:
    def is_number(value: Any) -> bool:
        return value is None or isinstance(value, int | float)

    values = [
        each for value in line.values() for each in (value if isinstance(value, list) else [value])
    ]
    return isinstance(line.get("step"), int) and all(map(is_number, values))


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
