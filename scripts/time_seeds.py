"""Times several seeds of a network on one device: by vmap, by lax.map, and in separate processes.

    python scripts/time_seeds.py --work conv64 --seeds 4

Under `jax.vmap`, which ships for accelerators, the convolutions of several seeds are one grouped
convolution; under `jax.lax.map`, which ships for CPUs, a step takes one seed after the other. JAX
runs the programs of a process on one stream of a GPU, so streams of their own take processes of
their own, which run side by side under Nvidia's MPS. All these, and programs of one seed each, one
after the other, take a chunk of steps of every seed in turn, round after round and each time in
another order. Prints images/s and the median over rounds of the speed relative to the last.
"""

import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import tyro
from jax import lax
from profile_step import at_the_start
from rich.console import Console
from rich.table import Table
from time_variants import Training, interleaved

from vae_jax import Experiment, parallel
from vae_jax.step import make_train_chunk

sys.path.insert(0, str(Path(__file__).parent / "contenders"))
from ours import Work, experiment  # pyright: ignore[reportMissingImports]

ALONE = "one after the other"
START_LIMIT = 300  # seconds


def mapped(function: Any) -> Any:
    """The replicas one after the other, in place of `parallel.over_replicas`."""
    return lambda *each: lax.map(lambda one: function(*one), each)


def in_one_program(this: Experiment, seeds: int, over_replicas: Any) -> Training:
    """All seeds in one program; the device has them all."""
    layout, state, given = at_the_start(this, seeds)
    with mock.patch.object(parallel, "over_replicas", over_replicas):
        chunk = make_train_chunk(this, layout)
        chunk.compiled(state, *given)
    return Training(chunk, state, given)


def train_at_the_barrier(barrier: Barrier, **work: Any) -> None:
    """A process that takes a chunk each time that all have reached the barrier."""
    this = experiment(**work)
    layout, *start = at_the_start(this)
    training = Training(make_train_chunk(this, layout), *start)
    training()
    while True:
        barrier.wait()
        training()
        barrier.wait()


def main(
    work: Work = "conv32", batch_size: int = 64, seeds: int = 4, steps: int = 100, rounds: int = 7
) -> None:
    """Time them, and print a table.

    Args:
        work: the benchmark's workload.
        batch_size: the number of images in a step of one seed.
        seeds: the number of seeds.
        steps: the number of steps in a chunk.
        rounds: the number of rounds.
    """
    given: dict[str, Any] = {"work": work, "batch_size": batch_size, "log_every": steps}
    spawning = multiprocessing.get_context("spawn")
    barrier = spawning.Barrier(seeds + 1)
    for _ in range(seeds):
        spawning.Process(
            target=train_at_the_barrier, args=(barrier,), kwargs=given, daemon=True
        ).start()
    this = experiment(**given)
    layout, *start = at_the_start(this)
    chunk = make_train_chunk(this, layout)
    programs = [
        Training(chunk, *start),
        *(Training(chunk, *at_the_start(this)[1:]) for _ in range(seeds - 1)),
    ]

    def one_after_the_other() -> None:
        for program in programs:
            program()

    def side_by_side() -> None:
        barrier.wait(START_LIMIT)  # all begin
        barrier.wait(START_LIMIT)  # all are done

    seconds = interleaved(
        {
            ALONE: one_after_the_other,
            "vmap": in_one_program(this, seeds, jax.vmap),
            "lax.map": in_one_program(this, seeds, mapped),
            "separate processes": side_by_side,
        },
        rounds,
    )
    images = seeds * steps * batch_size
    table = Table("seeds", "images/s", f"speed, {ALONE} = 1")
    for name, each in seconds.items():
        ratio = np.median(seconds[ALONE] / each)
        table.add_row(name, f"{images / np.median(each):,.0f}", f"{ratio:.2f}")
    table.caption = (
        f"{seeds} seeds of {work}, batch {batch_size}, {steps} steps a chunk, {rounds} rounds, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    Console(width=100).print(table)


if __name__ == "__main__":
    tyro.cli(main)
