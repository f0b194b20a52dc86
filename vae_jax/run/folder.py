"""The run folder: its files, its one writer, and the restoration of a run.

experiment.json   the run's identity, described from its objects; seeds, flags, versions, devices
.experiment.json  a copy, for when experiment.json is lost or damaged
metrics.jsonl     a line for every `log_every` steps and for every validation
checkpoints/      Orbax
figures/          PNG, and report.html
summary.json      final metrics, step, params_sha256; written when the run is finished
evaluation.json   the results of `vae-jax evaluate`
data/             the images of a run from Python whose data were arrays
priors/ features/ fits and features of sampling and scoring, made once
.unlogged.npz     metrics since the last line, of a run that was told to stop between two lines
.training.lock    held by the process that trains here

The identity of a run is everything that changes its result: two runs are the same if their
descriptions are, whether they come from Python or from a file.
"""

import contextlib
import json
import os
import platform
import stat
import zipfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax import parallel, storage
from vae_jax.checkpoint import Checkpoint, Checkpoints, State
from vae_jax.data import Data
from vae_jax.data.saved_arrays import keep, kept
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import (
    Experiment,
    Origin,
    experiment_of,
    load_again,
    load_module,
)
from vae_jax.identity import ABSENT, NotImportableError, differences
from vae_jax.interfaces import Metrics
from vae_jax.progress import say
from vae_jax.run.arrays import check_suffix, flattened, save_arrays
from vae_jax.run.record import (
    circumstances,
    file_of,
    python_of,
    read_record_file,
    versions,
    what_is_run,
)
from vae_jax.run.same import LENGTH, Record, compute_the_same, identifying, is_longer

UP_TO = "up to step"  # the name of the step, beside metrics that wait for their line


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and the rules for them."""

    path: Path

    def __post_init__(self):
        storage.check_local(self.path)

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
    def data(self) -> Path:
        """data/."""
        return self.path / "data"

    @property
    def record_copy(self) -> Path:
        """.experiment.json."""
        return self.path / ".experiment.json"

    @property
    def unlogged(self) -> Path:
        """.unlogged.npz."""
        return self.path / ".unlogged.npz"

    @property
    def lock_file(self) -> Path:
        """.training.lock."""
        return self.path / ".training.lock"

    def claim(self, experiment: Experiment, seed: int, num_seeds: int, origin: Origin | None):
        """Claim the folder for an experiment, or check that it is its own.

        Args:
            experiment: the experiment.
            seed: the seed of the first replica.
            num_seeds: the number of replicas.
            origin: the experiment's file and arguments, if it has any.

        Raises:
            VaeJaxError: it is another experiment's, holds other files, or cannot be written.
        """
        if not parallel.is_main_process():
            return
        storage.check_kinds([self.checkpoints, self.figures], [self.metrics, self.summary])
        content = what_is_run(experiment, seed, num_seeds, origin)
        if not self.record.exists() and not self.record_copy.exists():
            self._create(content | circumstances(origin))
        record = self.read_record()
        if "model" not in record:
            raise VaeJaxError(
                f"{self.path} was begun by a version of vae_jax that did not note what its model "
                "is: choose another --workdir."
            )
        until = content["patience"]
        found = list(differences(identifying(record, until), identifying(content, until)))
        if python_of(record) != platform.python_version_tuple()[:2]:  # with different bytecode
            found = [each for each in found if not each.of_code]
        rest = {each.name.partition(".")[0] for each in found if each.name not in LENGTH}
        longer = is_longer(record, content) and rest <= {"optimizer", "objective"}
        if longer and self._steps_are_those_of(experiment, record, rest):
            self._prolong(record | content | file_of(origin))
        elif found:
            one, other = ({"experiment": each["experiment"]} for each in (record, content))
            files = record["experiment"] and content["experiment"]  # their arguments say it best
            arguments = [*differences(one, other)] if files else []
            if is_longer(record, content) and not longer:  # length alone does not make another run
                found = [each for each in found if each.name not in LENGTH]
                arguments = [each for each in arguments if not each.name.endswith(LENGTH)]
            clear = [each for each in found if ABSENT not in each]
            why = ", on which its steps depend" if longer and len(arguments) < 2 else ""
            raise VaeJaxError(
                f"{self.path} is the run of another experiment "
                f"({[*arguments, *clear, *found][0]}{why}): choose another --workdir."
            )

    def _steps_are_those_of(self, experiment: Experiment, record: Record, rest: set[str]) -> bool:
        """Whether a record's run takes the steps of an experiment, whatever their description."""
        try:
            return not rest or compute_the_same(
                self.stored_experiment(record, trust=False, data=experiment.data), experiment
            )
        except VaeJaxError:
            return False

    def _prolong(self, content: Record) -> None:
        """Write the record of a run that now trains for longer."""
        with storage.lock(self.lock_file, self._refusal):
            storage.write_json(self.record, content)
            storage.write_json(self.record_copy, content)

    def other_versions(self) -> str | None:
        """A sentence if the run began with other versions than the present ones, else None."""
        began, now = self.read_record().get("versions"), versions()
        every = differences(began, json.loads(json.dumps(now)))
        # Absent: the record predates the entry.
        found = [str(each) for each in every if each.there != ABSENT]
        if found:
            return (
                f"{self.path} began with other versions ({', '.join(found)}): its numbers are not "
                "those of one uninterrupted run."
            )

    def check_model(self, record: Record, experiment: Experiment) -> None:
        """Check that an `experiment` has the data and the model of a run's `record`.

        Raises:
            VaeJaxError: the data or the model have changed since training.
        """
        if experiment.data.fingerprint != record["data"]["fingerprint"]:
            raise VaeJaxError(
                f"{self.path} was trained on other data than {experiment.data.name} has now "
                "(the fingerprints differ)."
            )
        here = json.loads(json.dumps(experiment.description["model"]))
        for each in differences(record.get("model"), here):
            if ABSENT not in each:  # as by another version of vae_jax
                raise VaeJaxError(
                    f"{self.path} was trained with another model ({each}): open it with the "
                    "experiment, and the version of vae_jax, that it was trained with."
                )

    def check_trust(self, trust: bool) -> None:
        """Check that code in experiment.json runs only with the user's consent, `trust`.

        Raises:
            VaeJaxError: another account wrote here, or any may, and there is no consent.
        """
        for path in (self.path, self.record, self.record_copy):
            if trust or not path.exists():
                continue
            status = path.stat()
            if status.st_uid != os.geteuid():
                whose = f"belongs to another account (number {status.st_uid})"
            elif path != self.path and status.st_mode & stat.S_IWOTH:
                whose = "can be written by every account"
            else:
                continue
            raise VaeJaxError(
                f"{path} {whose}, and opening the run executes the Python code that "
                f"{self.record.name} names: read that, then give --trust (in Python trust=True), "
                "or take the parameters without any code by `vae-jax export`."
            )

    def stored_experiment(
        self, record: Record, trust: bool, data: Data | None = None
    ) -> Experiment:
        """The experiment that a record names, made by running its code.

        Args:
            record: the record.
            trust: whether the user consents to this.
            data: the data of a run from Python, if they are at hand.

        Raises:
            VaeJaxError: the code needs the user's consent, or a part cannot be imported.
        """
        self.check_trust(trust)
        if record["source"] is not None:
            origin = Origin(record["file"], record["source"], record["experiment"]["arguments"])
            try:
                return origin.make()
            except (VaeJaxError, OSError) as error:
                load_module(origin.file, origin.source)  # whose parts can then be imported
                try:
                    return self._without_data(record, error)
                except (NotImportableError, KeyError, TypeError, ValueError, AttributeError):
                    raise error from None
        try:
            data = data or kept(self.data)
            try:
                data = data or load_again(record["data"].get("source"))
            except (NotImportableError, VaeJaxError, OSError) as error:
                return self._without_data(record, error)
            return experiment_of(record, data)
        except NotImportableError as error:
            reason = f"{error} cannot be imported"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"its parts are different in this version of vae_jax, {error}"
        raise VaeJaxError(
            f"{self.path} was trained from Python, and cannot be opened from its folder alone "
            f"({reason}): call load_run(folder, experiment=...) where that is at hand."
        )

    def _without_data(self, record: Record, reason: Exception) -> Experiment:
        """The experiment without its data; a sentence reports the reason."""
        about, shape = record["data"], record["model"]["image_shape"]
        protocol = about["protocol"]["name"]
        absent = Data.absent(
            about["name"], protocol, tuple(shape), about["class_names"], about["fingerprint"]
        )
        experiment = experiment_of(record, absent)
        why = "given as arrays" if isinstance(reason, NotImportableError) else str(reason)
        say(
            f"{self.path} is open without its data, {absent.name} ({why.rstrip('.')}): it encodes, "
            "decodes and samples, but images of the data cannot be shown, nor the run evaluated."
        )
        return experiment

    def _create(self, content: Record) -> None:
        """Write experiment.json into a new or empty folder, unless another process has done so."""
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
        """Keep other processes from training here until this one ends in any way.

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

    def keep_data(self, experiment: Experiment, origin: Origin | None) -> None:
        """Keep an experiment's images given as arrays, unless the file in `origin` remakes them."""
        if origin is None and parallel.is_main_process():
            keep(experiment.data, self.data)

    def _repair(self) -> None:
        """Restore experiment.json or its copy from the other, if one is lost or damaged."""
        for path, other in ((self.record, self.record_copy), (self.record_copy, self.record)):
            try:
                read_record_file(path)
            except storage.DamagedError:
                if path.exists():
                    storage.set_aside(path, path.with_name("experiment.damaged.json"))
                storage.write_json(path, read_record_file(other))

    def restore(self, like: State | None, checkpoint: Checkpoint) -> State:
        """The state of a `checkpoint`, with the structure of `like`; see `Checkpoints.restore`.

        Raises:
            VaeJaxError: there is no checkpoint, each is damaged, or it is of another model.
        """
        storage.check_kinds([self.checkpoints], [])
        with Checkpoints(self.checkpoints) as checkpoints:
            restored = checkpoints.restore(like, checkpoint)
        if restored is None:
            raise VaeJaxError(f"{self.path} has no {checkpoint} checkpoint yet.")
        state, warnings = restored
        for warning in warnings:
            say(warning)
        return state

    def export(self, out: Path, checkpoint: Checkpoint = "latest") -> Path:
        """Write the model's variables as arrays into a file, without running the run's code.

        Args:
            out: an .npz or a .safetensors file; its arrays are named as
                `params/encoder/Dense_0/kernel`, those of several seeds `[S, ...]`.
            checkpoint: the latest, or the best by validation.

        Raises:
            VaeJaxError: there is no checkpoint, or the file cannot be written.
        """
        check_suffix(out)
        state = self.restore(None, checkpoint)
        params = state["params"] if state["ema_params"] is None else state["ema_params"]
        arrays = flattened({"params": params} | (state["model_state"] or {}))
        if np.shape(state["step"]) == (1,):
            arrays = {name: array[0] for name, array in arrays.items()}
        return save_arrays(out, arrays)

    def write_summary(self, content: Record) -> None:
        """Write `content` to summary.json."""
        if parallel.is_main_process():
            storage.write_json(self.summary, content)

    def read_summary(self) -> Record | None:
        """The content of summary.json; None if there is none, or a damaged one."""
        with contextlib.suppress(storage.DamagedError):
            match summary := storage.read_json(self.summary):
                case {"step": int(), "params_sha256": str()}:
                    return summary
        return None

    def is_finished(self, record: Record) -> bool:
        """Whether summary.json is from the last step of `record`, or an early end by patience."""
        summary, patience = self.read_summary(), record.get("patience")
        if summary is None:
            return False
        impatient = patience is not None and summary.get("patience") == patience
        return impatient or record.get("num_steps", summary["step"]) == summary["step"]

    def is_newer_than(self, page: Path) -> bool:
        """Whether the run was finished after its `page` was written, or there is no page."""
        return not page.exists() or page.stat().st_mtime < self.summary.stat().st_mtime

    def read_record(self) -> Record:
        """The content of experiment.json or, if that is lost or damaged, of its copy.

        Raises:
            VaeJaxError: there is neither, so this is no run folder; or both are damaged.
        """
        if not self.record.exists() and not self.record_copy.exists():
            raise VaeJaxError(f"{self.path} is no run folder: it has no experiment.json.")
        try:
            return read_record_file(self.record)
        except storage.DamagedError as error:
            try:
                record = read_record_file(self.record_copy)
            except storage.DamagedError:
                raise VaeJaxError(
                    f"{error} Put a good copy back, or choose another --workdir."
                ) from error
            say(f"{error} Its copy {self.record_copy.name} is used.")
            return record

    def append_metrics(self, line: Record) -> None:
        """Add a `line` to metrics.jsonl; non-finite numbers become null."""
        content = {name: jsonable(value) for name, value in line.items()}
        storage.append_line(self.metrics, content)

    def read_metrics(self) -> list[Record]:
        """The lines of metrics.jsonl that are whole: a step, and numbers by name."""
        return [line for line in storage.read_lines(self.metrics) if _is_of_metrics(line)]

    def metric(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps `[T]` of the metric `name`, and its values `[T, S]`, nan if none was finite."""
        lines = [line for line in self.read_metrics() if name in line]
        values = np.array([line[name] for line in lines], dtype=float)
        steps = np.array([line["step"] for line in lines], dtype=int)
        return steps, values.reshape(len(lines), -1 if lines else 0)

    def keep_unlogged(self, step: int, chunks: Sequence[Metrics]) -> None:
        """Keep metrics `[S, steps]` of chunks of steps that wait for their line.

        Args:
            step: the last of these steps.
            chunks: the metrics, to which the process that resumes adds those of its steps.
        """
        if chunks and parallel.is_main_process():
            arrays = {
                name: np.concatenate([each[name] for each in chunks], 1) for name in chunks[0]
            }
            with storage.writing(self.unlogged), storage.whole_file(self.unlogged) as part:
                np.savez(part, allow_pickle=False, **{UP_TO: np.asarray(step)}, **arrays)

    def read_unlogged(self, step: int) -> list[Metrics]:
        """The metrics that wait for their line at `step`; none if the run ended at a line."""
        if parallel.is_main_process():
            with (
                contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
                self.unlogged.open("rb") as file,  # which NumPy leaves open if it is damaged
                np.load(file) as arrays,
            ):
                if arrays[UP_TO] == step:
                    return [{name: arrays[name] for name in arrays.files if name != UP_TO}]
        return []

    def truncate_metrics(self, step: int) -> list[Record]:
        """Delete and return the lines after `step`, from which training resumes."""
        lines = self.read_metrics()
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
        with storage.writing(self.metrics), storage.whole_file(self.metrics) as partial:
            partial.write_text("".join(kept))
        return [line for line in lines if line["step"] > step]

    def append_evaluation(self, entry: Record) -> None:
        """Add an `entry` to evaluation.json; those of several processes are all kept."""
        storage.append_entry(self.evaluation, entry)


def _is_of_metrics(line: Record) -> bool:
    def is_number(value: object) -> bool:
        return value is None or isinstance(value, int | float)

    values = [
        each for value in line.values() for each in (value if isinstance(value, list) else [value])
    ]
    return isinstance(line.get("step"), int) and all(map(is_number, values))


def jsonable(value: Any) -> Any:
    """The numbers in `value`: one, or a list with one for each seed; null if not finite."""
    if isinstance(value, np.ndarray | np.generic | float):
        values = [float(v) if np.isfinite(v) else None for v in np.atleast_1d(value)]
        return values[0] if len(values) == 1 else values
    return value
