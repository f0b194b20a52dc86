"""Signals that stop a run."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# SIGTERM of systems that stop, Ctrl-C, and what schedulers can be told to send before their limit.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the signals that stop a run instead of dying of them; a second of a kind does kill.

    JAX's own notice of preemption hears SIGTERM alone, and takes it even where nobody asks for the
    notice, so that a process that waits cannot be stopped.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone is told of them
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
