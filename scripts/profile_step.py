"""Where a training step's time goes: the operations of a traced chunk, by the compiler's names.

    python scripts/profile_step.py --work mlp --batch-size 20

Traces one chunk of a benchmark workload (`scripts/contenders/ours.py`) with jax.profiler, after a
first chunk that compiles. Prints the milliseconds per step of each kind of operation, or of each
operation with `--one-by-one`, from its start to its end; the fraction of the chunk's time in which
no operation ran, which is time spent in the host or waiting for it; and the process's peak memory
before and after it compiles the chunk, and after the first chunk. Operations that do not depend on
each other run at the same time, so the sum can exceed a step. On a GPU the operations are what ran
on its streams: kernels and copies, and CUDA graphs as a whole unless XLA_FLAGS has
`--xla_gpu_enable_command_buffer=`, which forbids them.
"""

import gzip
import json
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from vae_jax import Experiment, parallel
from vae_jax.step import init_state, make_train_chunk
from vae_jax.train import chunks_of_batches

sys.path.insert(0, str(Path(__file__).parent / "contenders"))
from ours import Work, experiment  # pyright: ignore[reportMissingImports]


@dataclass
class Operation:
    """One execution of an operation of a compiled program, in microseconds."""

    name: str
    start: float
    end: float


def operations(folder: str) -> list[Operation]:
    """The operations of a trace, but for loops, which consist of others.

    The CPU's threads share the work of an operation after its own event has ended; an event named
    "end: " and its name is its end. Of a GPU they are all events of its streams.
    """
    (file,) = Path(folder).rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    streams = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"]["name"].startswith("Stream #")
    }
    events = [event for event in events if event.get("ph") == "X"]
    if streams:
        return [
            Operation(
                event.get("args", {}).get("hlo_op", event["name"]),
                event["ts"],
                event["ts"] + event["dur"],
            )
            for event in events
            if (event["pid"], event["tid"]) in streams
        ]
    ends: dict[str, list[float]] = {}
    for event in events:
        if event["name"].startswith("end: "):
            ends.setdefault(event["name"].removeprefix("end: "), []).append(event["ts"])
    found = []
    for event in events:
        name, start = event.get("args", {}).get("hlo_op"), event["ts"]
        if name is None or name.startswith("while"):
            continue
        later = [end for end in ends.get(name, []) if end >= start]
        found.append(Operation(name, start, max(start + event["dur"], min(later, default=0.0))))
    return found


def peak_mebibytes() -> float:
    """The peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def busy(run: list[Operation]) -> float:
    """Microseconds in which at least one operation ran."""
    total, latest = 0.0, -np.inf
    for each in sorted(run, key=lambda each: each.start):
        total += max(0.0, each.end - max(latest, each.start))
        latest = max(latest, each.end)
    return total


def at_the_start(
    this: Experiment, num_seeds: int = 1
) -> tuple[parallel.Layout, Any, tuple[Any, ...]]:
    """A layout, the state before the first step, and what else its first chunk of steps takes."""
    layout, seeds = (
        parallel.Layout.of(num_seeds, this.batch_size),
        np.arange(num_seeds, dtype=np.uint32),
    )
    start = jax.jit(jax.vmap(partial(init_state, this)))(seeds)
    state, images = layout.place(jax.tree.map(np.asarray, start)), this.data.train.images
    batches = next(chunks_of_batches(this, layout, seeds, 0, False))
    return layout, state, (parallel.replicate(images), batches, layout.place(seeds))


def main(
    work: Work = "mlp",
    batch_size: int = 128,
    steps: int = 50,
    one_by_one: bool = False,
    most: int = 25,
) -> None:
    """Trace a chunk, and print its table.

    Args:
        work: the benchmark's workload.
        batch_size: the number of images in a step.
        steps: the number of steps in the chunk.
        one_by_one: print every operation instead of every kind.
        most: the largest number of rows of the table.
    """
    this = experiment(work=work, batch_size=batch_size, log_every=steps)
    layout, state, given = at_the_start(this)
    train_chunk, peaks = make_train_chunk(this, layout), [peak_mebibytes()]
    train_chunk.compiled(state, *given)
    peaks.append(peak_mebibytes())
    state, metrics = train_chunk(state, *given)
    jax.block_until_ready(metrics)
    peaks.append(peak_mebibytes())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            _, metrics = train_chunk(state, *given)
            jax.block_until_ready(metrics)
            wall = time.perf_counter() - began
        run = operations(folder)
    microseconds: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for each in run:
        name = each.name if one_by_one else re.sub(r"(\.\d+)+$", "", each.name)
        microseconds[name] = microseconds.get(name, 0.0) + each.end - each.start
        counts[name] += 1
    table = Table("operation", "times per step", "ms per step")
    for name in sorted(microseconds, key=microseconds.__getitem__, reverse=True)[:most]:
        milliseconds = microseconds[name] / 1e3 / steps
        table.add_row(name, f"{counts[name] / steps:.1f}", f"{milliseconds:.3f}")
    idle = max(0.0, 1 - busy(run) / 1e6 / wall)
    table.caption = (
        f"{work}, batch {batch_size}, {jax.devices()[0].device_kind}: {1e3 * wall / steps:.3f} ms "
        f"per step while traced; in {idle:.1%} of the time no operation ran. Peak memory in MiB: "
        "{:,.0f} before compiling, {:,.0f} after it, {:,.0f} after the first chunk.".format(*peaks)
    )
    Console(width=100).print(table)


if __name__ == "__main__":
    tyro.cli(main)
