"""The processes of a run: signals that stop one, and how all end when one dies."""

import atexit
import contextlib
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from jax._src import distributed  # jax.distributed (0.10.2) shows neither the address nor the store

from vae_jax import parallel
from vae_jax.errors import Interrupted, VaeJaxError

SECONDS_TO_CONNECT = 30
FAREWELL = b"."
_ADDRESS = "vae_jax/address"
_SENTENCE = (
    "vae-jax: Another process of this run has died, so this one ends too: start all of them again, "
    "and they go on from the latest checkpoint."
)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them; a second one of a kind does kill."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # which alone is told of them
        yield received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, receive)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """End this process, with a sentence and status 1, soon after another one of the run dies.

    What processes compute together never returns when one of them is missing, and JAX looks for
    signs of life only every other minute. So each process holds a connection to process 0, and the
    operating system closes the connections of a process that dies. A process that finishes, or is
    told to stop, sends a farewell first. Where no connection can be made, JAX's own check remains.
    """
    connections, leaving = _connections(), threading.Event()
    for connection in connections:
        threading.Thread(target=_watch, args=(connection, leaving), daemon=True).start()
    last = b""
    try:
        yield
        last = FAREWELL
    except Interrupted:  # and so are the others
        last = FAREWELL
        raise
    except BaseException as error:  # JAX would wait at the exit for the others, who end now
        atexit.register(_exit_now, 2 if isinstance(error, VaeJaxError) else 1)
        raise
    finally:
        leaving.set()
        for connection in connections:
            with contextlib.suppress(OSError):  # the other is gone already
                connection.sendall(last)
                connection.shutdown(socket.SHUT_WR)


def _connections() -> list[socket.socket]:
    """Process 0's connections to all others, or another process's one to process 0."""
    client = distributed.global_state.client
    assert client is not None, "the processes have not been started"
    if not parallel.is_main_process():
        milliseconds = 1000 * SECONDS_TO_CONNECT
        port, token = client.blocking_key_value_get(_ADDRESS, milliseconds).split()
        host = str(distributed.global_state.coordinator_address).rsplit(":", 1)[0].strip("[]")
        try:
            connection = socket.create_connection((host, int(port)), SECONDS_TO_CONNECT)
        except OSError:
            return []
        connection.sendall(token.encode())
        connection.settimeout(None)
        return [connection]
    connections: list[socket.socket] = []
    token = secrets.token_hex(16)
    with socket.create_server(("", 0)) as server, contextlib.suppress(TimeoutError):
        client.key_value_set(_ADDRESS, f"{server.getsockname()[1]} {token}")
        server.settimeout(SECONDS_TO_CONNECT)
        while len(connections) < parallel.num_processes() - 1:
            connection, _ = server.accept()
            connection.settimeout(SECONDS_TO_CONNECT)
            if connection.recv(len(token), socket.MSG_WAITALL) == token.encode():
                connection.settimeout(None)
                connections.append(connection)
    return connections


def _watch(connection: socket.socket, leaving: threading.Event) -> None:
    """Wait for the farewell of the process at the other end, or for its death."""
    try:
        last = connection.recv(1)
    except OSError:
        last = b""
    if last != FAREWELL and not leaving.is_set():
        print(_SENTENCE, file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits for what never comes


def _exit_now(status: int) -> None:
    """End this process without the other functions that are registered for its exit."""
    sys.stdout.flush()
    os._exit(status)
