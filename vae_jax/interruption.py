"""SIGTERM and SIGINT: training finishes its chunk, saves, and leaves."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """SIGTERM or SIGINT came, and the state was saved."""

    def __init__(self, signal_number: int, step: int):
        self.signal_number = signal_number
        name = signal.Signals(signal_number).name
        super().__init__(
            f"Stopped by {name} after step {step}, which is saved; the same command goes on."
        )


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one does kill."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, receive)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
