"""A budget of training: what `vae-jax table` and `vae-jax figures` may spend for now."""

import contextlib
import re
import time
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass

from vae_jax.errors import VaeJaxError


@dataclass(frozen=True)
class Budget:
    """The limit of training for now.

    Attributes:
        epochs: the number of epochs of each run.
        until: a time of `time.monotonic`, for all runs.
    """

    epochs: float = float("inf")
    until: float = float("inf")

    @classmethod
    def of(cls, text: str | None) -> "Budget":
        """The budget in a text such as 40epochs or 1.5h; None is no limit.

        Raises:
            VaeJaxError: the text is no such budget.
        """
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(epochs?|h|hours?)", text)
        if match is None:
            raise VaeJaxError(f"--budget is {text}: give epochs or hours, as 40epochs or 1.5h.")
        number = float(match[1])
        if match[2].startswith("h"):
            return cls(until=time.monotonic() + 3600 * number)
        return cls(epochs=number)

    @property
    def is_limited(self) -> bool:
        """Whether training can end early."""
        return min(self.epochs, self.until) < float("inf")

    def is_spent(self, epochs: float) -> bool:
        """Whether a run that has trained for `epochs` has used its budget."""
        return epochs >= self.epochs or time.monotonic() >= self.until


_UNLIMITED = Budget()
_CURRENT = ContextVar("budget", default=_UNLIMITED)


def current_budget() -> Budget:
    """The budget of the training that begins now."""
    return _CURRENT.get()


@contextlib.contextmanager
def within(budget: Budget) -> Generator[None]:
    """A context in which training ends early, without an error, when a `budget` is spent."""
    token = _CURRENT.set(budget)
    try:
        yield
    finally:
        _CURRENT.reset(token)
