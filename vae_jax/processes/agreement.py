"""Processes compare what they run, so that none trains something else in silence."""

import itertools
import json

from jax._src import distributed  # jax.distributed shows no store of keys and values
from jax.errors import JaxRuntimeError

from vae_jax.errors import VaeJaxError
from vae_jax.identity import ABSENT, Json, differences

_SECONDS = 1  # between looks, after each of which Python may act on a signal
_rounds = itertools.count()


class DisagreementError(VaeJaxError):
    """The processes of a run were given different things; each of them raises it."""


def objection(number: int, theirs: Json, ours: Json) -> str:
    """A sentence where process `number` runs something else than process 0; empty where not."""
    found = list(differences(theirs, ours))
    clear = [each for each in found if ABSENT not in each]
    for each in [*clear, *found][:1]:
        what = f"{each.name.removesuffix('.is')} is {each.there} instead of {each.here}"
        if each.of_code:
            what = f"the code of {each.name.removesuffix('.class')} is another"
        return (
            f"Process {number} was given another run than process 0 ({what}): start all processes "
            "with the same command, files and packages."
        )
    return ""


def agree(content: dict[str, Json]) -> None:
    """Make sure that all processes run the same; each waits here for the others.

    They meet in the store of JAX's coordination service, on no device, where programs that differ
    would wait for each other for ever.

    Args:
        content: what this process runs, those names first by which a user tells runs apart.

    Raises:
        DisagreementError: a process runs something else.
    """
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        return
    prefix = f"vae_jax/agreement/{next(_rounds)}"
    if state.process_id == 0:
        state.client.key_value_set(f"{prefix}/content", json.dumps(content))
    ours = json.loads(_wait_for(f"{prefix}/content"))
    theirs = json.loads(json.dumps(content))
    state.client.key_value_set(
        f"{prefix}/{state.process_id}", objection(state.process_id, theirs, ours)
    )
    for number in range(state.num_processes):
        if sentence := _wait_for(f"{prefix}/{number}"):
            raise DisagreementError(sentence)


def _wait_for(key: str) -> str:
    """The value of a key, once a process has set it, however long it prepares its data."""
    client = distributed.global_state.client
    assert client is not None
    while True:
        try:
            return client.blocking_key_value_get(key, 1000 * _SECONDS)
        except JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                raise
