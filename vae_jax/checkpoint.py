"""Checkpoints: the only file that knows Orbax.

A checkpoint is one training state on the host, written in the background under a temporary name
and renamed when whole, with a SHA-256 over its arrays that is checked when it is read.
"""

import hashlib
import math
import shutil
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from vae_jax.errors import VaeJaxError

State = TypeVar("State")
Which = Literal["latest", "best"]
_METRIC = "validation"


def fingerprint(tree: Any) -> str:
    """SHA-256 over a tree's arrays in the order of their paths: names, types, shapes, bytes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    digest = hashlib.sha256()
    for name, leaf in sorted(named.items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one run: the latest so many, and the best by validation.

    Args:
        folder: where they are; made if absent.
        keep: how many of the latest stay.
    """

    def __init__(self, folder: Path, keep: int = 1):
        absl_logging.set_verbosity(absl_logging.ERROR)
        self.folder = folder.absolute()
        process = jax.process_index()

        def score(metrics: dict[str, float]) -> float:
            return -metrics[_METRIC]

        best = BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            best_fn=score,  # without which Orbax does not write the metrics down
            # The state is the same in every process: each reads alone, and one writes.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process,
                active_processes={process},
                barrier_sync_key_prefix=f"process{process}",
            ),
            create=False,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def save(self, step: int, state: Any, validation: float | None) -> None:
        """Starts writing a state of host arrays, which must not change afterwards.

        Args:
            step: its name.
            state: a pytree.
            validation: what `best` minimises; None if it was not measured, and if it is not
                finite it is as good as not.

        Raises:
            VaeJaxError: this one, or the one before, cannot be written.
        """
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            fingerprint=ocp.args.JsonSave({"sha256": fingerprint(state)}),
        )
        measured = validation is not None and math.isfinite(validation)
        metrics = {_METRIC: validation} if measured else None
        try:
            self._manager.check_for_errors()
            self._manager.save(step, args=arguments, metrics=metrics)
        except Exception as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            VaeJaxError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._not_written(error) from error

    def _not_written(self, error: Exception) -> VaeJaxError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        return VaeJaxError(
            f"A checkpoint could not be written to {self.folder} ({reason}): free some space, then "
            f"give the same command again to go on from the last good one."
        )

    def steps(self, which: Which = "latest") -> list[int]:
        """Steps that have a checkpoint, the wanted one first."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        if which == "best":
            metrics = {step: self._manager.metrics(step) for step in steps}
            scores = {step: score[_METRIC] for step, score in metrics.items() if score}
            steps = sorted(scores, key=scores.__getitem__)
        return steps

    def restore(self, like: State, which: Which = "latest") -> tuple[State, list[str]] | None:
        """Reads a state; one that is damaged is passed over for the next.

        Args:
            like: a state of the same structure, its leaves arrays or `jax.ShapeDtypeStruct`.
            which: the latest, or the best by validation.

        Returns:
            The state, of NumPy arrays, and a sentence for each checkpoint passed over; None when
            there is no checkpoint at all.

        Raises:
            VaeJaxError: there are some, but none can be read.
        """
        skipped: list[str] = []
        for step in self.steps(which):
            try:
                return self._read(step, like), skipped
            except Exception as error:  # Orbax raises many kinds for damaged files
                reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                skipped.append(
                    f"The checkpoint of step {step} in {self.folder} is damaged ({reason[:200]}); "
                    "going back to the one before."
                )
        if skipped:
            raise VaeJaxError(f"No checkpoint in {self.folder} can be read: {skipped[0]}")
        return None

    def _read(self, step: int, like: State) -> State:
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), fingerprint=ocp.args.JsonRestore()
        )
        restored: Any = self._manager.restore(step, args=arguments)
        state = jax.tree.map(np.asarray, restored["state"])
        if fingerprint(state) != restored["fingerprint"]["sha256"]:
            raise ValueError("its SHA-256 differs")
        return state

    def clean_up(self, step: int) -> None:
        """Makes room to go on from `step`, in the one process that writes.

        What a killed process was writing is deleted; checkpoints later than `step`, which are
        damaged, move to `damaged_checkpoints`, to be written again.
        """
        for unfinished in self.folder.glob("*orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished)
        later = [s for s in self._manager.all_steps() if s > step]
        for damaged in later:
            target = self.folder.with_name("damaged_checkpoints") / str(damaged)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (self.folder / str(damaged)).rename(target)
        if later:
            self._manager.reload()
