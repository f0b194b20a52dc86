"""The common base of likelihoods on levels, and the limits of scales."""

from typing import Literal

from vae_jax.interfaces import Likelihood, Support

# No pixel needs a scale of e^10 times the range of the data, and e^89 overflows float32.
MAX_LOG_SCALE = 10.0

Levels = Literal[256, 32]
"""The number of grey levels of eight or of five bits."""


class _Supports:
    """The support for the likelihood's number of levels; on the class, for the default number."""

    def __get__(self, part: "OfLevels | None", owner: type["OfLevels"]) -> frozenset[Support]:
        levels = owner.levels if part is None else part.levels
        return frozenset({"uint8" if levels == 256 else "uint5"})


class OfLevels(Likelihood, kw_only=True):
    """A mass on the levels k/(levels - 1) of pixels, k = 0, ..., levels - 1.

    Attributes:
        levels: the number of levels: 256, or 32 for data whose protocol is `five_bits`.
    """

    levels: Levels = 256

    supports = _Supports()  # pyright: ignore[reportAssignmentType]
    measure = "mass"
