"""The memory that checkpoints cost a process, compared with the size of a training state.

    python scripts/checkpoint_memory.py --millions 100
    python scripts/checkpoint_memory.py --millions 100 --processes 4

One process, or several with a share of the optimizer's state each (`--shard optimizer`), train an
MLP with Adam and a running average, so that a state is four times its parameters, for three steps
with a checkpoint after each: a first run is told to stop at the first checkpoint, a second resumes
it. Every process has one CPU device. For each, the script prints its peak memory (the kernel's
number, as shown by `/usr/bin/time -v`); the part of a state on its device; how much memory, in
states, it needed before its first copy of a state, how much checkpoints added, and how much the end
added, where each of several processes collects the whole state; and the time of the longest copy,
for which training waits. On a CPU the same memory also holds the device's state and the
intermediate results of a step.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parents[1]


def peak() -> int:
    """The peak memory of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(folder: Path, millions: float, several: bool, stopped: bool) -> dict[str, float]:
    """Train in this process, to the end or to the first step."""
    import jax
    import numpy as np
    import optax

    from vae_jax import (
        ELBO,
        MLP,
        VAE,
        Data,
        DiagonalGaussian,
        Experiment,
        Gaussian,
        StandardNormal,
        train,
    )
    from vae_jax.checkpoint import Checkpoints
    from vae_jax.errors import Interrupted
    from vae_jax.parallel import Layout
    from vae_jax.processes.together import together
    from vae_jax.step import TrainState, init_state

    width = round(1e6 * millions / (3 * 3072))  # to a width and back, to a mean and a variance
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3)).astype(np.uint8)
    experiment = Experiment(
        data=Data.from_arrays("noise", images, images[:8], images[:8], protocol="grey"),
        model=VAE(
            encoder=MLP((width,)),
            posterior=DiagonalGaussian(64),
            prior=StandardNormal(64),
            decoder=MLP((width,)),
            likelihood=Gaussian(),
        ),
        objective=ELBO(),
        optimizer=optax.adam(1e-4),
        ema_decay=0.9,
        num_steps=3,
        batch_size=8,
        log_every=1,
        checkpoint_every=1,
        keep_checkpoints=1,
    )
    shapes = jax.eval_shape(partial(init_state, experiment), 0)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    before = peak()
    peaks: dict[str, list[int]] = {"collect": [], "save_shares": []}
    seconds: list[float] = []
    on_device = 0

    def measured(owner: Any, name: str) -> None:
        method = getattr(owner, name)

        def instead(self: Any, *arguments: Any) -> Any:
            nonlocal on_device
            tree = next((one for one in arguments if isinstance(one, TrainState)), None)
            if tree is None:
                return method(self, *arguments)
            if stopped and not any(peaks.values()):
                signal.raise_signal(signal.SIGTERM)
            shards = [one for leaf in jax.tree.leaves(tree) for one in leaf.addressable_shards]
            on_device = sum(one.data.nbytes for one in shards)
            peaks[name].append(peak())
            begun = time.perf_counter()
            result = method(self, *arguments)
            seconds.append(time.perf_counter() - begun)
            return result

        setattr(owner, name, instead)

    for layout in Layout.__subclasses__():
        measured(layout, "collect")
    measured(Checkpoints, "save_shares")
    with contextlib.suppress(Interrupted), together({}) if several else contextlib.nullcontext():
        train(experiment, folder, shard="optimizer" if several else None)
    first = min(one[0] for one in peaks.values() if one)
    ending = peaks["collect"][-1] if several and peaks["collect"] else peak()
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes.params)),
        "state_MiB": state / 2**20,
        "peak_MiB": peak() / 2**20,
        "on_device_states": on_device / state,
        "training_states": (first - before) / state,
        "checkpoint_states": (ending - first) / state,
        "end_states": (peak() - ending) / state,
        "longest_copy_s": max(seconds),
    }


def in_processes(
    folder: Path, millions: float, count: int, *stopped: str
) -> list[dict[str, float]]:
    """`measure` in processes that do nothing else."""
    point = [str(folder), str(millions), str(count), *stopped]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--point", *point],
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
            | {"JAX_COORDINATOR_ADDRESS": address}
            | {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    return [json.loads(one.communicate()[0].splitlines()[-1]) for one in started]


def main(*, millions: float = 100, processes: int = 1) -> None:
    """Print the numbers of every process of both runs.

    Args:
        millions: the number of parameters, in millions.
        processes: the number of processes; several share the optimizer's state.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for name, stopped in (("begun", ["stopped"]), ("gone on", [])):
            for number, one in enumerate(in_processes(run, millions, processes, *stopped)):
                print(f"{name}, process {number}: {one}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        folder, millions, count, *stopped = sys.argv[2:]
        print(json.dumps(measure(Path(folder), float(millions), int(count) > 1, bool(stopped))))
    else:
        tyro.cli(main)
