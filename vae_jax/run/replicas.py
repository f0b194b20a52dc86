"""Runs that train side by side: one state for all on the devices, one for each on the host."""

# pyright: strict, reportUnknownMemberType=false

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import ParamSpec, TypeVar

import jax
import numpy as np
from flax.typing import VariableDict

from vae_jax import parallel
from vae_jax.interfaces import Metrics
from vae_jax.processes.signals import Left, unless_stopped
from vae_jax.run.training import Held, Training
from vae_jax.step import TrainState

Tree = TypeVar("Tree")
P = ParamSpec("P")
UnlessLeft = Callable[
    [int, TrainState, Callable[[], tuple[TrainState, Metrics]]], tuple[TrainState, Metrics]
]
"""See `make_unless_left`."""


def joined(trees: Sequence[Tree]) -> Tree:
    """Concatenate the host arrays `[S, ...]` of several runs into `[runs * S, ...]`."""
    if len(trees) == 1:
        return trees[0]

    def of_runs(*leaves: np.ndarray) -> np.ndarray:
        return np.concatenate(leaves)

    return jax.tree.map(of_runs, *trees)


def apart(tree: Tree, count: int) -> list[Tree]:
    """Undo `joined`: the trees of `count` runs."""
    if count == 1:
        return [tree]

    def part(leaf: np.ndarray, n: int) -> np.ndarray:
        return np.split(leaf, count)[n]

    return [jax.tree.map(partial(part, n=n), tree) for n in range(count)]


def held_states(layout: parallel.Layout, state: TrainState, runs: Sequence[Training]) -> list[Held]:
    """The state of each run, cut from their joint state, which is copied to the host at most once.

    The previous copy is written first, so that there is only one at a time.

    Args:
        layout: the layout of the replicas on the devices.
        state: the state of all runs on the devices.
        runs: the runs.
    """

    @cache
    def copies() -> list[TrainState]:
        for run in runs:
            run.checkpoints.wait()
        return apart(layout.collect(state), len(runs))

    def on_host(number: int) -> TrainState:
        return copies()[number]

    def variables(number: int) -> VariableDict | parallel.Placed:
        in_place = len(runs) == 1 and not layout.apart
        return layout.in_place(state.variables) if in_place else on_host(number).variables

    shares = state if layout.spread else None
    return [Held(partial(variables, n), partial(on_host, n), shares) for n in range(len(runs))]


class LeftChunk(Left):
    """A chunk of steps was abandoned.

    Attributes:
        states: the runs' states before the chunk, to be saved by the process that writes.
    """

    def __init__(self, signal_number: int, states: Sequence[TrainState]):
        super().__init__(signal_number)
        self.states = states


def make_unless_left(
    layout: parallel.Layout, runs: Sequence[Training], received: Sequence[int]
) -> UnlessLeft:
    """Make the function that runs a possibly long chunk unless a signal arrives.

    Args:
        layout: the layout of the state.
        runs: the runs of which it is the state.
        received: as in `unless_stopped`.

    Returns:
        A function of the chunk, given its first step and the state there, which the chunk takes to
        the state after it and its metrics. It returns that state, and the metrics on the host.
    """

    def unless_left(
        step: int, state: TrainState, chunk: Callable[[], tuple[TrainState, Metrics]]
    ) -> tuple[TrainState, Metrics]:
        before: list[TrainState] = []
        is_saved = all(run.saved == step for run in runs)
        if parallel.is_main_process() and not is_saved and not layout.spread:
            before = [each.on_host() for each in held_states(layout, state, runs)]

        def done() -> tuple[TrainState, Metrics]:
            state, metrics = chunk()
            return state, layout.collect(metrics)

        if layout.spread and not is_saved:
            return done()  # a sharded state has no copy to save
        try:
            return unless_stopped(done, received)
        except Left as left:
            raise LeftChunk(left.signal_number, before) from None

    return unless_left


class Later:
    """Work on the host that waits until the devices are busy with the next chunk."""

    def __init__(self):
        self._work: list[Callable[[], None]] = []

    def __call__(self, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Put off the call `function(*args, **kwargs)`."""
        self._work.append(partial(function, *args, **kwargs))

    def run(self) -> float:
        """Make the deferred calls in order, and return the seconds that they took."""
        begun = time.monotonic()
        work, self._work = self._work, []
        for call in work:
            call()
        return time.monotonic() - begun
