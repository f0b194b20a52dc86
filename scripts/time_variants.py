"""Times a training chunk as it ships beside the same chunk with less in a step, on the device.

    python scripts/time_variants.py
    python scripts/time_variants.py --work mlp --batch-size 128 --steps 100

At small batches a GPU's step is a chain of small kernels, whose number counts. The variants leave
out the guard against steps that are not finite, draw the noise of all steps before the first one,
with the same keys, give Adam all parameters as one vector, return the loss as the only metric, take
several steps in one iteration of the loop, and do all of this. Each runs one chunk in turn, round
after round and each time in another order. Prints the median time of a step, the median over rounds
of the speed relative to the chunk that ships, and whether the parameters after the last round are
its own: as all variants compute the same steps, they differ at most by rounding.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import Array, lax
from profile_step import at_the_start
from rich.console import Console
from rich.table import Table

from vae_jax import Experiment, parallel, random
from vae_jax.step import Batch, TrainState, make_train_chunk, train_step

sys.path.insert(0, str(Path(__file__).parent / "contenders"))
from ours import Work, experiment  # pyright: ignore[reportMissingImports]

SHIPS = "as it ships"


@dataclass(frozen=True)
class Variant:
    """What a chunk of training steps does differently.

    Attributes:
        guarded: whether a step that is not finite is skipped.
        ahead: whether the noise of all steps is drawn before the first.
        flat: whether the optimizer sees the parameters as one vector.
        metrics: whether a step returns other metrics than the loss.
        unroll: the number of steps in an iteration of the loop.
    """

    guarded: bool = True
    ahead: bool = False
    flat: bool = False
    metrics: bool = True
    unroll: int = 1


VARIANTS = {
    "no guard": Variant(guarded=False),
    "noise drawn ahead": Variant(ahead=True),
    "optax.flatten": Variant(flat=True),
    "no metric but the loss": Variant(metrics=False),
    "4 steps unrolled": Variant(unroll=4),
    "all of these": Variant(guarded=False, ahead=True, flat=True, metrics=False, unroll=4),
}


def always(good: Array, update: Callable[[], Any], old: Any) -> Any:
    """The result of `update`, in place of `parallel.updated_if`."""
    return update()


def chunk_of(
    this: Experiment, layout: parallel.Layout, variant: Variant
) -> parallel.OnDevices[Any]:
    """`make_train_chunk` of a variant, of images in the device's memory."""

    def one_step(state: TrainState, images: Array, batch: Batch, seed: Array, draw: Any) -> Any:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(random, "draw", draw))
            if not variant.guarded:
                stack.enter_context(mock.patch.object(parallel, "updated_if", always))
            own = images[batch.rows]
            new, metrics = train_step(this, state, own, batch, seed, layout.axis)
        if not variant.guarded:  # nor are there skipped steps to count
            kept = {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
            new, metrics = replace(new, **kept), metrics | kept
        return new, metrics if variant.metrics else {"loss": metrics["loss"]}

    def steps(state: TrainState, images: Array, batches: Batch, seed: Array) -> Any:
        draw = random.draw

        def noise(step: Array, batch: Batch) -> list[Array]:  # of one step; the rest is left out
            found: list[Array] = []

            def noted(*arguments: Any) -> Array:
                found.append(draw(*arguments))
                return found[-1]

            one_step(replace(state, step=step), images, batch, seed, noted)
            return found

        def step(state: TrainState, given: tuple[Batch, list[Array]]) -> Any:
            batch, drawn = given
            earlier = iter(drawn)
            found = (lambda *_: next(earlier)) if variant.ahead else draw
            return one_step(state, images, batch, seed, found)

        numbers = state.step + jnp.arange(len(batches.rows))
        drawn = jax.vmap(noise)(numbers, batches) if variant.ahead else []
        return lax.scan(step, state, (batches, drawn), unroll=variant.unroll)

    return layout.over_seeds(steps)


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """The seconds of each call in each round, after a first call that compiles."""
    seconds = {name: np.zeros(rounds) for name in calls}
    for call in calls.values():
        call()
    for this_round in range(rounds):
        for turn in range(len(calls)):
            name = list(calls)[(turn + this_round) % len(calls)]
            began = time.perf_counter()
            calls[name]()
            seconds[name][this_round] = time.perf_counter() - began
    return seconds


class Training:
    """A chunk of steps that trains on from where it was at each call."""

    def __init__(self, chunk: parallel.OnDevices[Any], state: Any, given: tuple[Any, ...]):
        self.chunk, self.state, self.given = chunk, state, given

    def __call__(self) -> None:
        """Take the chunk's steps."""
        self.state, metrics = self.chunk(self.state, *self.given)
        jax.block_until_ready((self.state, metrics))


def same(state: TrainState, shipped: TrainState) -> str:
    """Whether the parameters are those of the chunk that ships."""
    own, its = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(each.params)])
        for each in (state, shipped)
    )
    if (own == its).all():
        return "the same bytes"
    return f"within {np.abs(own - its).max() / np.abs(its).max():.0e} of the largest"


def main(
    work: Work = "iwae", batch_size: int = 20, k: int = 1, steps: int = 500, rounds: int = 15
) -> None:
    """Time the variants, and print a table.

    Args:
        work: the benchmark's workload.
        batch_size: the number of images in a step.
        k: the number of samples of the importance-weighted bound.
        steps: the number of steps in a chunk.
        rounds: the number of rounds.
    """
    this = experiment(work=work, batch_size=batch_size, k=k, log_every=steps)
    layout, *start = at_the_start(this)
    trained = {SHIPS: Training(make_train_chunk(this, layout), *start)}
    for name, variant in VARIANTS.items():
        own = replace(this, optimizer=optax.flatten(this.optimizer)) if variant.flat else this
        layout, *start = at_the_start(own)
        trained[name] = Training(chunk_of(own, layout, variant), *start)
    seconds = interleaved(dict(trained), rounds)
    table = Table("chunk", "µs per step", "speed, as it ships = 1", "parameters")
    for name, each in seconds.items():
        ratio = np.median(seconds[SHIPS] / each)
        parameters = same(trained[name].state, trained[SHIPS].state)
        table.add_row(name, f"{1e6 * np.median(each) / steps:.0f}", f"{ratio:.2f}", parameters)
    table.caption = (
        f"{work}, batch {batch_size}, k = {k}, {steps} steps a chunk, {rounds} rounds, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    Console(width=100).print(table)


if __name__ == "__main__":
    tyro.cli(main)
