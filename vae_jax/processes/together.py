"""Processes that begin and end together, whatever happens to one of them."""

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax.errors import JaxRuntimeError

from vae_jax import parallel
from vae_jax.errors import Interrupted, VaeJaxError
from vae_jax.identity import Json
from vae_jax.processes.agreement import DisagreementError
from vae_jax.processes.launch import launch
from vae_jax.processes.rendezvous import meet, read, send
from vae_jax.progress import say

_FAREWELL: dict[str, Json] = {"farewell": True}
_ALIVE: dict[str, Json] = {"alive": True}


@contextlib.contextmanager
def together(
    versions: dict[str, str],
    *,
    start_timeout: float = 300,
    heartbeat_timeout: int = 100,
    shutdown_timeout: int = 300,
) -> Iterator[None]:
    """Join the other processes of a run, and leave with them.

    A joint computation never returns if a process is missing. JAX's heartbeats end the others by an
    abort with a C++ stack trace; the connections of `meet` end them with a sentence and status 1,
    at once if a process dies, and after missed heartbeats if it hangs. A process that finishes, or
    is told to stop, says farewell and waits for the others' farewell, however long process 0
    writes.

    Args:
        versions: the versions of the packages, which must be the same in all processes.
        start_timeout: seconds to wait for all processes.
        heartbeat_timeout: seconds without a sign of life after which a process is taken for dead,
            as when it hangs or its machine has lost power.
        shutdown_timeout: seconds to wait for JAX's own shutdown, after all farewells.

    Raises:
        VaeJaxError: the environment does not describe the other processes, one of them did not
            come, or they differ.
    """
    own = launch()
    connections = meet(own, versions, start_timeout)
    leaving, together_to_the_end = threading.Event(), False
    every = connections, leaving, heartbeat_timeout
    watches = [
        threading.Thread(target=_watch, args=(number, *every), daemon=True)
        for number in connections
    ]
    for thread in (*watches, threading.Thread(target=_beat, args=every, daemon=True)):
        thread.start()
    try:
        # The service would catch SIGTERM, so that a waiting process could not be stopped.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            own.address,
            own.count,
            own.number,
            own.local_devices,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=2 * heartbeat_timeout,  # so that our sentence comes first
            shutdown_timeout_seconds=shutdown_timeout,
        )
        parallel.check_devices()
        if parallel.is_main_process():
            say(_in_words())
        yield
        together_to_the_end = True
    except (Interrupted, DisagreementError) as error:  # which the others raise too
        together_to_the_end = True
        if isinstance(error, Interrupted) and error.computing:  # a thread waits for those that left
            atexit.register(_exit_now, 128 + error.signal_number)
        raise
    except BaseException as error:  # at exit JAX would wait for processes that are ending
        if isinstance(error, JaxRuntimeError):  # perhaps because another process has died
            for watch in watches:
                watch.join(1)
        atexit.register(_exit_now, 2 if isinstance(error, VaeJaxError) else 1)
        raise
    finally:
        if together_to_the_end:
            for connection in connections.values():
                send(connection, _FAREWELL)
            for watch in watches:
                watch.join()
            jax.distributed.shutdown()
            parallel.go_on_alone()
        leaving.set()
        for connection in connections.values():
            with contextlib.suppress(OSError):  # the other is gone already
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _in_words() -> str:
    """The number of processes, and the devices of each, in a clause."""
    count, own = parallel.num_processes(), parallel.own_devices()
    return (
        f"{count} process{'es' * (count > 1)} \N{MULTIPLICATION SIGN} "
        f"{own['number']} device{'s' * (own['number'] != 1)} ({own['kind']})"
    )


def _beat(connections: dict[int, socket.socket], leaving: threading.Event, seconds: float) -> None:
    """Show the others that this process lives."""
    while not leaving.wait(seconds / 4):
        for connection in connections.values():
            send(connection, _ALIVE)


def _watch(
    number: int, connections: dict[int, socket.socket], leaving: threading.Event, seconds: float
) -> None:
    """Wait for the farewell of a process, or for its end, of which the others are told."""
    latest = time.monotonic() + seconds
    while (found := read(connections[number], seconds)) == _ALIVE:
        latest = time.monotonic() + seconds
    match found:
        case {"farewell": True}:
            return
        case {"end": str(what)}:
            pass
        case _ if time.monotonic() >= latest:
            what = f"Process {number} of this run has shown no sign of life for {seconds:g} s"
        case _:
            what = f"Process {number} of this run has died or failed (its own output says why)"
    if not leaving.is_set():
        for connection in connections.values():
            send(connection, {"end": what})
        say(
            f"vae-jax: {what}, so this one ends too: start all of them again, and they go on from "
            "the latest checkpoint."
        )
        os._exit(1)  # the main thread waits forever


def _exit_now(status: int) -> None:
    """End this process without running the other functions that are registered for its exit."""
    sys.stdout.flush()
    os._exit(status)
