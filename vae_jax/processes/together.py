"""Processes that begin together and end together, whatever happens to one of them."""

import atexit
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator

import jax
from jax.errors import JaxRuntimeError

from vae_jax import parallel
from vae_jax.errors import Interrupted, VaeJaxError
from vae_jax.identity import Json
from vae_jax.processes.agreement import DisagreementError
from vae_jax.processes.launch import launch
from vae_jax.processes.meeting import meet, read, send
from vae_jax.progress import say

_FAREWELL: dict[str, Json] = {"farewell": True}


@contextlib.contextmanager
def together(
    versions: dict[str, str],
    *,
    start_timeout: float = 45,
    heartbeat_timeout: int = 100,
    shutdown_timeout: int = 300,
) -> Iterator[None]:
    """Join the other processes of a run, and leave with them.

    What processes compute together never returns when one of them is missing. JAX's heartbeats end
    the others only later, by an abort with a C++ stack trace; the connections of `meet` end them at
    once, with a sentence and status 1. A process that finishes, or is told to stop, says farewell
    and waits for the others' farewell, however long process 0 writes.

    Args:
        versions: the versions of the packages, which must be the same in all processes.
        start_timeout: seconds within which all processes have to come.
        heartbeat_timeout: seconds without a sign of life after which a process is taken for dead,
            as when its machine has lost power.
        shutdown_timeout: seconds within which JAX's own shutdown has to succeed, after all
            farewells.

    Raises:
        VaeJaxError: nothing says where the others are, one of them did not come, or they differ.
    """
    own = launch()
    connections = meet(own, versions, start_timeout)
    leaving, together_to_the_end = threading.Event(), False
    watches = [
        threading.Thread(target=_watch, args=(number, connections, leaving), daemon=True)
        for number in connections
    ]
    for connection in connections.values():
        _keep_alive(connection, heartbeat_timeout)
    for watch in watches:
        watch.start()
    try:
        # The service would catch SIGTERM, so that a waiting process could not be stopped.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            own.address,
            own.count,
            own.number,
            own.local_devices,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=shutdown_timeout,
        )
        parallel.check_devices()
        if parallel.is_main_process():
            say(_in_words())
        yield
        together_to_the_end = True
    except (Interrupted, DisagreementError) as error:  # which the others raise too
        together_to_the_end = True
        if isinstance(error, Interrupted) and error.computing:  # with others, who have left
            atexit.register(_exit_now, 128 + error.signal_number)
        raise
    except BaseException as error:  # JAX would wait at the exit for the others, who end now
        if isinstance(error, JaxRuntimeError):  # perhaps because another one has died
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
    """How many processes there are, and the devices of each, in a clause."""
    count, own = parallel.num_processes(), parallel.own_devices()
    return (
        f"{count} process{'es' * (count > 1)} \N{MULTIPLICATION SIGN} "
        f"{own['number']} device{'s' * (own['number'] != 1)} ({own['kind']})"
    )


def _keep_alive(connection: socket.socket, seconds: int) -> None:
    """Let the operating system find out whether the machine at the other end is alive."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        times = {socket.TCP_KEEPIDLE: seconds // 3, socket.TCP_KEEPINTVL: seconds // 6}
        for option, value in times.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, max(1, value))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _watch(number: int, connections: dict[int, socket.socket], leaving: threading.Event) -> None:
    """Wait for the farewell of a process, or for its death, of which the others are told."""
    match read(connections[number], None):
        case {"farewell": True}:
            return
        case {"died": int(died)}:
            pass
        case _:
            died = number
    if not leaving.is_set():
        for connection in connections.values():
            send(connection, {"died": died})
        say(
            f"vae-jax: Process {died} of this run has died or failed (its own output says why), so "
            "this one ends too: start all of them again, and they go on from the latest checkpoint."
        )
        os._exit(1)  # the main thread waits for what never comes


def _exit_now(status: int) -> None:
    """End this process without running the other functions that are registered for its exit."""
    sys.stdout.flush()
    os._exit(status)
