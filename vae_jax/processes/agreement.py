"""The agreement of processes on their run, so that none silently trains something else."""

import contextlib
import itertools
import json
from collections.abc import Callable

from jax._src import distributed  # jax.distributed shows no store of keys and values
from jax.errors import JaxRuntimeError

from vae_jax.errors import VaeJaxError
from vae_jax.identity import ABSENT, Json, differences

_SECONDS = 1  # seconds between looks, after each of which Python may act on a signal
_tellings, _choices = itertools.count(), itertools.count()
_round = 0  # the number of the next agreement


class DisagreementError(VaeJaxError):
    """The processes of a run have different arguments, data or versions; each of them raises it."""


def objection(number: int, theirs: Json, ours: Json) -> str:
    """A sentence if process `number` differs from process 0, else an empty text.

    Args:
        number: the number of the process.
        theirs: the record of its run.
        ours: the record of process 0.
    """
    found = list(differences(theirs, ours))
    clear = [each for each in found if ABSENT not in each]
    for each in [*clear, *found][:1]:
        what = f"{each.name.removesuffix('.is')} is {each.there} instead of {each.here}"
        if each.of_code:
            what = f"the code of {each.name.removesuffix('.class')} is different"
        return (
            f"Process {number} was given another run than process 0 ({what}): start all processes "
            "with the same command, files and packages."
        )
    return ""


def agree(content: dict[str, Json]) -> None:
    """Check that all processes run the same; they wait here for each other.

    They meet in the store of JAX's coordination service, not on devices, on which unequal programs
    would wait for each other forever.

    Args:
        content: the record of this process's run, its most familiar entries first.

    Raises:
        DisagreementError: a process runs something else.
    """
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        return
    global _round
    prefix, _round = _prefix(), _round + 1
    if state.process_id == 0:
        state.client.key_value_set(f"{prefix}/content", json.dumps(content))
    ours = json.loads(_wait_for(f"{prefix}/content") or "null")
    theirs = json.loads(json.dumps(content))
    state.client.key_value_set(
        f"{prefix}/{state.process_id}", objection(state.process_id, theirs, ours)
    )
    for number in range(state.num_processes):
        if sentence := _wait_for(f"{prefix}/{number}"):
            raise DisagreementError(sentence)


def told_by_main(find: Callable[[], str]) -> str | None:
    """A text that process 0 finds and tells the others.

    Args:
        find: a function that process 0 calls, for as long as it takes.

    Returns:
        Its result; in another process None, if process 0 reaches `agree` without this call.
    """
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        return find()
    key = f"vae_jax/told/{next(_tellings)}"
    if state.process_id != 0:
        return _wait_for(key, unless=f"{_prefix()}/content")
    found = find()
    state.client.key_value_set(key, found)
    return found


class Choice:
    """A choice that the first process makes for all; all processes create theirs in one order."""

    def __init__(self):
        self._key = f"vae_jax/choice/{next(_choices)}"
        self._alone: str | None = None

    def make(self, value: str) -> str:
        """Choose `value`; returns the choice, whoever made it first."""
        state = distributed.global_state
        if state.client is None or state.num_processes == 1:
            self._alone = value if self._alone is None else self._alone
            return self._alone
        with contextlib.suppress(JaxRuntimeError):  # another was first
            state.client.key_value_set(self._key, value)
        return state.client.blocking_key_value_get(self._key, 60_000)

    @property
    def made(self) -> str | None:
        """The choice, or None."""
        return self._alone if self._alone is not None else _value_of(self._key)


def _prefix() -> str:
    return f"vae_jax/agreement/{_round}"


def _wait_for(key: str, unless: str | None = None) -> str | None:
    """The value of a key, once a process has set it, however long it prepares its data.

    Args:
        key: its name.
        unless: another key; the result is None if that is set first.
    """
    client = distributed.global_state.client
    assert client is not None
    while True:
        try:
            return client.blocking_key_value_get(key, 1000 * _SECONDS)
        except JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                raise
        if unless is not None and _value_of(unless) is not None:
            return None


def _value_of(key: str) -> str | None:
    """The value of a key, if a process has set it."""
    client = distributed.global_state.client
    with contextlib.suppress(JaxRuntimeError):
        return None if client is None else client.key_value_try_get(key)
