"""The exceptions that the command turns into a sentence and an exit code, and how it is shown."""

import signal


def legible(text: object) -> str:
    """Text of which a terminal prints every character and obeys none.

    Escapes, control characters and undecodable bytes, as names of files may have them, are spelled.
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(text))


class VaeJaxError(Exception):
    """An error that the user can mend: one sentence says what is wrong, where, and what to do."""


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """Training was stopped by SIGTERM or SIGINT, and its state is saved.

    Attributes:
        signal_number: the number of the signal.
    """

    def __init__(self, signal_number: int, step: int):
        self.signal_number = signal_number
        name = signal.Signals(signal_number).name
        super().__init__(
            f"Stopped by {name} after step {step}, which is saved; the same command goes on."
        )
