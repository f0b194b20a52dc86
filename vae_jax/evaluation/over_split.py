"""A function of images, over a split of the data and all devices, with every image counted once."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax.typing import VariableDict
from jax import Array

from vae_jax import parallel, random
from vae_jax.data import SplitName
from vae_jax.errors import VaeJaxError
from vae_jax.experiment import Experiment

# The samples drawn from one key: a constant, so that an image's noise depends on nothing else.
SAMPLES_AT_ONCE = 64
# The floats in one array of (images x samples) decoded images: 4 MiB on each device, cache-sized.
DECODED_FLOATS = 2**20
# The fraction of a device's memory that whatever is computed of one batch may take.
MEMORY_FRACTION = 0.25

PerImage = dict[str, np.ndarray]
"""Values of each image by name, `[S, N, ...]`."""
Evaluator = Callable[[VariableDict], PerImage]
"""A function of the variables of S seeds, host arrays `[S, ...]` such as `Run.variables`."""


def over_split(
    experiment: Experiment,
    split: SplitName,
    function: Callable[..., object],
    num_images: int | None = None,
    num_decoded: int = 1,
) -> Callable[..., Any]:
    """Map a function of images over a split.

    The images are cut into batches: as large as `DECODED_FLOATS` allows, and smaller where the
    compiler says that a batch would need more than `MEMORY_FRACTION` of a device's memory. The last
    one is padded, and what is computed of the padding is thrown away. The keys of an image depend
    on its position in the split alone, so its values depend on neither batches nor devices. Matrix
    products are float32 on every platform.

    Args:
        experiment: its data, and the model whose variables are given.
        split: the split of the data.
        function: a function of the variables of one seed, images `[B, H, W, C]` scaled by the
            protocol, their keys `[B]`, their labels `[B]` (None in a model without labels) and
            further trees of that seed; it returns a tree of arrays `[B, ...]`.
        num_images: the number of images N, evenly spaced over the split; None takes all.
        num_decoded: the number of images that are decoded for each image at once.

    Returns:
        A function of variables and further trees, host arrays `[S, ...]` of S seeds, to the tree of
        host arrays `[S, N, ...]`. It is compiled at its first call.

    Raises:
        VaeJaxError: the split does not have this number of images, or none.
    """
    data_split = getattr(experiment.data, split)
    images, total = data_split.images, len(data_split.images)
    wanted = total if num_images is None else num_images
    if not 1 <= wanted <= total:
        raise VaeJaxError(
            f"The {split} split of {experiment.data.name} has {total} images: it cannot be "
            f"evaluated on {wanted}."
        )
    rows = np.arange(wanted) * total // wanted
    devices = parallel.num_devices()
    labels = None if experiment.model.labels is None else data_split.labels

    def one_device(
        variables: VariableDict, images: Array, indices: Array, y: Array | None, *more: object
    ) -> object:
        image_keys = random.image_keys(split, indices)
        x = experiment.data.protocol.apply(images, random.purpose(image_keys, "protocol"))
        keys = random.purpose(image_keys, "evaluation")

        def one_seed(variables: VariableDict, *more: object) -> object:
            return function(variables, x, keys, y, *more)

        return jax.vmap(one_seed)(variables, *more)

    on_devices = parallel.on_every_device(one_device)

    def batch_from(first: int, size: int) -> tuple[Array, Array, Array | None]:
        padded = np.resize(rows[first : first + size], size).astype(np.int32)
        y = None if labels is None else parallel.split(labels[padded], 0)
        return parallel.split(images[padded], 0), parallel.split(padded, 0), y

    def fitting_size(variables: VariableDict, *more: object) -> int:
        """The largest batch over all devices that is within the limits."""
        most = DECODED_FLOATS // (math.prod(experiment.data.image_shape) * num_decoded)
        share = min(max(1, most), -(-wanted // devices))
        budget = int(MEMORY_FRACTION * parallel.device_memory())
        while share > 1:
            arguments = variables, *batch_from(0, devices * share), *more
            needed = parallel.temporary_bytes(on_devices, *arguments)
            if needed <= budget:
                break
            share = max(1, share * budget // needed)
        return devices * -parallel.max_over_processes(-share)  # the least of any process

    size = 0

    def on_split(variables: VariableDict, *more: object) -> object:
        nonlocal size
        variables, more = parallel.replicate((variables, more))
        batches = []
        # Accelerators round the factors of a product to ten bits or eight unless told not to.
        with jax.default_matmul_precision("float32"):
            size = size or fitting_size(variables, *more)
            for first in range(0, wanted, size):
                result = on_devices(variables, *batch_from(first, size), *more)
                batches.append(jax.tree.map(lambda x: parallel.gather(x, 1), result))
        return jax.tree.map(lambda *parts: np.concatenate(parts, 1)[:, :wanted], *batches)

    return on_split
