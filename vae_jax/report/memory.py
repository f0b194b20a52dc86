"""The memory that a training run needs, computed before training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
from jax import Array

from vae_jax import parallel
from vae_jax.experiment import Experiment
from vae_jax.progress import Pace
from vae_jax.step import TrainState, init_state, make_train_chunk
from vae_jax.train import chunks_of_batches, is_streamed, seeds_from

NAMES = {
    "params": "parameters",
    "model_state": "other variables",
    "opt_state": "optimizer's state",
    "ema_params": "running average",
}


@dataclass(frozen=True)
class Needs:
    """Memory use in bytes, by purpose.

    Attributes:
        device: bytes on each device.
        host: bytes on the host that writes checkpoints, besides the programs themselves.
        available: the memory of a device.
    """

    device: Mapping[str, int]
    host: Mapping[str, int]
    available: int

    def __str__(self):
        def lines(title: str, parts: Mapping[str, int], end: str) -> list[str]:
            rows = [*parts.items(), (end, sum(parts.values()))]
            return [f"{title:36}MiB", *(f"  {name:24}{n / 2**20:13,.1f}" for name, n in rows)]

        device = lines("Each device", self.device, f"all, of {self.available / 2**20:,.0f}")
        return "\n".join([*device, *lines("Host", self.host, "all")])


def state_of(experiment: Experiment, num_seeds: int = 1) -> TrainState:
    """The shapes of an experiment's training state, `[S, ...]`, without computing it."""
    seeds = seeds_from(0, num_seeds)
    return jax.eval_shape(jax.vmap(partial(init_state, experiment)), seeds)


def bytes_on_device(tree: object) -> int:
    """The bytes of a tree of placed arrays, or of their shapes, on each device."""

    def of_one(leaf: Array | jax.ShapeDtypeStruct) -> int:
        own = leaf.shape[1:] if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(own) * leaf.dtype.itemsize

    return sum(map(of_one, jax.tree.leaves(tree)))


def state_bytes(state: TrainState, layout: parallel.Layout) -> dict[str, int]:
    """The bytes of the parts of a state on each device of a layout, from its shapes alone."""
    placed = layout.shapes(state)
    return {name: bytes_on_device(getattr(placed, of)) for of, name in NAMES.items()}


def needs(
    experiment: Experiment,
    *,
    num_seeds: int = 1,
    streamed: bool | None = None,
    shard: parallel.Shard | None = None,
) -> Needs:
    """The memory for training on each device and on the host; the program is compiled but not run.

        device = state + training images + batches of a chunk + gradients + activations

    where gradients are as large as the parameters, and activations are all that the compiler plans
    for a chunk of steps besides its arguments and gradients. The host holds the training images,
    and a state while a checkpoint is written, with at most half a state more.

    Args:
        experiment: the experiment.
        num_seeds, streamed, shard: as in `train`.

    Raises:
        VaeJaxError: the devices do not divide the batch.
    """
    layout = parallel.Layout.of(num_seeds, experiment.batch_size, experiment.accumulate, shard)
    streamed = is_streamed(experiment.data) if streamed is None else streamed
    seeds, split = seeds_from(0, num_seeds), experiment.data.train
    steps = Pace(experiment.log_every).steps
    state = state_of(experiment, num_seeds)
    images = None if streamed else layout.shapes(split.images, everywhere=True)
    batches = next(chunks_of_batches(experiment, layout, seeds, 0, streamed, steps))
    arguments = layout.shapes(state), images, batches, layout.place(seeds)
    temporary = parallel.temporary_bytes(make_train_chunk(experiment, layout), *arguments)
    of_state = state_bytes(state, layout)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    gradients = min(of_state["parameters"], temporary)
    device = of_state | {
        "training images": bytes_on_device(images),
        "batches": bytes_on_device(batches),
        "gradients": gradients,
        "activations": temporary - gradients,
    }
    host = {"training images": split.images.nbytes, "a state": whole, "its files": whole // 2}
    return Needs(device, host, parallel.device_memory())
