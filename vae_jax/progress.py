"""Progress of what runs for long: a bar on a terminal, plain lines on a pipe."""

import contextlib
import io
import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from vae_jax.errors import legible

SECONDS_BETWEEN_LINES = 10.0


def say(sentence: object) -> None:
    """Print a sentence on standard error, its own line; where nobody can read it, go on."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # its reader is gone, or it is closed
            print(legible(sentence), file=sys.stderr, flush=True)


def open_streams() -> None:
    """Open what the caller closed, or files would take its place and what is printed go there.

    What the locale cannot encode is spelled.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _on_terminal() -> bool:
    """Whether standard error is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


class Progress:
    """A display of steps, images/s, time left and the current loss, on standard error.

    Args:
        num_steps: the number of steps in all.
        images_per_step: the number of images in a step, over all devices and seeds.

    Attributes:
        images_per_second: the speed since the end of this process's first chunk, which includes the
            compilation; None before the end of the second.
    """

    def __init__(self, num_steps: int, images_per_step: int):
        self.num_steps = num_steps
        self.images_per_step = images_per_step
        self.images_per_second: float | None = None
        self._first: tuple[int, float] | None = None
        self._last_line = -SECONDS_BETWEEN_LINES
        self._plain = not _on_terminal()
        self._bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=self._plain,
        )
        self._task = self._bar.add_task("", total=num_steps, status="compiling")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def say(self, sentence: str) -> None:
        """Print a sentence on its own line."""
        if self._plain:
            say(sentence)
        else:
            self._bar.console.print(Text(legible(sentence)))

    def update(self, step: int, loss: float) -> None:
        """Show that the chunk up to `step` is finished; `loss` is its mean in nats."""
        now = time.perf_counter()
        status = f"loss {loss:.2f} nats"
        if self._first is None:
            self._first = step, now
        else:
            first_step, start = self._first
            self.images_per_second = (step - first_step) * self.images_per_step / (now - start)
            status = f"{self.images_per_second:,.0f} images/s, {status}"
        self._bar.update(self._task, completed=step, status=status)
        due = now - self._last_line >= SECONDS_BETWEEN_LINES or step == self.num_steps
        if self._plain and due:
            self._last_line = now
            if self.images_per_second:
                left = (self.num_steps - step) * self.images_per_step / self.images_per_second
                status += f", {left:.0f} s left"
            self.say(f"step {step}/{self.num_steps}, {status}")


class Counter:
    """A display of how much of something is done, on standard error.

    Args:
        sentence: what is being done, in words.
    """

    def __init__(self, sentence: str):
        self.sentence = legible(sentence)
        self._last_line = time.perf_counter()
        self._plain = not _on_terminal()
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=self._plain,
        )
        self._task = self._bar.add_task(self.sentence, total=None)

    def __enter__(self) -> "Counter":
        if self._plain:
            say(f"{self.sentence} (once)...")
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Show that a part of the total is done."""
        self._bar.update(self._task, completed=done, total=total)
        now = time.perf_counter()
        if self._plain and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(f"{self.sentence}: {100 * done // total} %")
