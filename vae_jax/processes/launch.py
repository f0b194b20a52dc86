"""The description of a run's processes by the system that starts them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jax._src import clusters  # JAX finds a cluster only while it connects, too late for a sentence

from vae_jax.errors import VaeJaxError

WAYS = (
    "start under Slurm (srun), Open MPI or on a TPU pod, or set JAX_COORDINATOR_ADDRESS (host:port "
    "of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID"
)
# Open MPI's and Slurm's are read if JAX's address is set but these variables of JAX are not; Open
# MPI's first, since all that mpirun starts in a Slurm job has the variables of one task of Slurm's.
COUNTS = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
NUMBERS = ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


@dataclass(frozen=True)
class Launch:
    """One of the processes of a run, and their meeting point.

    Attributes:
        host, port: the address of process 0.
        count: the number of processes.
        number: the number of this process, from 0.
        local_devices: the numbers of this process's GPUs on its machine; None for all that it sees.
    """

    host: str
    port: int
    count: int
    number: int
    local_devices: list[int] | None = None

    @property
    def address(self) -> str:
        """The address host:port of process 0."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """This process and the others, by the variables of an environment or by a TPU pod.

    Raises:
        VaeJaxError: the variables are incomplete or contradict each other.
    """
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    count, number = _integer(environment, COUNTS), _integer(environment, NUMBERS)
    if address is None:
        address, found, own = _detected()
        count = found if "JAX_NUM_PROCESSES" not in environment else count
        number = own if "JAX_PROCESS_ID" not in environment else number
    if address is None or count is None or number is None:
        told = {
            "where process 0 is": address,
            "how many processes there are": count,
            "which process this one is": number,
        }
        *rest, last = (what for what, value in told.items() if value is None)
        what = f"{', '.join(rest)} or {last}" if rest else last
        raise VaeJaxError(f"Nothing says {what}: {WAYS}.")
    match = re.fullmatch(r"\[?([^\[\]]+?)\]?:(\d{1,5})", address)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise VaeJaxError(
            f"JAX_COORDINATOR_ADDRESS is {address}: give the host and a port of process 0, such as "
            "10.0.0.1:1234."
        )
    if not 0 <= number < count:
        raise VaeJaxError(
            f"This is to be process {number} of {count}: JAX_PROCESS_ID must be one of the numbers "
            f"from 0 to {max(0, count - 1)}, a different one for each process, and "
            "JAX_NUM_PROCESSES the number of processes."
        )
    return Launch(match[1], int(match[2]), count, number, own_gpus(environment))


def _integer(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        if name in environment:
            try:
                return int(environment[name])
            except ValueError as error:
                raise VaeJaxError(
                    f"{name} is {environment[name]!r}: give a whole number."
                ) from error
    return None


def _detected() -> tuple[str | None, int | None, int | None]:
    """The address, count and number that JAX finds in a cluster that it knows."""
    try:
        find = clusters.ClusterEnv.auto_detect_unset_distributed_params
        address, count, number, _ = find(None, None, None, None, None, 60)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise VaeJaxError(
            f"The cluster does not say where process 0 is ({error!r}): set "
            "JAX_COORDINATOR_ADDRESS=host:port, that of process 0."
        ) from error
    return address, count, number


def neighbours(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """The number of processes on this machine, and the number of this one, from an environment."""
    if {"OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"} <= environment.keys():
        size, rank = (environment[f"OMPI_COMM_WORLD_LOCAL_{what}"] for what in ("SIZE", "RANK"))
        return int(size), int(rank)
    if {"SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"} <= environment.keys():
        counts: list[int] = []
        for part in environment["SLURM_STEP_TASKS_PER_NODE"].split(","):  # such as 8(x2),4
            tasks, _, times = part.rstrip(")").partition("(x")
            counts += [int(tasks)] * int(times or 1)
        node = int(environment.get("SLURM_NODEID", 0))
        return counts[min(node, len(counts) - 1)], int(environment["SLURM_LOCALID"])
    return None


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """The number of Nvidia GPUs that this process sees, from its environment and `devices`."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in devices.iterdir())
    return len(
        [each for each in visible.split(",") if each.strip() not in ("", "-1", "NoDevFiles")]
    )


def own_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[int] | None:
    """The numbers of a process's own GPUs among those that it sees; None for all of them.

    By default JAX takes the GPU with the process's number on its machine: one of eight if a process
    has all of them, and one that does not exist if each process sees only its own.

    Args:
        environment: the environment variables.
        devices: the folder of devices.

    Raises:
        VaeJaxError: several processes see the same GPUs, which they cannot share evenly.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment:  # which JAX reads
        return None
    here, visible = neighbours(environment), visible_gpus(environment, devices)
    bound = (
        "SLURM_GPUS_PER_TASK" in environment
        or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")
        or visible < int(environment.get("SLURM_GPUS_ON_NODE") or 0)  # as --gpu-bind does
    )
    if here is None or bound or visible < here[0]:  # it sees no other's
        return None
    count, number = here
    if visible % count:
        raise VaeJaxError(
            f"{count} processes on this machine see the same {visible} GPUs, which do not divide "
            f"among them: start another number of processes, such as {visible}, or give each its "
            "own GPUs, as --gpus-per-task does, or JAX_LOCAL_DEVICE_IDS."
        )
    share = visible // count
    return list(range(number * share, (number + 1) * share))
