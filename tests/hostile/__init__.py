"""Unlucky situations, by kind: each module is a table `ROWS`, which `test_hostile.py` runs.

To add a kind, add a module.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def nothing_is_written(folder: Path) -> None:
    """The state after most refusals."""
    assert list(folder.iterdir()) == []


@dataclass(frozen=True)
class Row:
    """A situation and how it is met.

    Attributes:
        situation: what is wrong, in a few words.
        act: the user's doing, given an empty folder.
        sentence: a part of the refusal; "" where the situation is no reason to refuse.
        after: checks the folder afterwards.
        slow: whether it takes more than a second.
    """

    situation: str
    act: Callable[[Path], object]
    sentence: str
    after: Callable[[Path], None] = nothing_is_written
    slow: bool = False
