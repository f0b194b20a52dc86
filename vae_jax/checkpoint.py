"""Checkpoints: the only file that knows Orbax.

A checkpoint is one training state on the host, written in the background under a temporary name
and renamed when whole. Its manifest has a SHA-256 of every file, checked before any is read.
"""

import hashlib
import json
import math
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from vae_jax.errors import VaeJaxError

State = TypeVar("State")
Which = Literal["latest", "best"]
_MANIFEST = "manifest.json"


def fingerprint(tree: Any) -> str:
    """SHA-256 over a tree's arrays in the order of their paths: names, types, shapes, bytes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    digest = hashlib.sha256()
    for name, leaf in sorted(named.items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def _arrays(tree: Any) -> dict[str, str]:
    """Path, type and shape of every array of a tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _files(folder: Path) -> dict[str, str]:
    """Path and SHA-256 of every file of a checkpoint but the manifest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[str(path.relative_to(folder))] = digest
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))[:200]


class Checkpoints:
    """The checkpoints of one run: the latest so many, and the best by validation.

    Args:
        folder: where they are, each in a folder named by its step; made if absent.
        keep: how many of the latest stay.
    """

    def __init__(self, folder: Path, keep: int = 1):
        absl_logging.set_verbosity(absl_logging.FATAL)  # its errors are raised too
        self.folder = folder.absolute()
        self.keep = keep
        self.folder.mkdir(parents=True, exist_ok=True)
        process = jax.process_index()
        # The state is the same in every process: each reads alone, and one writes.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=process,
            active_processes={process},
            barrier_sync_key_prefix=f"process{process}",
        )
        self._orbax = ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            multiprocessing_options=alone,
        )
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        hook = self._hook = sys.unraisablehook

        def quiet(unraisable: Any) -> None:
            # When one file cannot be written, Orbax is gone before it hears of the others; the
            # first failure is an exception and enough.
            if str(unraisable.exc_value) != "Event loop is closed":
                hook(unraisable)

        sys.unraisablehook = quiet
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.shutdown()
        self._orbax.close()
        sys.unraisablehook = self._hook

    def save(self, step: int, state: Any, validation: float | None) -> None:
        """Starts writing a state of host arrays, which must not change afterwards.

        Args:
            step: its name.
            state: a pytree.
            validation: what `best` minimises; None if it was not measured. What is not finite
                never is the best.

        Raises:
            VaeJaxError: the one before could not be written.
        """
        self.wait()
        self._writing = self._writer.submit(self._write, step, state, validation)

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            VaeJaxError: it could not be written.
        """
        try:
            if self._writing is not None:
                self._writing.result()
        except Exception as error:  # Orbax raises many kinds for a full disk
            raise VaeJaxError(
                f"A checkpoint could not be written to {self.folder} ({_first_line(error)}): free "
                "some space, then give the same command again to go on from the last good one."
            ) from error

    def _write(self, step: int, state: Any, validation: float | None) -> None:
        partial = self.folder / f"{step}.partial"
        try:
            self._orbax.save(partial, args=ocp.args.StandardSave(state), force=True)
            measured = validation is not None and math.isfinite(validation)
            manifest = {
                "validation": validation if measured else None,
                "arrays": _arrays(state),
                "files": _files(partial),
            }
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2))
            partial.rename(self.folder / str(step))
            kept = {*self.steps()[: self.keep], *self.steps("best")[:1]}
            for old in set(self.steps()) - kept:
                shutil.rmtree((self.folder / str(old)).rename(self.folder / f"{old}.old"))
        except Exception:
            for _ in range(20):  # a second: where one of Orbax's threads fails, others write on
                self._delete_unfinished()
                time.sleep(0.05)
            raise

    def _delete_unfinished(self) -> None:
        for path in self.folder.glob("*.*"):
            shutil.rmtree(path, ignore_errors=True)

    def _manifest(self, step: int) -> dict[str, Any]:
        """The manifest; that of a damaged checkpoint fits nothing."""
        try:
            return json.loads((self.folder / str(step) / _MANIFEST).read_text())
        except (OSError, ValueError):
            return {"validation": None, "arrays": {}, "files": None}

    def steps(self, which: Which = "latest") -> list[int]:
        """Steps that have a checkpoint, the wanted one first."""
        names = [path.name for path in self.folder.iterdir()]
        steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
        if which == "latest":
            return steps
        scores = {step: self._manifest(step)["validation"] for step in steps}
        measured = [step for step in steps if scores[step] is not None]
        return sorted(measured, key=scores.__getitem__)

    def restore(self, like: State, which: Which = "latest") -> tuple[State, list[str]] | None:
        """Reads a state; one that is damaged is passed over for the next.

        Args:
            like: a state of the same structure, its leaves arrays or `jax.ShapeDtypeStruct`.
            which: the latest, or the best by validation.

        Returns:
            The state, of NumPy arrays, and a sentence for each checkpoint passed over; None when
            there is no checkpoint at all.

        Raises:
            VaeJaxError: there are some, but each is damaged; or one is of another model.
        """
        skipped: list[str] = []
        unknown = {step for step in self.steps() if self._manifest(step)["files"] is None}
        for step in [*unknown, *(step for step in self.steps(which) if step not in unknown)]:
            if _files(self.folder / str(step)) == self._manifest(step)["files"]:
                return self._read(step, like), skipped
            skipped.append(
                f"The checkpoint of step {step} in {self.folder} is damaged (its files are not "
                "those that were written) and passed over."
            )
        if skipped:
            raise VaeJaxError(
                f"Every {which} checkpoint in {self.folder} is damaged: delete the run folder to "
                "start anew."
            )
        return None

    def _read(self, step: int, like: State) -> State:
        there, here = self._manifest(step)["arrays"], _arrays(like)
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise VaeJaxError(
                    f"The checkpoint of step {step} in {self.folder} is of another model or "
                    f"optimizer (its {name} is {there.get(name)}, here it is {here.get(name)}): "
                    "choose another run folder."
                )
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        arguments = ocp.args.StandardRestore(abstract)
        state: Any = self._orbax.restore(self.folder / str(step), args=arguments)
        return jax.tree.map(np.asarray, state)

    def clean_up(self, step: int) -> None:
        """Makes room to go on from `step`, in the one process that writes.

        What a killed process was writing is deleted; checkpoints later than `step`, which are
        damaged, move to `damaged_checkpoints`, to be written again.
        """
        self._delete_unfinished()
        for damaged in [s for s in self.steps() if s > step]:
            target = self.folder.with_name("damaged_checkpoints") / str(damaged)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (self.folder / str(damaged)).rename(target)
