"""Training: the loop around the scanned steps, and how runs start, resume and finish."""

# pyright: strict, reportUnknownMemberType=false

import contextlib
import inspect
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from types import ModuleType

import jax
import numpy as np

from vae_jax import parallel, storage
from vae_jax.budget import current_budget
from vae_jax.data import Data, batch_indices, prefetched
from vae_jax.errors import Interrupted, VaeJaxError
from vae_jax.evaluation.bounds import make_validation as make_validation
from vae_jax.experiment import Experiment, Origin, read_module
from vae_jax.given import checked
from vae_jax.interfaces import Metrics
from vae_jax.processes import agree, stop_signals
from vae_jax.processes.signals import Left
from vae_jax.progress import SECONDS_TO_HEAR, Pace, Progress, largest_divisor, say
from vae_jax.run import Run, RunFolder, what_processes_share
from vae_jax.run import load_run as load_run
from vae_jax.run.replicas import Later, LeftChunk, apart, held_states, joined, make_unless_left
from vae_jax.run.trackers import Callback
from vae_jax.run.training import Held, Logged, Training, check_shared, opened, summarize_steps
from vae_jax.step import Batch, TrainState, TrainStep, init_state, make_train_chunk

SharedStep = tuple[TrainStep, Sequence[np.ndarray]]
"""A step that several experiments share, and the numbers `[S, ...]` in which they differ."""
# Ends training as a signal does, but without an error.
SPENT = signal.SIGALRM
# The largest chunk of streamed images of a process, in bytes; the next is prepared meanwhile.
STREAMED_BYTES = 2**26


def is_streamed(data: Data) -> bool:
    """Whether to stream training images of `data` from disk rather than keep them on devices."""
    return data.train.images.nbytes > parallel.device_memory() // 4


def is_spent(experiment: Experiment, step: int) -> bool:
    """Whether the budget for now is spent after a `step` of a run."""
    return current_budget().is_spent(step * experiment.batch_size / len(experiment.data.train))


def chunks_of_batches(
    experiment: Experiment,
    layout: parallel.Layout,
    seeds: np.ndarray,
    step: int,
    streamed: bool,
    longest: int | None = None,
) -> Iterator[Batch]:
    """The batches of successive chunks of steps, starting at `step`, on the devices.

    They are a function of seed and step alone. A chunk of streamed images has fewer steps if it
    would be larger than `STREAMED_BYTES`.

    Args:
        experiment: the experiment to train.
        layout: the layout of its replicas on the devices.
        seeds: the seeds of the replicas, `[S]`.
        step: the first step.
        streamed: whether the batches bring their images.
        longest: the steps of a chunk, which divide those between two lines of metrics; None takes
            all of these.

    Yields:
        Batches `[D, S, steps, b, ...]` for D devices.
    """
    split, batch = experiment.data.train, experiment.batch_size
    labels = None if experiment.model.labels is None else split.labels
    longest = longest or experiment.log_every
    if streamed:
        step_bytes = len(seeds) * batch * split.images[0].nbytes // parallel.num_processes()
        longest = largest_divisor(longest, STREAMED_BYTES // step_bytes)
    while step < experiment.num_steps:
        stop = min((step // longest + 1) * longest, experiment.num_steps)
        if experiment.shuffle:
            rows = [batch_indices(int(s), step, stop - step, len(split), batch) for s in seeds]
        else:
            in_order = np.arange(step * batch, stop * batch, dtype=np.int64) % len(split)
            rows = [in_order.astype(np.int32).reshape(-1, batch)] * len(seeds)
        own = layout.rows(np.stack(rows))
        yield Batch(
            rows=layout.put(own),
            images=layout.put(split.images[own]) if streamed else None,
            y=None if labels is None else layout.put(labels[own]),
        )
        step = stop


def advance(
    runs: Sequence[Training],
    layout: parallel.Layout,
    streamed: bool | None,
    meanwhile: Callable[[], float],
    unlogged: list[Metrics],
    received: Sequence[int],
    shared: SharedStep | None = None,
) -> Iterator[tuple[int, list[Held], Logged | None, int]]:
    """Train on all devices.

    Args:
        runs: the runs, at the same step.
        layout: the layout of their replicas on the devices.
        streamed: whether the batches bring their images; None asks `is_streamed`.
        meanwhile: a function to call while the devices are busy; returns the seconds it took.
        unlogged: the metrics of the steps since the last line, to which those of a chunk are added.
        received: the signals that have arrived; one ends a chunk that would take too long.
        shared: the step that several experiments share.

    Yields:
        The step; the state of each run; the metrics since the last line if one is due, else None;
        and the signal to stop by (`SPENT` if the budget is), or 0. One item for each chunk. The
        states are donated when the next item is requested.

    Raises:
        Left: a process was told to stop during a chunk that would have taken too long.
    """
    experiment, seeds = runs[0].experiment, np.concatenate([run.seeds for run in runs])
    streamed = is_streamed(experiment.data) if streamed is None else streamed
    streamed = bool(parallel.max_over_processes(streamed))
    one_step, numbers = shared or (None, ())
    train_chunk = make_train_chunk(experiment, layout, one_step)
    images = None if streamed else layout.everywhere(experiment.data.train.images)
    device_state = layout.place(joined([run.take_state() for run in runs]))
    each, step = layout.place((seeds, *numbers)), runs[0].step
    unless_left, pace = make_unless_left(layout, runs, received), Pace(experiment.log_every)
    quick: set[int] = set()  # lengths of chunks that end before a signal becomes urgent
    while step < experiment.num_steps:
        every = chunks_of_batches(experiment, layout, seeds, step, streamed, pace.steps)
        with contextlib.closing(prefetched(every)) as chunks:
            for batches in chunks:
                steps, begun = batches.rows.shape[2], time.monotonic()
                chunk = partial(train_chunk, device_state, images, batches, *each)
                if steps in quick:
                    device_state, metrics = chunk()
                    waited = meanwhile()
                    metrics = layout.collect(metrics)
                else:
                    waited = meanwhile()
                    device_state, metrics = unless_left(step, device_state, chunk)
                seconds = time.monotonic() - begun - waited
                unlogged.append(metrics)
                step += steps
                row = None
                if step % experiment.log_every == 0 or step == experiment.num_steps:
                    row = summarize_steps(unlogged)
                    unlogged.clear()
                alarm = SPENT if is_spent(experiment, step) else 0
                stopped_by = parallel.max_over_processes(max(received, default=alarm))
                yield step, held_states(layout, device_state, runs), row, stopped_by
                slowest = parallel.max_over_processes(int(1000 * seconds)) / 1000
                if slowest <= 2 * SECONDS_TO_HEAR:
                    quick.add(steps)
                if pace.changes(steps, slowest, step):
                    break


def train_together(
    runs: Sequence[Training],
    streamed: bool | None = None,
    shared: SharedStep | None = None,
    shard: parallel.Shard | None = None,
) -> None:
    """Train runs that are at the same step to their end or up to the budget, in one program.

    If a run fails, its `failure` holds the error and the others continue.

    Args:
        runs: runs of one experiment, or of several that share a step.
        streamed: as in `train`.
        shared: the step that several experiments share.
        shard: as in `train`.

    Raises:
        VaeJaxError: the devices do not divide the batch, a checkpoint cannot be written, or the
            budget was spent before the first step.
        Interrupted: SIGTERM or SIGINT came; the states were saved.
    """
    experiment, num_seeds = runs[0].experiment, sum(len(run.seeds) for run in runs)
    names = ", ".join(str(run.folder.path) for run in runs)
    spent = f"The budget is spent for {names}. Run the same command to continue."
    layout = parallel.Layout.of(num_seeds, experiment.batch_size, experiment.accumulate, shard)
    validate_every = experiment.validate_every or experiment.checkpoint_every
    later, step, stopped_by, left_by = Later(), runs[0].step, 0, 0
    going = [run.goes_on for run in runs]
    unfinished = any(going) and step < experiment.num_steps
    if unfinished and parallel.max_over_processes(is_spent(experiment, step)):
        if step == 0:
            raise VaeJaxError(f"The budget is spent before {names} began: give another.")
        return say(spent)
    waiting = [run.folder.read_unlogged(step) for run in runs]
    unlogged: list[Metrics] = list(map(joined, zip(*waiting, strict=False)))
    with (
        Progress(experiment.num_steps, experiment.batch_size * num_seeds) as progress,
        stop_signals() as received,
    ):
        chunks = advance(runs, layout, streamed, later.run, unlogged, received, shared)
        try:
            for run in runs:
                run.make_up(validate_every, layout, received)
            going = [run.goes_on for run in runs]
            unfinished = any(going) and step < experiment.num_steps
            for step, states, row, stopped_by in chunks if unfinished else ():
                if row is not None:
                    later(progress.update, step, float(row["loss"].mean()))
                    for run, own in compress(zip(runs, apart(row, len(runs)), strict=True), going):
                        later(run.log, step, own)
                        if own["skipped_in_a_row"].max() >= run.experiment.max_nonfinite:
                            later.run()
                            run.give_up(step, own)
                going = [run.goes_on for run in runs]
                is_last = step == experiment.num_steps
                due = is_last or stopped_by or step % experiment.checkpoint_every == 0
                validated = is_last or step % validate_every == 0
                if due or validated:
                    for run, own in compress(zip(runs, states, strict=True), going):
                        validated &= left_by == 0
                        left_by |= run.keep(step, own, validated, bool(due), later, received)
                    going = [run.goes_on for run in runs]
                if stopped_by == SPENT:
                    for run, own in compress(zip(runs, states, strict=True), going):
                        run.step, run.state = step, own.on_host()
                if stopped_by or left_by or not any(going):
                    break
        except Left as left:
            left_by = left.signal_number
            if isinstance(left, LeftChunk) and left.states:
                for run, own in compress(zip(runs, left.states, strict=True), going):
                    later(run.save, step, own, None)
        later.run()
        for run in runs:
            run.checkpoints.wait()
        if left_by or (stopped_by and any(going) and step < experiment.num_steps):
            waiting = zip(runs, apart(unlogged, len(runs)), strict=True)
            for run, metrics in compress(waiting, going):
                run.folder.keep_unlogged(step, metrics)
            if stopped_by == SPENT and not left_by:
                return say(spent)
            raise Interrupted(left_by or stopped_by, step, computing=left_by > 0)
        for run in runs:
            if run.failure is None:
                speed = progress.images_per_second
                run.finish(None if speed is None else speed / len(runs))


def seeds_from(seed: int, num_seeds: int) -> np.ndarray:
    """The seeds `seed`, `seed + 1`, ... of `num_seeds` replicas, `[S]`.

    Raises:
        VaeJaxError: a seed is out of the range of seeds, or there is none.
    """
    if num_seeds < 1 or not 0 <= seed <= 2**32 - num_seeds:
        raise VaeJaxError(
            f"seed is {seed} and num_seeds {num_seeds}: take at least one seed, all from 0 to "
            "2^32 - 1."
        )
    return np.arange(seed, seed + num_seeds, dtype=np.uint32)


@checked
def train(
    experiment: Experiment,
    folder: str | Path,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    origin: Origin | None = None,
    streamed: bool | None = None,
    shard: parallel.Shard | None = None,
    callback: Callback | None = None,
    begin_with: Callable[[TrainState], TrainState] | None = None,
) -> Run:
    """Train, or resume training, in a run folder.

    Args:
        experiment: the experiment to train.
        folder: the run folder; an unfinished run of the same experiment in it is resumed.
        seed: the seed of the first replica.
        num_seeds: the number of replicas, with seeds `seed`, `seed + 1`, ..., in one program.
        origin: the experiment's file and arguments, so that the folder alone can restore it.
        streamed: whether training images are read from the disk batch by batch rather than put into
            the memory of the devices once; None asks `is_streamed`. Both give the same run, in one
            process to the bit, in several to rounding.
        shard: "optimizer" leaves each device a share of the optimizer's state and of the
            parameters' running average (stage 1 of ZeRO), for models whose state does not fit. The
            run is the same, to rounding, and resumes with or without it, on any number of devices.
        callback: a function of the step and new metrics, floats by name, each the mean over seeds
            (with several also `loss/seed_0`, ...), called for each line of metrics.jsonl, in the
            main process. After resuming, it is not called again for lines it has already received.
        begin_with: a function from the initial state to the one that training begins with; the
            experiment must identify what it takes from elsewhere, as `FitPrior` does.

    Returns:
        The run, which is finished unless a budget (`vae_jax.budget`) is spent.

    Raises:
        VaeJaxError: the folder holds another experiment or cannot be written, the devices (or
            `accumulate` on each) do not divide the batch, or the loss stayed non-finite, for too
            long or in every step.
        Interrupted: SIGTERM or SIGINT came; the state was saved.
    """
    seed, num_seeds = int(seed), int(num_seeds)  # JSON cannot encode NumPy's integers
    seeds, run_folder = seeds_from(seed, num_seeds), RunFolder(Path(folder))
    parallel.check_devices()
    if parallel.num_processes() > 1:
        agree(what_processes_share(experiment, seed, num_seeds, origin))
    layout = parallel.Layout.of(num_seeds, experiment.batch_size, experiment.accumulate, shard)
    run_folder.claim(experiment, seed, num_seeds, origin)
    parallel.max_over_processes(0)  # wait until the folder is claimed
    if layout.spread:
        check_shared(run_folder)
    opening = opened(
        experiment,
        run_folder,
        seeds,
        origin,
        initial_state=parallel.jit(jax.vmap(partial(init_state, experiment))),
        validate=make_validation(experiment),
        callback=callback,
        begin_with=begin_with,
        layout=layout,
    )
    with opening as run:
        if run.finished:
            say(f"{run_folder.path} is finished ({run.step} steps); there is nothing to do.")
            return run.run
        run.begin()
        train_together([run], streamed, shard=shard)
        if run.failure is not None:
            raise run.failure
        return run.run


@checked
def train_file(
    file: str | Path,
    folder: str | Path,
    arguments: Mapping[str, object] | None = None,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    streamed: bool | None = None,
    shard: parallel.Shard | None = None,
    callback: Callback | None = None,
) -> Run:
    """Train the experiment of a file.

    Args:
        file: a Python file that defines `experiment(*, ...) -> Experiment`.
        folder: the run folder, as in `train`.
        arguments: arguments of that function; its defaults for all others.
        seed: the seed of the first replica, as in `train`.
        num_seeds: the number of replicas, as in `train`.
        streamed: whether training images are read batch by batch, as in `train`.
        shard: the part of the state that is sharded over devices, as in `train`.
        callback: a function called for each line of metrics, as in `train`.

    Returns:
        The run, which is finished unless a budget (`vae_jax.budget`) is spent.

    Raises:
        VaeJaxError: the file defines no experiment, its function does not take the arguments, or
            as in `train`.
        Interrupted: SIGTERM or SIGINT came; the state was saved.
    """
    storage.check_local(folder)  # before data are loaded
    source, _ = read_module(Path(file))
    origin = Origin(str(file), source, dict(arguments or {}))
    return train(
        origin.make(),
        folder,
        seed=seed,
        num_seeds=num_seeds,
        origin=origin,
        streamed=streamed,
        shard=shard,
        callback=callback,
    )


class _Callable(ModuleType):
    """Called, this module runs `train`: `vae_jax.train` is both, whichever is imported first."""

    __call__ = staticmethod(train)
    __signature__ = inspect.signature(train)


sys.modules[__name__].__class__ = _Callable
