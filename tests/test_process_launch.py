"""Where the processes of a run meet, and which GPUs are their own: variables of those that start
them. The values are what srun, mpirun and TPU machines were seen or are documented to set.
"""

import os
import sys
from pathlib import Path

import pytest
from jax._src.clusters import cloud_tpu_cluster

from vae_jax.errors import VaeJaxError
from vae_jax.processes import Launch, launch, together
from vae_jax.processes.launch import own_gpus

HOSTS = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "2",
}
SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


GKE = {"TPU_WORKER_HOSTNAMES": "127.0.0.1,t1v-n-2,t1v-n-3", "TPU_WORKER_ID": "2"}
SLICES = {
    "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1:8080",
    "MEGASCALE_NUM_SLICES": "4",
    "MEGASCALE_SLICE_ID": "3",
}
LAUNCHERS = ("JAX_COORD", "JAX_NUM", "JAX_PROC", "SLURM_", "OMPI_", "CUDA_VIS", "TPU_", "MEGASCALE")


def launched(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Launch:
    """The launch under these variables and no others of launchers."""
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return launch()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (HOSTS, Launch("10.0.0.1", 1234, 4, 2)),
        (HOSTS | {"JAX_COORDINATOR_ADDRESS": "[fe80::1]:99"}, Launch("fe80::1", 99, 4, 2)),
        # JAX's rule for the port: 61440 + the number of the job modulo 4096.
        (SLURM, Launch("gpu07", 61440 + 70001 % 4096, 16, 11)),
        (SLURM | {"JAX_COORDINATOR_PORT": "1234"}, Launch("gpu07", 1234, 16, 11)),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "gpu09:1"}, Launch("gpu09", 1, 16, 11)),
        (OPEN_MPI, Launch("10.96.0.1", 61440 + 1531576320 // 4096 % 4096, 4, 3)),
        (  # Open MPI 5 does not say where its first process is
            {name: value for name, value in OPEN_MPI.items() if "orte" not in name}
            | {"JAX_COORDINATOR_ADDRESS": "a:1"},
            Launch("a", 1, 4, 3),
        ),
        # mpirun in a job of Slurm's: all ranks of a machine have the variables of one task.
        (
            SLURM | OPEN_MPI,
            Launch("10.96.0.1", 61440 + 1531576320 // 4096 % 4096, 4, 3),
        ),
        (SLURM | OPEN_MPI | {"JAX_COORDINATOR_ADDRESS": "a:1"}, Launch("a", 1, 4, 3)),
    ],
)
def test_a_launch_by_hand_by_slurm_and_by_open_mpi(
    environment: dict[str, str], expected: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launched(monkeypatch, environment | {"CUDA_VISIBLE_DEVICES": ""}) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "where process 0 is, how many processes there are or which process this one is"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "how many processes there are or which"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"}, "which process this one"),
        (HOSTS | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "give the host and a port"),
        (HOSTS | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:"}, "give the host and a port"),
        (HOSTS | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:http"}, "give the host and a port"),
        (HOSTS | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:70000"}, "give the host and a port"),
        (HOSTS | {"JAX_COORDINATOR_ADDRESS": ""}, "give the host and a port"),
        (HOSTS | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two': give a whole number"),
        (HOSTS | {"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID is '': give a whole number"),
        (HOSTS | {"JAX_PROCESS_ID": "4"}, "process 4 of 4: JAX_PROCESS_ID must be one of"),
        (HOSTS | {"JAX_PROCESS_ID": "-1"}, "process -1 of 4: JAX_PROCESS_ID must be one of"),
        (HOSTS | {"JAX_NUM_PROCESSES": "0"}, "process 2 of 0"),
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "nothing"}, "does not say where process 0 is"),
    ],
)
def test_a_launch_that_cannot_be(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VaeJaxError, match=said):
        launched(monkeypatch, environment)


@pytest.mark.parametrize(
    ("environment", "files", "expected"),
    [
        ({}, 8, None),  # by hand: all that are visible
        (SLURM, 0, None),
        (SLURM, 8, [3]),  # eight tasks that see all eight
        (SLURM, 1, None),  # each sees its own alone
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0"}, 8, None),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "3"}, 8, None),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "GPU-1a,GPU-2b"}, 8, None),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"}, 8, list(range(8))),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8,4"}, 8, [6, 7]),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,2(x3)", "SLURM_LOCALID": "1"}, 8, [4, 5, 6, 7]),
        (
            SLURM
            | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_GPUS_PER_TASK": "4"}
            | {"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            8,
            None,
        ),
        (SLURM | {"SLURM_TRES_PER_TASK": "cpu=4,gres/gpu=8"}, 8, None),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "5"}, 8, None),  # which JAX reads
        # Two GPUs bound to each task, by --gpu-bind or a script: its own, though two tasks see two.
        (
            SLURM
            | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}
            | {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "2,3"},
            8,
            None,
        ),
        (SLURM | {"SLURM_GPUS_ON_NODE": "8"}, 8, [3]),
        (SLURM | OPEN_MPI, 8, [4, 5, 6, 7]),
        (OPEN_MPI, 2, [1]),
        (OPEN_MPI, 8, [4, 5, 6, 7]),
        (OPEN_MPI | {"CUDA_VISIBLE_DEVICES": "1"}, 8, None),
    ],
)
def test_the_gpus_of_a_process(
    environment: dict[str, str], files: int, expected: list[int] | None, tmp_path: Path
) -> None:
    for name in [f"nvidia{number}" for number in range(files)] + ["nvidiactl", "nvidia-uvm"]:
        (tmp_path / name).touch()
    assert own_gpus(environment, tmp_path) == expected


def test_gpus_that_do_not_divide_are_no_share(tmp_path: Path) -> None:
    """Else some would be idle, and nobody told."""
    for name in range(8):
        (tmp_path / f"nvidia{name}").touch()
    three = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3(x2)", "SLURM_LOCALID": "1"}
    with pytest.raises(VaeJaxError, match="3 processes on this machine see the same 8 GPUs"):
        own_gpus(three, tmp_path)


def test_jax_is_told_which_gpus_are_a_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the place where processes meet, and instead of the rule that JAX has by itself."""
    told: list[object] = []
    for name, instead in {
        "launch": lambda: Launch("gpu07", 1234, 16, 11, [3]),
        "meet": lambda *_: {},
        "say": lambda _: None,
    }.items():
        monkeypatch.setattr(sys.modules[together.__module__], name, instead)
    monkeypatch.setattr("jax.distributed.initialize", lambda *given, **_: told.extend(given))
    with together({}):
        assert told == ["gpu07:1234", 16, 11, [3]]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (GKE, Launch("127.0.0.1", 8482, 3, 2)),
        (GKE | SLICES, Launch("127.0.0.1", 8482, 12, 11)),
        (GKE | {"JAX_COORDINATOR_PORT": "99"}, Launch("127.0.0.1", 99, 3, 2)),
        ({}, Launch("127.0.0.1", 8482, 2, 1)),  # by the machine's metadata
    ],
)
def test_a_launch_on_a_tpu_pod(
    environment: dict[str, str], expected: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process has all chips of its machine."""
    metadata = {
        "worker-network-endpoints": "a:b:127.0.0.1,c:d:10.0.0.2",
        "agent-worker-number": "1",
    }

    def get(key: str) -> tuple[str, int]:
        if environment and key != "tpu-env":
            return "", 404
        return metadata.get(key, ""), 200

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr("jax._src.clusters.cluster.running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", get)
    assert launched(monkeypatch, environment) == expected
