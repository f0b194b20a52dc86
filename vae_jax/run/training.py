"""A run that is being trained: its logging, validation and checkpoints."""

# pyright: strict, reportUnknownMemberType=false

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from flax.typing import VariableDict

from vae_jax import parallel
from vae_jax.checkpoint import Checkpoints, fingerprint
from vae_jax.compatibility import notes
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import Experiment, Origin
from vae_jax.interfaces import Metrics
from vae_jax.processes.agreement import told_by_main
from vae_jax.processes.signals import Left, unless_stopped
from vae_jax.progress import Waiting, say
from vae_jax.run.folder import RunFolder, jsonable
from vae_jax.run.patience import Patience, score_of
from vae_jax.run.run import Run
from vae_jax.run.start import begun
from vae_jax.run.trackers import Callback, by_name
from vae_jax.step import TrainState

Logged = dict[str, np.ndarray]
"""Metrics of one line of metrics.jsonl, each `[S]`."""
Line = tuple[int, frozenset[str]]
"""A line of metrics.jsonl: its step, and the names in it."""


def summarize_steps(chunks: Sequence[Metrics]) -> Logged:
    """Metrics of chunks of steps, `[S, steps]` each, to `[S]`.

    Each is the mean over its finite steps, or nan if there are none; counters are those of the last
    step.
    """
    counters = ("skipped", "skipped_in_a_row")
    row: Logged = {}
    for name in chunks[-1]:
        values = np.concatenate([metrics[name] for metrics in chunks if name in metrics], 1)
        if name in counters:
            row[name] = values[:, -1]
        else:
            row[name] = np.ma.masked_invalid(values).mean(1).filled(np.nan)
    return row


@dataclass(frozen=True)
class Held:
    """A run's state on the devices, valid until the next chunk of steps.

    Attributes:
        variables: a function that returns the variables for evaluation, on the devices if possible.
        on_host: a function that returns a copy on the host, made at the first call.
        shares: the state on the devices if no process has the whole of it, else None.
    """

    variables: Callable[[], VariableDict | parallel.Placed]
    on_host: Callable[[], TrainState]
    shares: TrainState | None = None


@dataclass
class Training:
    """A run that is being trained, alone or beside others in one program.

    Attributes:
        experiment: the experiment.
        folder: its run folder, in which no other process trains.
        checkpoints: its checkpoints.
        seeds: the seeds of the replicas, `[S]`.
        state: the latest state on the host, `[S, ...]`; its shapes alone while devices have it.
        validate: its validation, as `make_validation` returns it.
        callback: a function called at each line of metrics.
        forgotten: the lines after the checkpoint from which training resumes: they are written
            again, but the callback has received them.
        step: the step of the state.
        saved: the step of the latest saved state, or of the first one.
        validation: the results of `validate` for that state; empty if it was not validated.
        patience: the limit of training without a better validation.
        failure: the error that ended the run before its end, or None.
    """

    experiment: Experiment
    folder: RunFolder
    checkpoints: Checkpoints
    seeds: np.ndarray
    state: TrainState
    validate: Callable[[VariableDict | parallel.Placed], Logged]
    patience: Patience
    callback: Callback | None = None
    forgotten: set[Line] = field(default_factory=set[Line])
    step: int = field(init=False)
    saved: int = field(init=False)
    validation: Logged = field(default_factory=dict[str, np.ndarray])
    failure: VaeJaxError | None = None

    def __post_init__(self):
        self.step = self.saved = int(self.state.step[0])

    def take_state(self) -> TrainState:
        """The state on the host, which is no longer held here."""
        state = self.state
        self.state = jax.eval_shape(lambda: state)
        return state

    @property
    def run(self) -> Run:
        """The run, with the latest state."""
        return Run(self.folder, self.experiment, self.state, "latest")

    @property
    def goes_on(self) -> bool:
        """Whether the run has neither failed nor run out of patience."""
        return self.failure is None and not self.patience.is_over

    @property
    def finished(self) -> bool:
        """Whether the last step was taken and summarized."""
        summary = self.folder.read_summary() or {"step": None}
        summarized = parallel.max_over_processes(summary["step"] == self.step)
        is_last = self.step == self.experiment.num_steps or self.patience.is_over
        return bool(summarized) and is_last

    def begin(self) -> None:
        """Report the first step, and clean up the folder for the output of training."""
        for note in notes(self.experiment.objective, self.state.opt_state):
            say(note)
        if not parallel.is_main_process():
            return
        if self.step > 0:
            say(f"Going on from step {self.step} of {self.folder.path}.")
            if sentence := self.folder.other_versions():
                say(sentence)
        self.checkpoints.clean_up(self.step)
        forgotten = self.folder.truncate_metrics(self.step)
        self.forgotten = {(line["step"], frozenset(line)) for line in forgotten}

    def log(self, step: int, row: Logged) -> None:
        """Write the metrics `row` of a `step` to metrics.jsonl, and call back."""
        if parallel.is_main_process():
            line = {"step": step, "time": time.time()} | row
            self.folder.append_metrics(line)
            if self.callback is not None and (step, frozenset(line)) not in self.forgotten:
                self.callback(step, by_name(row, self.seeds))

    def keep(
        self,
        step: int,
        held: Held,
        validated: bool,
        due: bool,
        later: Callable[..., None],
        received: Sequence[int],
    ) -> int:
        """Validate a state, save it if that is due, and keep it if the run ends here.

        Args:
            step: the step of the state.
            held: the state on the devices.
            validated: whether a validation is due.
            due: whether a checkpoint is due.
            later: the deferral of work until the devices are busy.
            received: as in `unless_stopped`.

        Returns:
            The number of the signal that ended the validation early, so that the state is saved
            without it; 0 if there was none.
        """
        before, left = self.patience.step, 0
        self.validation = {}
        if validated:
            try:
                self.validation = self.validated(held.variables, received)
            except Left as signal:
                left = signal.signal_number
        score = score_of(self.validation)
        if score is not None:
            later(self.log, step, self.validation)
            if self.patience.most is not None:
                self.patience.see(step, score)
        is_last = step == self.experiment.num_steps or self.patience.is_over
        wanted = due or is_last or left or self.patience.step > before
        if wanted and held.shares is not None:
            self.saved = step
            self.checkpoints.save_shares(step, held.shares, score, is_good(held.shares))
        elif wanted and parallel.is_main_process():
            later(self.save, step, held.on_host(), score)
        if is_last and not left:
            self.step, self.state = step, held.on_host()
        return left

    def validated(
        self, variables: Callable[[], VariableDict | parallel.Placed], received: Sequence[int]
    ) -> Logged:
        """The results of a validation.

        Args:
            variables: a function that returns the variables.
            received: as in `unless_stopped`.

        Raises:
            Left: a process was told to stop meanwhile.
        """
        return unless_stopped(lambda: self.validate(variables()), received)

    def make_up(self, every: int, layout: parallel.Layout, received: Sequence[int]) -> None:
        """Make up a validation that a signal interrupted, or that of the last state.

        Args:
            every: the number of steps between validations.
            layout: the layout of the state.
            received: as in `unless_stopped`.

        Raises:
            Left: a process was told to stop meanwhile.
        """
        ends = self.step == self.experiment.num_steps or self.patience.is_over
        if not self.step or not (ends or self.step % every == 0):
            return
        lines = self.folder.read_metrics() if parallel.is_main_process() else []
        found = [line for line in lines if line["step"] == self.step and score_of(line) is not None]
        missing = parallel.max_over_processes(parallel.is_main_process() and not found)
        if not missing and not ends:
            return

        def variables() -> VariableDict | parallel.Placed:
            found = self.state.variables
            return layout.in_place(found) if layout.spread else found

        self.validation = self.validated(variables, received)
        score = score_of(self.validation)
        if missing and score is not None:
            self.log(self.step, self.validation)
            if parallel.is_main_process():
                self.checkpoints.measure(self.step, score)
            if self.patience.most is not None:
                self.patience.see(self.step, score)

    def save(self, step: int, state: TrainState, score: float | None) -> None:
        """Start writing a checkpoint.

        Args:
            step: the step of the state.
            state: the state, host arrays.
            score: the score of its validation, or None.
        """
        self.saved = step
        self.checkpoints.save(step, state, score, finite=is_good(state))

    def give_up(self, step: int, row: Logged) -> None:
        """End a run that has skipped too many steps in a row before `step`, with metrics `row`.

        Its latest good state stays.
        """
        experiment = self.experiment
        what, way_out = "The loss or its gradients were not finite", "clip the gradients"
        if experiment.skip_above is not None:
            norm = row["gradient_norm"].max()
            what += f" or their norm ({norm:.3g}) was above skip_above={experiment.skip_above:g}"
            way_out = "raise skip_above"
        good = self.checkpoints.back_to_finite() if parallel.is_main_process() else None
        kept = "no checkpoint is from before them"
        if good is not None:
            where = self.checkpoints.folder
            kept = f"the checkpoint of step {good}, before they began, stays in {where}"
        self.failure = VaeJaxError(
            f"{what} in the {experiment.max_nonfinite} steps before step {step}: lower the "
            f"learning rate or {way_out}; {kept}."
        )

    def finish(self, images_per_second: float | None) -> None:
        """Write the summary, with the speed in images/s; a run that skipped every step fails."""
        if (self.state.skipped == self.step).any():
            self.failure = VaeJaxError(
                f"Every one of the {self.step} steps of {self.folder.path} was skipped, because "
                "the loss or its gradients were not finite, or above skip_above: nothing has been "
                "learned; lower the learning rate, clip the gradients, or look for what is not "
                "finite in the first step."
            )
            return
        self.folder.write_summary(
            {
                "step": self.step,
                "params_sha256": fingerprint(self.state.params),
                "images_per_second": images_per_second,
                "skipped_steps": jsonable(self.state.skipped),
            }
            | {name: jsonable(values) for name, values in self.validation.items()}
            | self.patience.summary
        )


EACH_WHOLE = parallel.Replicated()


@contextlib.contextmanager
def opened(
    experiment: Experiment,
    folder: RunFolder,
    seeds: np.ndarray,
    origin: Origin | None,
    initial_state: Callable[[np.ndarray], TrainState],
    validate: Callable[[VariableDict | parallel.Placed], Logged],
    callback: Callback | None,
    begin_with: Callable[[TrainState], TrainState] | None = None,
    layout: parallel.Layout = EACH_WHOLE,
) -> Generator[Training]:
    """Open a run folder to train in it, from an initial state or a checkpoint.

    Args:
        experiment: the experiment.
        folder: the run folder.
        seeds: the seeds of the replicas, `[S]`.
        origin: the experiment's file and arguments, if it has any.
        initial_state: a function from seeds to the initial state.
        validate: a function from variables to the results of a validation.
        callback: a function called at each line of metrics, or None.
        begin_with: a function from the initial state to the one that training begins with.
        layout: the layout of the replicas on the devices.

    Yields:
        The run, locked for this process.
    """
    with (
        folder.lock(),
        Checkpoints(folder.checkpoints, experiment.keep_checkpoints) as checkpoints,
    ):
        folder.keep_data(experiment, origin)
        begin_with = begin_with or begun(experiment, folder, seeds)
        state = first_state(checkpoints, initial_state, seeds, begin_with, layout)
        patience = Patience(None)
        run = Training(experiment, folder, checkpoints, seeds, state, validate, patience, callback)
        del state  # since this frame lasts as long as the run
        if experiment.patience is not None:
            patience = Patience(experiment.patience)
            patience.see_again(folder.read_metrics(), run.step)
            numbers = np.float32(patience.best), np.int32(patience.step), np.int32(patience.waited)
            best, step, waited = parallel.from_main_process(numbers)
            run.patience = Patience(experiment.patience, float(best), int(step), int(waited))
        yield run


def check_shared(folder: RunFolder) -> None:
    """Check that all processes see the folder in which each writes its share of checkpoints.

    Raises:
        VaeJaxError: this process sees another folder than process 0.
    """
    told = told_by_main(folder.record.read_text)
    if not folder.record.exists() or folder.record.read_text() != told:
        raise VaeJaxError(
            f"{folder.path} is not the folder that process 0 writes, and each process is to write "
            "its share of a checkpoint there: name one on a file system that all share, or leave "
            "--shard out."
        )


def first_state(
    checkpoints: Checkpoints,
    initial_state: Callable[[np.ndarray], TrainState],
    seeds: np.ndarray,
    begin_with: Callable[[TrainState], TrainState] | None,
    layout: parallel.Layout,
) -> TrainState:
    """The first state, read or made by one process for all.

    Args:
        checkpoints: the checkpoints of the run.
        initial_state: a function from seeds to the initial state.
        seeds: the seeds of the replicas, `[S]`.
        begin_with: a function from the initial state to the one that training begins with, or None.
        layout: the layout of the replicas on the devices.

    Returns:
        The state, for `layout.place`.
    """
    like = jax.eval_shape(initial_state, seeds)
    if not parallel.is_main_process():
        return layout.from_main_process(like)
    restored = checkpoints.restore(like)
    if restored is None:
        with Waiting("Compiling the initial parameters"):
            state = jax.tree.map(np.asarray, initial_state(seeds))
        return layout.from_main_process(state if begin_with is None else begin_with(state))
    for warning in restored[1]:
        say(warning)
    return layout.from_main_process(restored[0])


def is_good(state: TrainState) -> bool:
    """Whether the last step of a `state` was taken in every seed, and its parameters are finite."""
    finite = parallel.are_finite(jax.tree.leaves(state.params))
    return finite and not np.asarray(state.skipped_in_a_row).any()
