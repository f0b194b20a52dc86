"""The exceptions that the command line turns into a sentence and an exit code."""

import signal


class VaeJaxError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do."""


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """SIGTERM or SIGINT came, and the state was saved."""

    def __init__(self, signal_number: int, step: int):
        self.signal_number = signal_number
        name = signal.Signals(signal_number).name
        super().__init__(
            f"Stopped by {name} after step {step}, which is saved; the same command goes on."
        )
