"""Where a training step's time goes: the operations of a traced chunk, by the compiler's names.

    python scripts/profile_step.py --work mlp --batch-size 20

Traces one chunk of a benchmark workload (`scripts/contenders/ours.py`) with jax.profiler, after a
first chunk that compiles. Prints each operation's milliseconds per step, and the fraction of the
chunk's time in which no operation ran: time spent in the host or waiting for it. On a GPU, where a
step is one CUDA graph, the trace has only the graphs, and they overlap.
"""

import gzip
import json
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from vae_jax import parallel
from vae_jax.step import init_state, make_train_chunk
from vae_jax.train import chunks_of_batches

sys.path.insert(0, str(Path(__file__).parent / "contenders"))
from ours import Work, experiment  # pyright: ignore[reportMissingImports]


def operations(folder: str) -> list[dict[str, Any]]:
    """The events of a trace that are operations of a compiled program; times in microseconds."""
    (file,) = Path(folder).rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return [e for e in events if e.get("ph") == "X" and "hlo_op" in e.get("args", {})]


def busy(events: list[dict[str, Any]]) -> float:
    """Microseconds in which at least one operation ran."""
    total, end = 0.0, -np.inf
    for start, duration in sorted((e["ts"], e["dur"]) for e in events):
        total += max(0.0, start + duration - max(end, start))
        end = max(end, start + duration)
    return total


def main(work: Work = "mlp", batch_size: int = 128, steps: int = 50, most: int = 25) -> None:
    """Trace a chunk, and print its table.

    Args:
        work: the benchmark's workload.
        batch_size: the number of images in a step.
        steps: the number of steps in the chunk.
        most: the largest number of operations in the table.
    """
    this = experiment(work=work, batch_size=batch_size, log_every=steps)
    layout, seeds = parallel.Layout.of(1, batch_size), np.zeros(1, np.uint32)
    start = jax.jit(jax.vmap(partial(init_state, this)))(seeds)
    state, device_seeds = layout.place(jax.tree.map(np.asarray, start)), layout.place(seeds)
    images = parallel.replicate(this.data.train.images)
    train_chunk, batches = (
        make_train_chunk(this, layout),
        chunks_of_batches(this, layout, seeds, 0, False),
    )
    state, metrics = train_chunk(state, images, next(batches), device_seeds)
    jax.block_until_ready(metrics)
    batch = next(batches)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            _, metrics = train_chunk(state, images, batch, device_seeds)
            jax.block_until_ready(metrics)
            wall = time.perf_counter() - began
        events = operations(folder)
    durations: Counter[str] = Counter()
    for event in events:
        durations[event["args"]["hlo_op"]] += event["dur"]
    table = Table("operation", "ms per step", "of all operations")
    whole = sum(durations.values())
    for name, microseconds in durations.most_common(most):
        table.add_row(name, f"{microseconds / 1e3 / steps:.3f}", f"{microseconds / whole:.1%}")
    idle = max(0.0, 1 - busy(events) / 1e6 / wall)
    table.caption = (
        f"{work}, batch {batch_size}, {jax.devices()[0].device_kind}: {1e3 * wall / steps:.3f} ms "
        f"per step while traced; in {idle:.1%} of the time no operation ran."
    )
    Console(width=100).print(table)


if __name__ == "__main__":
    tyro.cli(main)
