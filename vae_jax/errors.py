"""Errors, which the command turns into a sentence and an exit code; short displays of objects."""

import html
import signal


def legible(text: object) -> str:
    """The text with every character escaped that a terminal would obey rather than print.

    These are escapes, control characters and undecodable bytes, which names of files may have.
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(text))


class Shown:
    """The base of objects shown in a few lines, or as a table in notebooks, without arrays."""

    @property
    def shown(self) -> dict[str, str]:
        """The lines to show: their names, and their values."""
        raise NotImplementedError

    def __repr__(self) -> str:
        width = max(map(len, self.shown), default=0)
        return "\n".join(f"{name:{width}}  {legible(text)}" for name, text in self.shown.items())

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th style='text-align: left'>{html.escape(name)}</th>"
            f"<td style='text-align: left'>{html.escape(legible(text))}</td></tr>"
            for name, text in self.shown.items()
        )
        return f"<table>{''.join(rows)}</table>"


class VaeJaxError(Exception):
    """An error that the user can fix, in one sentence: the fault, its location and the remedy."""


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """Training was stopped by SIGTERM or SIGINT, and its state is saved.

    Attributes:
        signal_number: the number of the signal.
        computing: whether an abandoned thread still runs; the exit should not wait for it.
    """

    def __init__(self, signal_number: int, step: int, computing: bool = False):
        self.signal_number, self.computing = signal_number, computing
        name = signal.Signals(signal_number).name
        super().__init__(
            f"Stopped by {name} after step {step}; its state is saved. "
            "Run the same command to resume."
            if step
            else f"Stopped by {name} before the first step. Run the same command to begin again."
        )
