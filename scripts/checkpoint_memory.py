"""The memory that checkpoints cost a process, compared with the size of a training state.

    python scripts/checkpoint_memory.py --millions 100

Two processes, one after the other, train an MLP with Adam and a running average, so that a state is
four times its parameters, for three steps on one CPU device, with a checkpoint after each step: the
first process is told to stop at the first checkpoint, the second resumes. For each process, the
script prints its peak memory (the kernel's number, as shown by `/usr/bin/time -v`); how much of it,
in states, the process needed before its first copy of a state, and how much checkpoints added; and
the time of the longest copy, for which training waits. On a CPU the same memory also holds the
device's state and the intermediate results of a step.
"""

import contextlib
import json
import os
import resource
import signal
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


def measure(folder: Path, millions: float, stopped: bool) -> dict[str, float]:
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
    from vae_jax.errors import Interrupted
    from vae_jax.parallel import Layout
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
    before, collect = peak(), Layout.collect
    peaks: list[int] = []
    seconds: list[float] = []

    def measured(self: Layout, tree: Any) -> Any:
        if not isinstance(tree, TrainState):
            return collect(self, tree)
        if stopped and not peaks:
            signal.raise_signal(signal.SIGTERM)
        peaks.append(peak())
        begun = time.perf_counter()
        collected = collect(self, tree)
        seconds.append(time.perf_counter() - begun)
        return collected

    Layout.collect = measured
    with contextlib.suppress(Interrupted):
        train(experiment, folder)
    shapes = jax.eval_shape(partial(init_state, experiment), 0)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes.params)),
        "state_MiB": state / 2**20,
        "peak_MiB": peak() / 2**20,
        "training_states": (peaks[0] - before) / state,
        "checkpoint_states": (peak() - peaks[0]) / state,
        "longest_copy_s": max(seconds),
    }


def in_a_process(folder: Path, millions: float, *stopped: str) -> dict[str, float]:
    """`measure` in a process that does nothing else."""
    point = [str(folder), str(millions), *stopped]
    done = subprocess.run(
        [sys.executable, __file__, "--point", *point],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(*, millions: float = 100) -> None:
    """Print both processes' numbers.

    Args:
        millions: the number of parameters, in millions.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        print("begun:", in_a_process(run, millions, "stopped"), flush=True)
        print("gone on:", in_a_process(run, millions))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        folder, millions, *stopped = sys.argv[2:]
        print(json.dumps(measure(Path(folder), float(millions), bool(stopped))))
    else:
        tyro.cli(main)
