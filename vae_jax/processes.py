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
from typing import Any

import jax
from jax._src import distributed  # jax.distributed (0.10.2) shows neither the address nor the store

from vae_jax.errors import Interrupted, VaeJaxError

SECONDS_TO_MEET = 30
FAREWELL = b"."
_KEY = "vae_jax/line"
_SENTENCE = (
    "vae-jax: Another process of this run has died, so this one ends too: start all of them again, "
    "and they go on from the latest checkpoint."
)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one does kill."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
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
def together() -> Iterator[None]:
    """Within it, this process ends, with a sentence and status 1, soon after another one dies.

    What processes compute together never returns when one of them is missing, and JAX looks for
    signs of life every other minute. So each holds a line to process 0, and an operating system
    closes the lines of those that die. Those that finish, or are told to stop, say farewell first.
    Where no line can be laid, it is left to JAX.
    """
    lines, parted = _lines(), threading.Event()
    for line in lines:
        threading.Thread(target=_follow, args=(line, parted), daemon=True).start()
    last = b""
    try:
        yield
        last = FAREWELL
    except Interrupted:  # and so are the others
        last = FAREWELL
        raise
    except BaseException as error:  # JAX would wait at the exit for the others, who end now
        atexit.register(_leave, 2 if isinstance(error, VaeJaxError) else 1)
        raise
    finally:
        parted.set()
        for line in lines:
            with contextlib.suppress(OSError):  # the other is gone already
                line.sendall(last)
                line.shutdown(socket.SHUT_WR)


def _lines() -> list[socket.socket]:
    """Process 0's connections to all others, and each one's to process 0."""
    client: Any = distributed.global_state.client
    if jax.process_index() > 0:
        port, token = client.blocking_key_value_get(_KEY, 1000 * SECONDS_TO_MEET).split()
        host = str(distributed.global_state.coordinator_address).rsplit(":", 1)[0].strip("[]")
        try:
            line = socket.create_connection((host, int(port)), SECONDS_TO_MEET)
        except OSError:
            return []
        line.sendall(token.encode())
        line.settimeout(None)
        return [line]
    lines = []
    token = secrets.token_hex(16)
    with socket.create_server(("", 0)) as server, contextlib.suppress(TimeoutError):
        client.key_value_set(_KEY, f"{server.getsockname()[1]} {token}")
        server.settimeout(SECONDS_TO_MEET)
        while len(lines) < jax.process_count() - 1:
            line, _ = server.accept()
            line.settimeout(SECONDS_TO_MEET)
            if line.recv(len(token), socket.MSG_WAITALL) == token.encode():
                line.settimeout(None)
                lines.append(line)
    return lines


def _follow(line: socket.socket, parted: threading.Event) -> None:
    """Waits for the farewell at the line's other end, or for its death."""
    try:
        last = line.recv(1)
    except OSError:
        last = b""
    if last != FAREWELL and not parted.is_set():
        print(_SENTENCE, file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits for what never comes


def _leave(status: int) -> None:
    """Ends this process without what was to be done at its exit."""
    sys.stdout.flush()
    os._exit(status)
