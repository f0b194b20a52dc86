"""One of two processes that compare what they were given (tests/test_processes.py).

Prints one line of JSON for each case: the sentence of the disagreement, or null.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import optax
import tiny

from vae_jax import IWAE, Data, parallel
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import Experiment, Origin
from vae_jax.processes import agree, together
from vae_jax.run import versions, what_processes_share

FILE = Path(tiny.__file__)


def from_file(seed: int = 0, num_seeds: int = 1, **arguments: Any) -> dict[str, Any]:
    """What a process shares of a run from a file."""
    origin = Origin("tiny.py", FILE.read_text(), arguments)
    return what_processes_share(origin.make(), seed, num_seeds, origin)


def from_python(**fields: Any) -> dict[str, Any]:
    """What a process shares of a run from Python."""
    experiment: Experiment = dataclasses.replace(tiny.experiment(), **fields)
    return what_processes_share(experiment, 0, 1, None)


def other_data() -> Data:
    """One pixel of one training image is another."""
    data = tiny.data()
    images = np.array(data.train.images)
    images[3, 0, 0, 0] ^= 1
    valid, test = data.valid.images, data.test.images
    return Data.from_arrays("bars", images, valid, test, protocol="dynamic")


def own_schedule(step: Any) -> Any:
    """A schedule of a script."""
    return 0.1 * step


def with_package(name: str, version: str) -> dict[str, Any]:
    """As if another version of a package were installed."""
    found = importlib.metadata.version

    def told(package: str) -> str:
        return version if package == name else found(package)

    with mock.patch.object(importlib.metadata, "version", told):
        return from_file()


def with_devices(count: int) -> dict[str, Any]:
    """As if the process had `count` devices."""
    with mock.patch.object(jax, "local_device_count", return_value=count):
        return from_file()


def with_variable(name: str, value: str) -> dict[str, Any]:
    """As if a variable of the environment were set."""
    with mock.patch.dict(os.environ, {name: value}):
        return from_file()


# What process 1 does where process 0 trains the tiny experiment from its file, or as it is given.
CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "the same": (from_file, from_file),
    "learning rate": (
        lambda: from_file(learning_rate=0.01),
        lambda: from_file(learning_rate=0.1),
    ),
    "steps": (lambda: from_file(num_steps=40), lambda: from_file(num_steps=80)),
    "lines of metrics": (from_python, lambda: from_python(log_every=10)),
    "seed": (from_file, lambda: from_file(seed=1)),
    "seeds": (from_file, lambda: from_file(num_seeds=2)),
    "objective": (from_python, lambda: from_python(objective=IWAE(3))),
    "optimizer": (from_python, lambda: from_python(optimizer=optax.sgd(0.1))),
    "own code": (
        lambda: from_python(optimizer=optax.sgd(own_schedule)),
        lambda: from_python(optimizer=optax.sgd(lambda step: 0.2 * step)),
    ),
    "data": (lambda: from_python(data=other_data()), lambda: from_python()),
    "file or Python": (from_file, from_python),
    "jax": (from_file, lambda: with_package("jax", "0.1.2")),
    "vae_jax": (from_file, lambda: with_package("vae_jax", "9.9")),
    "devices": (from_file, lambda: with_devices(7)),
    "TF32": (from_file, lambda: with_variable("NVIDIA_TF32_OVERRIDE", "0")),
    "the same again": (from_file, from_file),
}


def main() -> None:
    with together(versions(), start_timeout=100):
        for number, case in enumerate(CASES.values()):
            content = case[not parallel.is_main_process()]()
            try:
                agree(content)
                sentence = None
            except VaeJaxError as error:
                sentence = str(error)
            print(json.dumps([list(CASES)[number], sentence]), flush=True)


if __name__ == "__main__":
    sys.modules["agreeing"] = sys.modules["__main__"]
    main()
