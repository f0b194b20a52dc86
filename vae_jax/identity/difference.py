"""The differences between two descriptions, in words."""

from collections.abc import Iterator
from typing import NamedTuple

from vae_jax.identity.description import Json

ABSENT = "absent"


class Difference(NamedTuple):
    """A dotted name at which two descriptions differ, and their values there."""

    name: str
    there: Json
    here: Json

    @property
    def of_code(self) -> bool:
        """Whether the difference is in the checksum of code."""
        return self.name.endswith(".class")

    def __str__(self) -> str:
        """The difference in a clause."""
        if self.of_code:
            return f"the code of {self.name.removesuffix('.class')} is not what it was"
        return f"{self.name.removesuffix('.is')} is {self.there} there, {self.here} here"


def differences(there: Json, here: Json) -> Iterator[Difference]:
    """The leaves at which the descriptions differ; those of `there` alone come last."""
    ours, theirs = _flat(here), _flat(there)
    for name in {**ours, **theirs}:
        one, other = theirs.get(name, ABSENT), ours.get(name, ABSENT)
        if one != other:
            yield Difference(name, _plain(one), _plain(other))


def _plain(value: Json) -> Json:
    """A whole number without the decimal point that Optax's schedules add when they are called."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flat(tree: Json, prefix: str = "") -> dict[str, Json]:
    """Nested objects and lists as one dictionary, with dotted names."""
    match tree:
        case dict() if tree:
            items = tree.items()
        case list() if tree:
            items = enumerate(tree)
        case _:
            return {prefix: tree}
    flat: dict[str, Json] = {}
    for name, value in items:
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat
