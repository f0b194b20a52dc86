"""Signals that stop a run."""

import atexit
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from types import FrameType
from typing import TypeVar

from jax._src import config  # jax.config does not show the values that a `with` has set

from vae_jax.processes.agreement import Choice

Result = TypeVar("Result")

# SIGTERM at a shutdown, Ctrl-C, and the signals that schedulers can send before a time limit.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
# The time that work may continue after a signal, and that of one look, in seconds.
SECONDS_TO_END = 5.0
_LOOK = 0.5


class Left(Exception):  # noqa: N818  (nothing went wrong)
    """A process was told to stop, and repeatable work was abandoned.

    Attributes:
        signal_number: the number of the signal.
    """

    def __init__(self, signal_number: int):
        self.signal_number = signal_number
        super().__init__(signal.Signals(signal_number).name)


def unless_stopped(work: Callable[[], Result], received: Sequence[int]) -> Result:
    """The result of work that may take long, such as compiling.

    It runs in a thread, since Python handles signals only between its own instructions. Once a
    process is told to stop, the work has some seconds to end; then all processes abandon it, or
    none does. Abandoned work runs until its process ends; its result is not used.

    Args:
        work: a function without side effects, the same in all processes.
        received: the signals that this process has received, as `stop_signals` yields them.

    Raises:
        Left: the work was abandoned.
    """
    result: Future[Result] = Future()
    settings = _own_settings()

    def do() -> None:
        try:
            with contextlib.ExitStack() as stack:
                for setting, value in settings:
                    stack.enter_context(setting(value))
                result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    choice, latest = Choice(), float("inf")
    threading.Thread(target=do, daemon=True).start()
    try:
        while not wait([result], _LOOK).done:
            if received:
                latest = min(latest, time.monotonic() + SECONDS_TO_END)
            if time.monotonic() >= latest:
                choice.make(str(max(received)))
            if choice.made:
                break
        if number := choice.make(""):
            raise Left(int(number))
    except BaseException:
        atexit.register(wait, [result])  # or JAX would be shut down while it computes
        raise
    return result.result()


def _own_settings() -> list[tuple[config.State, object]]:
    """JAX's settings from `with` statements around the caller, which hold in its thread alone."""
    every = [(state, state.get_local()) for state in config.config_states.values()]
    return [(state, value) for state, value in every if value is not config.config_ext.unset]


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the signals that stop a run; a second signal of the same kind ends the process.

    JAX's preemption service handles SIGTERM alone, and catches it even if nobody asks the service,
    so that a waiting process cannot be stopped (tests/test_processes.py).

    Yields:
        The numbers of the signals received so far.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone receives them
        yield received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        for number in before:
            signal.signal(number, receive)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
