"""A function of many examples, batch by batch on all devices, whatever their memory."""

from collections.abc import Callable
from typing import Generic, TypeVar, cast

import jax
import numpy as np

from vae_jax import parallel
from vae_jax.cpu import platform

# The fraction of a device's memory that the computation for one batch may take.
MEMORY_FRACTION = 0.25
# The assumed number of largest arrays that a device holds at once, until the compiler reports it.
ARRAYS_AT_ONCE = 16
Result = TypeVar("Result")


def floats_at_once() -> int:
    """The limit on the floats in one array of decoded images (examples x samples) or densities."""
    most = int(MEMORY_FRACTION * parallel.device_memory()) // (4 * ARRAYS_AT_ONCE)
    return platform.floats_at_once(most)


class InBatches(Generic[Result]):
    """A function of many examples, batch by batch on every device.

    Batches are as large as `floats_at_once` allows, and smaller if the compiler reports that one
    would need more than `MEMORY_FRACTION` of a device's memory. The last one is padded, and the
    results for the padding are dropped. Matrix products are float32 on every platform.

    Args:
        function: a function of trees that all examples share, and of a device's part of a batch,
            arrays `[b, ...]`; it returns a tree of arrays with an axis `[b]`.
        floats: the number of floats in the largest array that the function makes from one example.
        axis: the position of the axis `[b]` in its results.
        merge: if the function also summarizes its batch, the map from two summaries to that of
            both; a summary of zeros is that of no examples. The function then takes, as its last
            argument, a mask `[b]` of the examples that count, and returns a pair of results and
            summary, which is the same on all devices.
    """

    def __init__(
        self,
        function: Callable[..., object],
        floats: int,
        axis: int = 0,
        merge: Callable[[object, object], object] | None = None,
    ):
        def and_summary(so_far: object, *arguments: object) -> tuple[object, object]:
            if merge is None:
                return function(*arguments), None
            each, own = cast("tuple[object, object]", function(*arguments))
            return each, merge(so_far, own)

        self.function, self.merge, self.axis = function, merge, axis
        self.on_devices = parallel.on_every_device(and_summary, (0,))
        self.most = max(1, floats_at_once() // floats)
        self.fitting: dict[int, int] = {}

    def __call__(
        self,
        shared: tuple[object, ...],
        batch: Callable[[np.ndarray], tuple[np.ndarray | None, ...]],
        count: int,
        rounded: bool = False,
    ) -> Result:
        """The results for all examples, host arrays.

        Args:
            shared: host arrays that all examples share.
            batch: a function from positions of examples to their arrays, any of which may be None.
            count: the number of examples N.
            rounded: whether a few examples are padded to a power of two, so that calls with similar
                numbers of them share a program.
        """
        return self.with_summary(shared, batch, count, rounded)[0]

    def with_summary(
        self,
        shared: tuple[object, ...],
        batch: Callable[[np.ndarray], tuple[np.ndarray | None, ...]],
        count: int,
        rounded: bool = False,
    ) -> tuple[Result, object]:
        """The results for all examples and their summary, as host arrays.

        Args, Returns: as in `__call__`, and the summary of all examples.
        """
        share = -(-count // parallel.num_devices())
        share = 1 << (share - 1).bit_length() if rounded else share
        shared = parallel.replicate(shared)

        def placed(first: int, size: int) -> tuple[object, ...]:
            rows = np.resize(np.arange(first, min(first + size, count)), size)
            parts = *batch(rows), *([] if self.merge is None else [np.arange(size) + first < count])
            return (*shared, *(None if part is None else parallel.split(part, 0) for part in parts))

        parts, summary = [], self._of_nothing(placed(0, parallel.num_devices()))
        # By default accelerators round the factors of a product to ten bits or eight.
        with jax.default_matmul_precision("float32"):
            if share not in self.fitting:  # in all processes, or in none
                self.fitting[share] = self._fitting(share, lambda size: (summary, *placed(0, size)))
            size = parallel.num_devices() * self.fitting[share]
            for first in range(0, count, size):
                result, summary = self.on_devices(summary, *placed(first, size))
                parts.append(jax.tree.map(lambda x: parallel.gather(x, self.axis), result))

        def joined(*parts: np.ndarray) -> np.ndarray:
            return np.concatenate(parts, self.axis)[(slice(None),) * self.axis + (slice(count),)]

        return jax.tree.map(joined, *parts), parallel.unreplicate(summary)

    def _of_nothing(self, arguments: tuple[object, ...]) -> object:
        """The summary of no examples, on all devices; None without `merge`."""
        if self.merge is None:
            return None
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), arguments)
        _, summary = cast("tuple[object, object]", jax.eval_shape(self.function, *one))
        return parallel.replicate(
            jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), summary)
        )

    def _fitting(self, share: int, first: Callable[[int], tuple[object, ...]]) -> int:
        """The largest share of a batch, at most `share`, that fits a device's memory."""
        budget = int(MEMORY_FRACTION * parallel.device_memory())
        share = min(self.most, share)
        while share > 1:
            needed = parallel.temporary_bytes(
                self.on_devices, *first(parallel.num_devices() * share)
            )
            if needed <= budget:
                break
            share = max(1, share * budget // needed)
        return -parallel.max_over_processes(-share)  # the smallest of all processes
