"""Early stopping: the validations since the best one, counted from metrics.jsonl."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


def score_of(validation: Mapping[str, object]) -> float | None:
    """The number by which states are compared: the NLL, else the negative ELBO or the distortion.

    Args:
        validation: numbers of a validation by name, one or one for each seed; others are ignored.

    Returns:
        The mean over seeds, nan if one is not finite; None if nothing was validated. It is rounded
        to float32, as processes exchange it.
    """
    values = [value for name, value in validation.items() if name.startswith("valid_")]
    return float(np.float32(np.mean(np.asarray(values[-1], float)))) if values else None


@dataclass
class Patience:
    """The best validation so far, and the number of validations since.

    Attributes:
        most: the number of validations without a better one after which training ends; None: never.
        best: the best score.
        step: the step of the best score.
        waited: the number of validations since then.
    """

    most: int | None
    best: float = float("inf")
    step: int = 0
    waited: int = 0

    def see(self, step: int, score: float) -> None:
        """Take the `score` of a `step` into account; a non-finite one is never an improvement."""
        if np.isfinite(score) and score < self.best:
            self.best, self.step, self.waited = score, step, 0
        else:
            self.waited += 1

    def see_again(self, lines: Iterable[Mapping[str, Any]], until: int) -> None:
        """Take the validations in a run's `lines` into account, up to the step `until`."""
        for line in lines:
            if line["step"] <= until and (score := score_of(line)) is not None:
                self.see(line["step"], score)

    @property
    def is_over(self) -> bool:
        """Whether training ends now."""
        return self.most is not None and self.waited >= self.most

    @property
    def summary(self) -> dict[str, int]:
        """The entry in summary.json; empty without patience."""
        return {} if self.most is None else {"patience": self.most, "best_step": int(self.step)}
