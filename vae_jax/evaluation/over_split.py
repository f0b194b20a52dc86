"""Evaluation of a function over all images of a split, each counted once, on all devices."""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from flax.typing import VariableDict
from jax import Array

from vae_jax import parallel, random
from vae_jax.data import SplitName
from vae_jax.errors import VaeJaxError
from vae_jax.evaluation.moments import Moments, merged
from vae_jax.experiment import Experiment
from vae_jax.run.batches import InBatches

PerImage = dict[str, np.ndarray]
"""Values of each image by name, `[S, N, ...]`."""
OfSeeds = VariableDict | parallel.Placed
"""Variables of S seeds: host arrays `[S, ...]` such as `Run.variables`, or arrays on devices."""
Evaluator = Callable[[OfSeeds], PerImage]
"""A function of the variables of S seeds."""


def over_split(
    experiment: Experiment,
    split: SplitName,
    function: Callable[..., object],
    num_images: int | None = None,
    num_decoded: int = 1,
    with_moments: bool = False,
) -> Callable[..., Any]:
    """Map a function of images over a split.

    The images are cut into batches, as in `InBatches`. The keys of an image depend on its
    position in the split alone, so its values depend on neither batches nor devices.

    Args:
        experiment: the experiment, for its data and model.
        split: the split of the data.
        function: a function of the variables of one seed, images `[B, H, W, C]` scaled by the
            protocol, their keys `[B]`, their labels `[B]` (None in a model without labels) and
            further trees of that seed; it returns a tree of arrays `[B, ...]`.
        num_images: the number of images N, evenly spaced over the split; None takes all.
        num_decoded: the number of images that are decoded for each image at once.
        with_moments: whether the function returns a pair of trees, the second of which is returned
            only as moments over the images, which stay on the devices until the end.

    Returns:
        A function of variables and further trees, as `OfSeeds`, to the tree of host arrays `[S, N,
        ...]`; with moments, to that and the tree of `Moments` `[S, ...]`. It is compiled at its
        first call.

    Raises:
        VaeJaxError: the split has fewer images, or none.
    """
    data_split = experiment.data[split]
    images, total = data_split.images, len(data_split.images)
    wanted = total if num_images is None else num_images
    if not 1 <= wanted <= total:
        raise VaeJaxError(
            f"The {split} split of {experiment.data.name} has {total} images: it cannot be "
            f"evaluated on {wanted}; take {f'1 to {total}' if total else 'another split'}."
        )
    rows = np.arange(wanted) * total // wanted
    labels = None if experiment.model.labels is None else data_split.labels

    def one_device(
        variables: VariableDict,
        more: tuple[object, ...],
        images: Array,
        indices: Array,
        y: Array | None,
        counted: Array | None = None,
    ) -> object:
        image_keys = random.image_keys(split, indices)
        x = experiment.data.protocol.apply(images, random.purpose(image_keys, "protocol"))
        keys = random.purpose(image_keys, "evaluation")

        def one_seed(variables: VariableDict, more: tuple[object, ...]) -> object:
            return function(variables, x, keys, y, *more)

        found = jax.vmap(one_seed)(variables, more)
        if counted is None:
            return found
        each, others = cast("tuple[object, object]", found)
        of = jax.vmap(Moments.of, (0, None))
        return each, jax.tree.map(lambda values: of(values, counted), others)

    def batch(positions: np.ndarray) -> tuple[np.ndarray | None, ...]:
        chosen = rows[positions].astype(np.int32)
        return images[chosen], chosen, None if labels is None else labels[chosen]

    decoded = math.prod(experiment.data.image_shape) * num_decoded
    merge = merged if with_moments else None
    in_batches = InBatches[object](one_device, decoded, axis=1, merge=merge)
    of_all = in_batches.with_summary if with_moments else in_batches

    def on_split(variables: OfSeeds, *more: object) -> object:
        return of_all((variables, more), batch, wanted)

    return on_split
