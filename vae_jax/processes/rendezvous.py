"""The meeting of a run's processes at process 0, before JAX connects them.

JAX aborts a process that it cannot connect, with a C++ stack trace, does not report which one is
missing, and lets two runs share a port. Therefore they meet on JAX's port first. Their connections
stay open, and the operating system closes those of a process that dies.
"""

import contextlib
import errno
import json
import socket
import time

from vae_jax.errors import VaeJaxError
from vae_jax.identity import Json
from vae_jax.processes.agreement import DisagreementError, objection
from vae_jax.processes.launch import Launch

_LONGEST = 2**20  # bytes of a message
_SECONDS = 5  # for one to arrive from a process that has connected
_PAUSE = 0.2


def meet(launch: Launch, versions: dict[str, str], seconds: float) -> dict[int, socket.socket]:
    """Wait for the other processes.

    Args:
        launch: this process and the meeting point.
        versions: the versions of the packages, which must be the same in all processes.
        seconds: the time to wait.

    Returns:
        Process 0's connections to all others, or another one's to process 0, by their numbers.

    Raises:
        VaeJaxError: a process did not come, the port is taken, or nobody answers there.
        DisagreementError: a process has other versions or another number of processes.
    """
    if launch.count == 1:
        return {}
    if launch.number == 0:
        return _receive_all(launch, versions, time.monotonic() + seconds, seconds)
    return {0: _join(launch, versions, time.monotonic() + seconds, seconds)}


def _listen(launch: Launch) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            address = "", launch.port
            return socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", launch.port))
    except OSError as error:
        reason = "another program has it" if error.errno == errno.EADDRINUSE else error.strerror
        raise VaeJaxError(
            f"Process 0 cannot listen on port {launch.port} ({reason}): choose another in "
            "JAX_COORDINATOR_ADDRESS, or under Slurm and Open MPI in JAX_COORDINATOR_PORT, the "
            "same for all processes."
        ) from error


def _receive_all(
    launch: Launch, versions: dict[str, str], latest: float, seconds: float
) -> dict[int, socket.socket]:
    """Process 0: wait for all others, and tell them when all have come, or the error."""
    arrived: dict[int, socket.socket] = {}
    told: list[socket.socket] = []  # including processes that are refused
    error: VaeJaxError | None = None
    with _listen(launch) as server:
        while error is None and len(arrived) < launch.count - 1:
            left = latest - time.monotonic()
            if left <= 0:
                error = VaeJaxError(_missing(launch, arrived, seconds))
                break
            server.settimeout(left)
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                match read(connection, min(left, _SECONDS)):
                    case {"process": int(number), "of": int(count), "versions": dict(theirs)}:
                        error = _refusal(launch, number, count, arrived, theirs, versions)
                        arrived[number] = connection
                        told.append(connection)
                    case _:  # a stranger
                        connection.close()
    for connection in told:
        send(connection, {"error": None if error is None else str(error)})
    if error is not None:
        for connection in told:
            connection.close()
        raise error
    return arrived


def _refusal(
    launch: Launch,
    number: int,
    count: int,
    arrived: dict[int, socket.socket],
    theirs: dict[str, Json],
    ours: dict[str, str],
) -> VaeJaxError | None:
    """The reason why a process that has come cannot take part, or None."""
    if count != launch.count:
        return DisagreementError(
            f"Process {number} was told that there are {count} processes, process 0 that there are "
            f"{launch.count}: give all of them the same JAX_NUM_PROCESSES."
        )
    if number in arrived or not 0 < number < launch.count:
        return DisagreementError(
            f"Two processes were told that they are process {number} of {launch.count}: give each "
            "its own JAX_PROCESS_ID, and each run an address of its own."
        )
    here: dict[str, Json] = {"versions": dict(ours)}
    sentence = objection(number, {"versions": theirs}, here)
    return DisagreementError(sentence) if sentence else None


def _missing(launch: Launch, arrived: dict[int, socket.socket], seconds: float) -> str:
    missing = [str(each) for each in range(1, launch.count) if each not in arrived]
    named = ", ".join(missing[:8]) + (" and others" if len(missing) > 8 else "")
    return (
        f"Of {launch.count} processes {len(missing)} (number {named}) did not come to "
        f"{launch.address} within {seconds:g} s: start all of them with the same command and the "
        "address of process 0, or wait longer with --start-timeout."
    )


def _join(launch: Launch, versions: dict[str, str], latest: float, seconds: float) -> socket.socket:
    """Another process: look for process 0, and wait for its word that all are there."""
    about: dict[str, Json] = {"process": launch.number, "of": launch.count}
    about["versions"] = dict(versions)
    reason = ""
    while (left := latest - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((launch.host, launch.port), min(left, _SECONDS))
        except (OSError, UnicodeError) as error:  # an empty label, which no name of a host has
            reason = f"{getattr(error, 'strerror', None) or error}"
            time.sleep(min(_PAUSE, max(0.0, left)))
            continue
        send(connection, about)
        match read(connection, max(_PAUSE, latest - time.monotonic())):
            case {"error": None}:
                return connection
            case {"error": str(sentence)}:
                connection.close()
                raise DisagreementError(sentence)
            case _:  # it is another program's, or process 0 has not been told of all the others
                connection.close()
                reason = "what answers there does not say that all processes have come"
                time.sleep(_PAUSE)
    raise VaeJaxError(
        f"Process {launch.number} of {launch.count} did not find the others at {launch.address} "
        f"within {seconds:g} s ({reason}): start process 0 there, give all processes its address, "
        "or wait longer with --start-timeout."
    )


def send(connection: socket.socket, content: dict[str, Json]) -> None:
    """Send `content` as a line of JSON over a connection."""
    with contextlib.suppress(OSError):  # the other end is gone, and is missed later
        connection.sendall(json.dumps(content).encode() + b"\n")


def read(connection: socket.socket, seconds: float | None) -> Json:
    """A line of JSON from a connection; None if none comes within `seconds`."""
    connection.settimeout(seconds)
    stream = connection.makefile("rb", buffering=0)  # which reads no byte beyond the line
    with contextlib.suppress(OSError, ValueError), stream:
        return json.loads(stream.readline(_LONGEST))
    return None
