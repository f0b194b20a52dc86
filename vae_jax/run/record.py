"""The record of a run, experiment.json: the run's identity, and the circumstances of training."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import jax

from vae_jax import parallel, storage
from vae_jax.experiment import Experiment, Origin
from vae_jax.identity import Json
from vae_jax.run.same import Record

# Settings that change numbers; those of XLA for speed alone do not.
FLAGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_numpy_dtype_promotion",
    "jax_disable_jit",
)
OF_NUMBERS = re.compile("fast_math|precision|tf32|bf16|determini|autotune|approx|denormal")
PACKAGES = ("vae_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
PACKAGES += ("tensorflow-datasets", "numpy")


def what_is_run(experiment: Experiment, seed: int, num_seeds: int, origin: Origin | None) -> Record:
    """A run as described in experiment.json: arguments, objects, seeds and settings.

    Args: as in `RunFolder.claim`.
    """
    content: Record = {"experiment": None if origin is None else {"arguments": origin.arguments}}
    content |= experiment.description | {"seed": seed, "num_seeds": num_seeds}
    return json.loads(json.dumps(content | {"flags": _flags()}))  # lists, as in the file


def what_processes_share(
    experiment: Experiment, seed: int, num_seeds: int, origin: Origin | None
) -> dict[str, Json]:
    """The record that must be equal in all processes of a run, its most familiar entries first.

    Args: as in `RunFolder.claim`.
    """
    content = what_is_run(experiment, seed, num_seeds, origin)
    arguments = (content.pop("experiment") or {}).get("arguments")
    data = {name: part for name, part in content.pop("data").items() if name != "source"}
    simple = {name: part for name, part in content.items() if not isinstance(part, dict | list)}
    first: Record = {"arguments": arguments, "versions": versions(), "data": data}
    last: Record = {"devices": parallel.own_devices()}
    return first | simple | content | last


def _flags() -> dict[str, Json]:
    """The settings of JAX and XLA that change numbers."""
    values: dict[str, Json] = {name: str(getattr(jax.config, name, None)) for name in FLAGS}
    xla = os.environ.get("XLA_FLAGS", "").split()
    values["XLA_FLAGS"] = " ".join(sorted(flag for flag in xla if OF_NUMBERS.search(flag)))
    return values | {"NVIDIA_TF32_OVERRIDE": os.environ.get("NVIDIA_TF32_OVERRIDE")}


def versions() -> dict[str, str]:
    """The versions of packages and of Python."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return versions | {"python": platform.python_version()}


def python_of(record: Record) -> tuple[str, ...]:
    """The version of Python in a record, as far as it changes compiled code."""
    match record:
        case {"versions": {"python": str(version)}}:
            return tuple(version.split(".")[:2])
    return ()


def file_of(origin: Origin | None) -> Record:
    """The file that a run can be remade from."""
    return {
        "file": None if origin is None else origin.file,
        "source": None if origin is None else origin.source,
    }


def circumstances(origin: Origin | None) -> Record:
    """The circumstances of a run in experiment.json, which are not part of its identity."""
    return {
        **file_of(origin),
        "git_commit": git_commit(),
        "devices": parallel.describe_devices(),
        "versions": versions(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def read_record_file(path: Path) -> Record:
    """The content of an experiment.json, with the entries needed to open a run.

    Raises:
        DamagedError: the file cannot be read, or an entry is missing or of another type.
    """
    match record := storage.read_json(path):
        case {
            "experiment": {"arguments": dict()} | None,
            "data": {"fingerprint": str()},
            "file": str() | None,
            "source": str() | None,
            "num_seeds": int(),
        }:
            return record
    raise storage.DamagedError(f"{path} is damaged (an entry is missing or of another type).")


def git_commit() -> str | None:
    """The commit of the working folder, with "+changes" if files differ; None outside git."""
    command = ["git", "-c", "core.fsmonitor=false", "describe"]  # it would run a program
    command += ["--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
