"""The input path alone: batches from the disk, or gathered in the device's memory; no training."""

import json
import time

import jax
import numpy as np
import tyro
from ours import experiment

from vae_jax import parallel
from vae_jax.data import prefetched
from vae_jax.train import chunks_of_batches


def main(batch_size: int = 128, log_every: int = 400, streamed: bool = True) -> None:
    """Take batches until it is killed."""
    this = experiment(work="stream", batch_size=batch_size, log_every=log_every)
    layout, seeds = parallel.Layout.of(1, batch_size), np.zeros(1, np.uint32)
    images = None if streamed else parallel.replicate(this.data.train.images)
    gather = parallel.on_every_device(lambda images, rows: images[rows])
    print(json.dumps({"flops": 0}), flush=True)
    done = 0
    for batches in prefetched(chunks_of_batches(this, layout, seeds, 0, streamed)):
        jax.block_until_ready(batches.images if images is None else gather(images, batches.rows))
        done += batches.rows.shape[2]
        if done % log_every == 0:
            print(json.dumps({"step": done, "time": time.time()}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
