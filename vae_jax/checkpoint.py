"""Checkpoints: the only file that knows Orbax.

A checkpoint is one training state, written in the background as a whole folder with a manifest of
its files and a hash of its arrays, both of which are checked when it is read. Of arrays that are
sharded over processes, the hash is of sums over their words, so that no process needs them whole.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from jax import Array, lax
from jax.stages import Wrapped
from orbax.checkpoint import type_handlers

from vae_jax import parallel, storage
from vae_jax.errors import VaeJaxError
from vae_jax.processes.agreement import told_by_main

State = TypeVar("State")
Words = TypeVar("Words", Array, np.ndarray)
Checkpoint = Literal["latest", "best"]
_ATTEMPTS = 10  # to read while another process replaces checkpoints
_LOOKS = 3  # further looks for a checkpoint if there seems to be none
_LONGEST = 86_400  # seconds for which processes wait for each other's shares
_AT_ONCE = 2**26  # bytes of arrays that are written or read together
_WORDS_AT_ONCE = 2**20
_SMALL = 2**16  # files up to this many bytes are hashed even if their arrays are


def fingerprint(tree: object) -> str:
    """SHA-256 over a tree's arrays in the order of their paths: names, types, shapes, bytes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    digest = hashlib.sha256()
    for name, leaf in sorted(named.items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)  # no copy
    return digest.hexdigest()


def _arrays(tree: object) -> dict[str, str]:
    """The path, type and shape of every array of a tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _digest(tree: object) -> str:
    """SHA-256 over the fingerprints of a tree's arrays, whatever their names and order."""
    each = sorted(fingerprint(leaf) for leaf in jax.tree.leaves(tree))
    return hashlib.sha256("".join(each).encode()).hexdigest()


def sums(array: Array) -> Array:
    """Two sums over the words of an array mod 2^32, `[2]`, computed where its shares are.

    The first is of the words alone, so that it changes with any one of them. The second is of
    hashes of a word and its position, so that it changes when words or shares change positions.
    """
    if jnp.iscomplexobj(array):
        array = jnp.stack([array.real, array.imag], -1)  # as they lie in memory
    of_size = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    word = (
        array.astype(of_size) if array.dtype == bool else lax.bitcast_convert_type(array, of_size)
    )
    word, position = word.astype(jnp.uint32), jnp.uint32(0)
    for axis, length in enumerate(word.shape):
        position = position * length + lax.broadcasted_iota(jnp.uint32, word.shape, axis)
    return jnp.stack([word.sum(), _mixed(word, position).sum()])


def sums_on_host(array: np.ndarray) -> np.ndarray:
    """The `sums` of a whole array on the host."""
    of_size = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
    words, both = np.ascontiguousarray(array).reshape(-1).view(of_size), np.zeros(2, np.uint32)
    for start in range(0, len(words), _WORDS_AT_ONCE):
        word = words[start : start + _WORDS_AT_ONCE].astype(np.uint32)
        position = np.arange(start, start + len(word)).astype(np.uint32)
        each = word, _mixed(word, position)
        both += np.stack([values.sum(dtype=np.uint32) for values in each])
    return both


def _mixed(word: Words, position: Words) -> Words:
    """Hashes of words and their positions, by the last steps of Appleby's MurmurHash3."""
    mixed = word ^ (position * np.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))


def _digest_of_sums(arrays: Iterable[str], pairs: Iterable[np.ndarray]) -> str:
    """A hash of the types, shapes and `sums` of arrays, whatever their names and order."""
    each = sorted(f"{about} {both.tolist()}" for about, both in zip(arrays, pairs, strict=True))
    return f"sums {hashlib.sha256(''.join(each).encode()).hexdigest()}"


def _finite(number: float | None) -> float | None:
    """The number if it is finite, so that JSON can hold and sort it; else None."""
    return number if number is not None and math.isfinite(number) else None


def _describe(
    partial: Path,
    arrays: dict[str, str],
    validation: float | None,
    finite: bool,
    digest: str,
) -> None:
    """Write the manifest of a complete checkpoint."""
    manifest = {
        "validation": _finite(validation),
        "finite": finite,
        "arrays": arrays,
        "digest": digest,
        "files": storage.manifest_of(partial),
    }
    (partial / storage.MANIFEST).write_text(json.dumps(manifest, indent=2))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))[:200]


class _HostArrays(type_handlers.NumpyHandler):
    """Arrays on the host, written and read one at a time if they are large.

    Otherwise Orbax copies all arrays before it writes any, TensorStore again copies those with an
    axis of size one, and arrays that are read are held twice.
    """

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def _background_serialize(
        self,
        values: Sequence[np.ndarray],
        infos: Sequence[type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> None:
        if sum(value.nbytes for value in values) <= _AT_ONCE:
            return await super()._background_serialize(values, infos, args)
        every = args or [ocp.SaveArgs()] * len(values)
        for value, info, own in zip(values, infos, every, strict=True):
            await super()._background_serialize([value], [info], [own])

    async def deserialize(
        self,
        infos: Sequence[type_handlers.ParamInfo],
        args: Sequence[ocp.RestoreArgs] | None = None,
    ) -> Sequence[np.ndarray]:
        files = Path(infos[0].parent_dir).rglob("*")
        if sum(file.stat().st_size for file in files) <= _AT_ONCE:
            return await super().deserialize(infos, args)
        found: list[np.ndarray] = []
        every = args or [ocp.RestoreArgs()] * len(infos)
        for info, own in zip(infos, every, strict=True):
            found += await super().deserialize([info], [own])
        return found


class _Shares(type_handlers.ArrayHandler):
    """Arrays on the devices of several processes, in files that read like those of host arrays."""

    def typestr(self) -> str:
        return type_handlers.NumpyHandler().typestr()


class Checkpoints:
    """The checkpoints of one run: the latest ones, and the best by validation.

    One process at a time may write; any may read meanwhile.

    Args:
        folder: the folder of all checkpoints, each in a folder named by its step; created when one
            is saved.
        keep: the number of latest checkpoints that stay.
    """

    def __init__(self, folder: Path, keep: int = 1):
        absl_logging.set_verbosity(absl_logging.FATAL)  # its errors are raised too
        self.folder = folder.absolute()
        self.keep = keep
        process = parallel.own_process()
        # The state is the same in every process: each reads alone, and one writes.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=process,
            active_processes={process},
            barrier_sync_key_prefix=f"process{process}",
        )
        # Compression saves little of floats, and also holds the compressed ones in memory.
        handler = ocp.PyTreeCheckpointHandler(
            use_compression=False,
            multiprocessing_options=alone,
            type_handler_registry=type_handlers.create_type_handler_registry(
                (np.ndarray, _HostArrays())
            ),
        )
        self._orbax = ocp.Checkpointer(handler, multiprocessing_options=alone)
        self._shared: ocp.AsyncCheckpointer | None = None
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        hook = self._hook = sys.unraisablehook

        def quiet(unraisable: "sys.UnraisableHookArgs") -> None:
            # When one file cannot be written, Orbax is closed before it hears of the others; the
            # first failure is raised, which is enough.
            if str(unraisable.exc_value) != "Event loop is closed":
                hook(unraisable)

        sys.unraisablehook = quiet
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.shutdown()
        if self._shared is not None and exception == (None, None, None):
            self._shared.close()
        self._orbax.close()
        sys.unraisablehook = self._hook

    def save(self, step: int, state: object, validation: float | None, finite: bool = True) -> None:
        """Start writing a state of host arrays, which must not change afterwards.

        Args:
            step: its name; a whole checkpoint of that name stays as it is.
            state: a pytree of host arrays.
            validation: the number that `best` minimizes; None if it was not measured. A number that
                is not finite is never the best.
            finite: whether the step before it was taken rather than skipped; the latest such state
                stays.

        Raises:
            VaeJaxError: the checkpoint before this one could not be written.
        """
        self.wait()
        self._writing = self._writer.submit(self._write, step, state, validation, finite)

    def save_shares(self, step: int, state: object, validation: float | None, finite: bool) -> None:
        """Start writing a state that is sharded over processes, each its own share.

        Returns once this process's share is on the host. All processes call it, and `wait`.

        Args:
            step: as in `save`.
            state: arrays on the devices of all processes.
            validation: as in `save`.
            finite: as in `save`.

        Raises:
            VaeJaxError: the checkpoint before this one could not be written.
        """
        self.wait()
        if parallel.is_main_process():
            storage.make_folder(self.folder)
        if self._shared is None:
            together = ocp.options.MultiprocessingOptions(
                active_processes=set(range(parallel.num_processes())),
                barrier_sync_key_prefix="shares",
            )
            self._shared = ocp.AsyncCheckpointer(
                ocp.PyTreeCheckpointHandler(
                    use_compression=False,
                    multiprocessing_options=together,
                    type_handler_registry=type_handlers.create_type_handler_registry(
                        (jax.Array, _Shares())
                    ),
                ),
                timeout_secs=_LONGEST,
                multiprocessing_options=together,
            )
        partial = storage.shared_partial(self.folder / str(step))
        self._shared.save(partial, args=ocp.args.PyTreeSave(state), force=True)
        summed, about = self._sums_of(state), (_arrays(state), validation, finite)
        self._writing = self._writer.submit(self._write_shares, step, partial, about, summed)

    @cached_property
    def _sums_of(self) -> Wrapped:
        """A function of sharded arrays that gives every process the `sums` of each."""
        return parallel.whole_everywhere(lambda state: jax.tree.map(sums, state))

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
            VaeJaxError: a checkpoint could not be written.
        """
        try:
            if self._writing is not None:
                self._writing.result()
        except Exception as error:  # Orbax raises several exceptions here
            raise VaeJaxError(
                f"A checkpoint could not be written to {self.folder} ({_first_line(error)}): free "
                "some space, then give the same command again to go on from the last good one."
            ) from error

    def _write(self, step: int, state: object, validation: float | None, finite: bool) -> None:
        target = self._place_for(step)
        with storage.whole_folder(target) as partial:
            try:
                self._orbax.save(partial, args=ocp.args.PyTreeSave(state), force=True)
            except Exception:
                for _ in range(20):  # for a second, Orbax's other threads may still write
                    storage.delete_partial(partial)
                    time.sleep(0.05)
                raise
            _describe(partial, _arrays(state), validation, finite, _digest(state))
        self._delete_old()

    def _write_shares(
        self,
        step: int,
        partial: Path,
        about: tuple[dict[str, str], float | None, bool],
        summed: object,
    ) -> None:
        assert self._shared is not None
        self._shared.wait_until_finished()  # in all processes
        if parallel.is_main_process():
            each = map(np.asarray, jax.tree.leaves(summed))
            _describe(partial, *about, _digest_of_sums(about[0].values(), each))
            storage.publish(partial, self._place_for(step))
            storage.delete_partial(partial)
            self._delete_old()

    def _place_for(self, step: int) -> Path:
        """The folder for a checkpoint; a damaged one is set aside first."""
        target = self.folder / str(step)
        if target.exists() and not self._is_whole(step):
            self._set_aside(step)
        return target

    def _delete_old(self) -> None:
        kept = {*self.steps()[: self.keep], *self.steps("best")[:1], *self._good()[:1]}
        for old in set(self.steps()) - kept:
            self._delete(old)

    def measure(self, step: int, validation: float | None) -> None:
        """Add the validation of the state at `step`, which was saved without one; see `save`."""
        self.wait()
        if (manifest := self._manifest(step)) is not None:
            path = self.folder / str(step) / storage.MANIFEST
            storage.write_json(path, manifest | {"validation": _finite(validation)})
            self._delete_old()

    def _good(self) -> list[int]:
        """The steps of checkpoints whose last step was taken, not skipped, the latest first."""
        return [step for step in self.steps() if (self._manifest(step) or {}).get("finite")]

    def back_to_finite(self) -> int | None:
        """Delete the checkpoints of skipped steps at the end, so that the latest is a good one.

        Returns:
            The step of the latest; None, with nothing deleted, if there is no good one.
        """
        self.wait()
        good = next(iter(self._good()), None)
        for step in self.steps():
            if good is not None and step > good:
                self._delete(step)
        return good

    def _delete(self, step: int) -> None:
        """Delete a checkpoint; a folder that holds other files too is renamed instead."""
        manifest, folder = self._manifest(step), self.folder / str(step)
        if manifest is None:
            self._set_aside(step)
        elif storage.strangers(folder, manifest["files"]):
            storage.set_aside(folder, self.folder / f"{step}.kept")
        else:
            storage.delete_folder(folder)

    def _set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint."""
        damaged = self.folder.with_name(f"damaged_{self.folder.name}")
        storage.set_aside(self.folder / str(step), damaged / str(step))

    def _manifest(self, step: int) -> dict[str, Any] | None:
        """The manifest of a checkpoint; None if it is damaged."""
        try:
            manifest = storage.read_json(self.folder / str(step) / storage.MANIFEST)
        except storage.DamagedError:
            return None
        match manifest:
            case {"validation": int() | float() | None, "arrays": dict(), "files": dict()}:
                return manifest
        return None

    def _is_whole(self, step: int) -> bool:
        manifest = self._manifest(step)
        return manifest is not None and not storage.damage(
            self.folder / str(step), manifest["files"]
        )

    def steps(self, which: Checkpoint = "latest") -> list[int]:
        """The steps that have a checkpoint: the latest first, or the best first (`which`)."""
        names = [path.name for path in self.folder.glob("[0-9]*") if path.is_dir()]
        numbers = [int(name) for name in names if name.isdecimal()]
        steps = sorted((step for step in numbers if str(step) in names), reverse=True)
        if which == "latest":
            return steps
        manifests = {step: self._manifest(step) or {"validation": None} for step in steps}
        measured = [step for step in steps if manifests[step]["validation"] is not None]
        return sorted(measured, key=lambda step: manifests[step]["validation"])

    def restore(
        self, like: State | None, which: Checkpoint = "latest"
    ) -> tuple[State, list[str]] | None:
        """Read a state; a damaged one is passed over for the next.

        Args:
            like: a state of the same structure, its leaves arrays or `jax.ShapeDtypeStruct`; None
                gives dictionaries of all that is saved.
            which: the latest, or the best by validation.

        Returns:
            The state, of NumPy arrays, and a sentence for each checkpoint passed over; None if
            there is no checkpoint at all.

        Raises:
            VaeJaxError: all checkpoints are damaged, or one is of another model.
        """
        for attempt in range(_ATTEMPTS):
            skipped: list[str] = []
            unknown = [step for step in self.steps() if self._manifest(step) is None]
            for step in [*unknown, *(step for step in self.steps(which) if step not in unknown)]:
                state = self.read(step, like)
                if state is not None:
                    return state, skipped
                if not (self.folder / str(step)).exists():
                    break  # a later one has replaced it: look again
                skipped.append(
                    f"The checkpoint of step {step} in {self.folder} is damaged (its files are not "
                    "those that were written) and passed over."
                )
            else:
                if not skipped and attempt < _LOOKS:
                    continue  # a listing taken during a replacement may show neither
                if not skipped:
                    return None
                raise VaeJaxError(
                    f"Every {which} checkpoint in {self.folder} is damaged: put a good copy back, "
                    "or choose another --workdir to begin from the first step."
                )
        raise VaeJaxError(
            f"The checkpoints in {self.folder} are replaced faster than they can be read: read "
            "them when the training has ended."
        )

    def read(self, step: int, like: State | None) -> State | None:
        """Read the state of a step.

        Args:
            step: the step.
            like: as for `restore`.

        Returns:
            The state, of NumPy arrays; None if there is none, or a damaged one.

        Raises:
            VaeJaxError: the checkpoint is of another model.
        """
        manifest, folder = self._manifest(step), self.folder / str(step)
        if manifest is None:
            return None
        # Files are read once: the content of large ones is checked when they have become arrays.
        digest = manifest.get("digest")  # None in older checkpoints
        if storage.damage(folder, manifest["files"], math.inf if digest is None else _SMALL):
            return None
        there = manifest["arrays"]
        here = there if like is None else _arrays(like)
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise VaeJaxError(
                    f"The checkpoint of step {step} in {self.folder} is of another model or "
                    f"optimizer (its {name} is {there.get(name)}, here it is {here.get(name)}): "
                    "choose another run folder."
                )
        abstract = like and jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        try:
            state: Any = self._orbax.restore(folder, args=ocp.args.PyTreeRestore(abstract))
        except Exception as error:  # Orbax raises several exceptions here
            if not self._is_whole(step):
                return None
            raise VaeJaxError(
                f"The checkpoint of step {step} in {self.folder} is whole, but cannot be read "
                f"({_first_line(error)}): see that this is the version of Orbax that wrote it."
            ) from error
        state = jax.tree.map(np.asarray, state)
        if str(digest).startswith("sums "):
            each = map(sums_on_host, jax.tree.leaves(state))
            found = _digest_of_sums(_arrays(state).values(), each)
        else:
            found = _digest(state)
        return state if digest in (None, found) else None

    def clean_up(self, step: int) -> None:
        """Clean up to resume from `step`, in the one process that writes.

        The unfinished writes of a killed process are deleted; checkpoints later than `step`, which
        are damaged, move to `damaged_checkpoints`, to be written again.
        """
        storage.sweep(self.folder, age=0)
        for damaged in [s for s in self.steps() if s > step]:
            self._set_aside(damaged)


def made_once(folder: Path, step: int, like: State, make: Callable[[], State]) -> State:
    """Host arrays made once by all processes, and kept and read by process 0.

    Args:
        folder: the folder that keeps them.
        step: their name in it.
        like: a tree of their shapes and types.
        make: a function that makes them, called in all processes at once if they are missing or
            damaged.

    Returns:
        The arrays, in every process.
    """
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.read(step, like) if parallel.is_main_process() else None
        if not told_by_main(lambda: "" if found is None else "it has them"):
            found = jax.tree.map(np.asarray, make())
            if parallel.is_main_process():
                checkpoints.save(step, found, None)
                checkpoints.wait()
    return parallel.from_main_process(like if found is None else found)
