"""Progress of long-running work: a bar on a terminal and in a notebook, plain lines on a pipe.

Nothing is silent for longer than `SECONDS_BETWEEN_LINES`, or ignores a signal for much longer than
`SECONDS_TO_HEAR`.
"""

import contextlib
import html
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from vae_jax.errors import legible

SECONDS_BETWEEN_LINES = 10.0
# Signals are heard between chunks of steps: the longest time of a chunk, and the number of steps of
# the first one, before the time of a step is known.
SECONDS_TO_HEAR = 5.0
FIRST_STEPS = 100
_silent_since: float | None = None  # of a command that runs alone; None in a user's process


def begin_command() -> None:
    """Measure silence over the whole command from now on, not over each of its parts."""
    global _silent_since
    _silent_since = time.perf_counter()


def say(sentence: object) -> None:
    """Print a `sentence` as a line on standard error; ignored if that is closed."""
    global _silent_since
    if _silent_since is not None:
        _silent_since = time.perf_counter()
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # its reader is gone, or it is closed
            print(legible(sentence), file=sys.stderr, flush=True)


def open_streams() -> None:
    """Reopen closed standard streams, so that no file takes their descriptors and their output.

    Characters that the locale cannot encode are escaped.
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


class _Shown(Protocol):
    """A display handle of IPython."""

    def update(self, shown: object) -> None: ...


class _Html:
    """A line and a bar, as a notebook shows them."""

    def __init__(self, done: int, total: int, text: str):
        self._done, self._total, self._text = done, total, text

    def __repr__(self) -> str:
        return f"step {self._done}/{self._total}, {self._text}"

    def _repr_html_(self) -> str:
        bar = f"<progress value='{self._done}' max='{self._total}'></progress>"
        return f"{bar} step {self._done:,} of {self._total:,}, {html.escape(self._text)}"


def _notebook() -> Callable[[object], _Shown] | None:
    """A function that shows an object in a notebook's cell; None outside of notebooks."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if ipython is None or getattr(shell, "kernel", None) is None:
        return None
    return lambda shown: ipython.display.display(shown, display_id=True)


class Waiting:
    """A display of the current work and its duration.

    It appears at once on a terminal, elsewhere after every ten seconds of silence.

    Args:
        what: a description of the work, or a function that returns it.
        quiet: whether another display shows the work on a terminal.
    """

    _shown = False  # one at a time: only the outermost wait is shown

    def __init__(self, what: str | Callable[[], str], quiet: bool = False):
        self._what = what
        self._spins = not quiet and _on_terminal()
        self._said = self._begun = time.perf_counter()
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._say_again, daemon=True)
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._is_first = False

    def __enter__(self) -> "Waiting":
        self._is_first, Waiting._shown = not Waiting._shown, True
        if self._is_first and self._spins:
            self._bar.add_task(legible(self._sentence), total=None)
            self._bar.start()
        elif self._is_first and not _on_terminal():
            self._watch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_first:
            Waiting._shown = False
            self._done.set()
            if self._spins:
                self._bar.stop()
        if self._watch.is_alive():
            self._watch.join()

    @property
    def _sentence(self) -> str:
        return self._what if isinstance(self._what, str) else self._what()

    def heard(self) -> None:
        """Record that another line was printed."""
        self._said = self._begun = time.perf_counter()

    def _say_again(self) -> None:
        look = SECONDS_BETWEEN_LINES / 10  # shorter waits are not reported
        while not self._done.wait(look):
            now = time.perf_counter()
            said = self._said if _silent_since is None else _silent_since
            if now - said >= SECONDS_BETWEEN_LINES and now - self._begun >= look:
                self._said = now
                say(f"{self._sentence}, {now - self._begun:.0f} s")


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
        self._step = 0
        self._last_line = -SECONDS_BETWEEN_LINES
        self._plain = not _on_terminal()
        self._cell = _notebook()
        self._shown: _Shown | None = None
        self._waiting = Waiting(self._since, quiet=True)
        self._bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=self._plain,
        )
        self._task = self._bar.add_task("", total=num_steps, status="compiling")

    def __enter__(self) -> "Progress":
        self._bar.start()
        self._waiting.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiting.__exit__(*exception)
        self._bar.stop()

    def _since(self) -> str:
        """The description of the wait while no step ends."""
        if self._first is None:
            return "Compiling"
        return f"After step {self._step}/{self.num_steps}"

    def say(self, sentence: str) -> None:
        """Print a `sentence` on its own line."""
        if self._plain:
            say(sentence)
        else:
            self._bar.console.print(Text(legible(sentence)))

    def update(self, step: int, loss: float) -> None:
        """Show that the chunk up to `step` is finished; `loss` is its mean in nats."""
        now, self._step = time.perf_counter(), step
        status = f"loss {loss:.2f} nats"
        self._waiting.heard()
        if self._first is None:
            self._first = step, now
        else:
            first_step, start = self._first
            self.images_per_second = (step - first_step) * self.images_per_step / (now - start)
            status = f"{self.images_per_second:,.0f} images/s, {status}"
        self._bar.update(self._task, completed=step, status=status)
        due = now - self._last_line >= SECONDS_BETWEEN_LINES or step == self.num_steps
        if self._plain and (due or self._cell is not None):
            self._last_line = now
            if self.images_per_second:
                left = (self.num_steps - step) * self.images_per_step / self.images_per_second
                status += f", {left:.0f} s left"
            if self._cell is None:
                self.say(f"step {step}/{self.num_steps}, {status}")
            elif self._shown is None:
                self._shown = self._cell(_Html(step, self.num_steps, status))
            else:
                self._shown.update(_Html(step, self.num_steps, status))


class Counter:
    """A display of the share of work that is done, on standard error.

    Args:
        sentence: a description of the work.
    """

    def __init__(self, sentence: str):
        self.sentence = legible(sentence)
        self._waiting = Waiting(self.sentence, quiet=True)
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
        self._waiting.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiting.__exit__(*exception)
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` units are done."""
        self._bar.update(self._task, completed=done, total=total)
        now = time.perf_counter()
        if self._plain and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._waiting.heard()
            say(f"{self.sentence}: {100 * done // total} %")


def largest_divisor(number: int, most: float) -> int:
    """The largest divisor of `number` that is at most `most`, or 1."""
    return max((n for n in range(1, int(min(number, most)) + 1) if number % n == 0), default=1)


@dataclass
class Pace:
    """The number of steps of a chunk, few enough that a signal is handled in time.

    Attributes:
        longest: the largest number of steps of a chunk, which any other divides.
        steps: the number of steps of a chunk.
    """

    longest: int
    steps: int = field(init=False)
    _is_compiled: bool = field(init=False, default=False)
    _fits: bool = field(init=False, default=True)

    def __post_init__(self):
        self.steps = largest_divisor(self.longest, FIRST_STEPS)

    def changes(self, steps: int, seconds: float, step: int) -> bool:
        """Whether chunks have another number of steps from now on.

        The number changes after two chunks in a row that took too long, or too short: in a single
        one the process may have been paused.

        Args:
            steps: the number of steps of the last chunk.
            seconds: the time that it took.
            step: the number of steps so far.
        """
        first, self._is_compiled = not self._is_compiled, True
        if first or steps != self.steps:
            return False
        fitting = largest_divisor(self.longest, SECONDS_TO_HEAR * steps / max(seconds, 1e-3))
        fitted, self._fits = self._fits, self.steps <= 2 * fitting <= 4 * self.steps
        if fitted or self._fits or step % fitting:  # otherwise it is worth a compilation
            return False
        self.steps, self._is_compiled, self._fits = fitting, False, True
        return True
