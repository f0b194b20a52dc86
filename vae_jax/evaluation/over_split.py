"""A function of images, over a split of the data and all devices, with every image counted once."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from vae_jax import parallel, random
from vae_jax.data import SplitName
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import Experiment

# Samples drawn at once from one key: a constant, so that an image's noise depends on nothing else.
SAMPLES_AT_ONCE = 64
# Floats in one array of (images x samples) decoded images: 4 MiB on each device, cache-sized.
DECODED_FLOATS = 2**20
# Of a device's memory, what all that is computed of the images given at once may take.
MEMORY_SHARE = 0.25


def over_split(
    experiment: Experiment,
    split: SplitName,
    num_images: int | None,
    at_once: int,
    function: Callable[..., Any],
) -> Callable[..., Any]:
    """Compiles a function of images, to call on all of a split's.

    Args:
        experiment: its data, and the model whose variables the labels go with.
        split: of the data.
        num_images: evenly spaced over the split; None takes all.
        at_once: the most images that a device is given at once. It is given fewer where, by the
            compiler's account, they would take more than `MEMORY_SHARE` of its memory.
        function: from one seed's variables, images `[B, H, W, C]` in the form of the protocol,
            their keys `[B]`, their labels `[B]` (None where the model takes none) and any more
            trees of that seed, to a tree of arrays `[B, ...]`.

    Returns:
        A function of variables and more trees with the axes of devices and seeds, `[D, S, ...]`
        (`parallel.replicate` of `Run.variables`), to host arrays `[S, N, ...]`. An image's keys
        depend on its place in the split alone, not on batches or devices.

    Raises:
        VaeJaxError: the split has no or not so many images.
    """
    of_split = getattr(experiment.data, split)
    images = of_split.images
    total = len(images)
    wanted = total if num_images is None else num_images
    if not 1 <= wanted <= total:
        raise VaeJaxError(
            f"The {split} split of {experiment.data.name} has {total} images: it cannot be "
            f"evaluated on {wanted}."
        )
    rows = np.arange(wanted) * total // wanted
    devices = parallel.num_devices()

    labels = None if experiment.model.labels is None else of_split.labels

    def one_device(
        variables: Any, images: Array, indices: Array, y: Array | None, *more: Any
    ) -> Any:
        image_keys = random.image_keys(split, indices)
        x = experiment.data.protocol.apply(images, random.purpose(image_keys, "protocol"))
        keys = random.purpose(image_keys, "evaluation")

        def one_seed(variables: Any, *more: Any) -> Any:
            return function(variables, x, keys, y, *more)

        return jax.vmap(one_seed)(variables, *more)

    on_devices = parallel.on_every_device(one_device)
    batch = 0  # found at the first call

    def piece(first: int, batch: int) -> tuple[Array, Array, Array | None]:
        padded = np.resize(rows[first : first + batch], batch).astype(np.int32)
        y = None if labels is None else parallel.split(labels[padded], 0)
        return parallel.split(images[padded], 0), parallel.split(padded, 0), y

    def fitting(variables: Any, *more: Any) -> int:
        share = min(max(1, at_once), -(-wanted // devices))
        budget = int(MEMORY_SHARE * parallel.memory())
        while share > 1:
            arguments = variables, *piece(0, devices * share), *more
            taken = parallel.temporary_bytes(on_devices, *arguments)
            if taken <= budget:
                break
            share = max(1, share * budget // taken)
        return devices * -parallel.largest(-share)  # the least of any process

    def on_split(variables: Any, *more: Any) -> Any:
        nonlocal batch
        batch = batch or fitting(variables, *more)
        batches = []
        for first in range(0, wanted, batch):
            result = on_devices(variables, *piece(first, batch), *more)
            batches.append(jax.tree.map(lambda x: parallel.gather(x, 1), result))
        return jax.tree.map(lambda *parts: np.concatenate(parts, 1)[:, :wanted], *batches)

    return on_split
