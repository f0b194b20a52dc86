"""Devices: the only file that knows them.

A function of one device's view, with collectives over the axis `AXIS`, runs on every device by
`on_every_device`. Its arguments carry a leading axis of this process's devices: `replicate` makes
it of one value for all, `split` of a share for each.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae_jax.cpu import compiler
from vae_jax.errors import VaeJaxError

AXIS = "batch"
Tree = TypeVar("Tree")


def start_processes() -> None:
    """Joins the other processes of a run (`vae-jax train --distributed`).

    Under Slurm, Open MPI or on a TPU pod JAX finds them by itself; elsewhere each process has
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID set.

    Raises:
        VaeJaxError: nothing says where the other processes are.
    """

    def given(name: str) -> int | None:
        return int(os.environ[name]) if name in os.environ else None

    try:
        jax.distributed.initialize(  # which by itself reads the address alone
            num_processes=given("JAX_NUM_PROCESSES"), process_id=given("JAX_PROCESS_ID")
        )
    except ValueError as error:
        raise VaeJaxError(
            f"No other process was found ({error}): start under Slurm or Open MPI, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error


def is_main_process() -> bool:
    """Whether this process writes the run folder."""
    return jax.process_index() == 0


def num_devices() -> int:
    """The number of devices of all processes."""
    return jax.device_count()


def num_processes() -> int:
    """The number of processes of this run."""
    return jax.process_count()


def largest(value: int) -> int:
    """The largest value that any process has; each waits here for the others."""
    return int(multihost_utils.process_allgather(np.asarray(value)).max())


def from_main_process(tree: Tree) -> Tree:
    """The main process's value of a tree of host arrays; each waits here for the others."""
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def describe_devices() -> dict[str, Any]:
    """What a result's record says of the hardware."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def share_of(batch_size: int) -> int:
    """Examples of a global batch on each device.

    Raises:
        VaeJaxError: the devices do not divide the batch.
    """
    devices = jax.device_count()
    if batch_size % devices:
        raise VaeJaxError(
            f"A batch of {batch_size} does not divide over {devices} devices: choose a multiple "
            f"of {devices}, such as {-(-batch_size // devices) * devices}."
        )
    return batch_size // devices


def _shared() -> bool:
    """Whether what is being traced has a share of the batch: on one device a mean costs copies."""
    try:
        return lax.axis_size(AXIS) > 1
    except NameError:  # outside of `on_every_device`
        return False


def whole_batch(share: Array, axis: int = 0) -> Array:
    """Every device's examples in global order, `[b, ...]` to `[B, ...]`, differentiably.

    Estimators that look at the batch as a whole gather it first, so that they do not change with
    the number of devices. Outside of `on_every_device` the share is the batch.
    """
    return lax.all_gather(share, AXIS, axis=axis, tiled=True) if _shared() else share


def batch_mean(share: Tree) -> Tree:
    """The mean over the devices of equal shares' means, leaf by leaf."""
    return lax.pmean(share, AXIS) if _shared() else share


def updated_if(good: Array, update: Callable[[], Tree], old: Tree) -> Tree:
    """What `update` makes where `good` is true, else `old`."""
    if jax.default_backend() == "cpu":  # a branch works in place, where a choice copies
        return lax.cond(good, update, lambda: old)
    return jax.tree.map(partial(jnp.where, good), update(), old)  # a branch would be slower


def batch_offset(share: int) -> Array | int:
    """The place in the global batch of this device's first example, of `share` on each device."""
    return lax.axis_index(AXIS) * share if _shared() else 0


@dataclass
class OnDevices:
    """A function that runs on every device at once; every argument has the device axis.

    XLA's CPU backend would remove optimization barriers before it fuses operations and merges equal
    ones. In a program of one process they stay: what is behind one is computed once, and what is
    rematerialized, again.

    Attributes:
        mapped: the function, by pmap.
        programs: compiled, for each kind of arguments.
    """

    mapped: Any
    programs: dict[Any, Any] = field(default_factory=dict)

    def compiled(self, *arguments: Any) -> Any:
        """The program for arguments `[D, ...]` of these shapes and types; D devices."""
        leaves, structure = jax.tree.flatten(arguments)
        kind = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if kind not in self.programs:
            stay = jax.local_devices()[0].platform == "cpu" and jax.process_count() == 1
            lowered = self.mapped.lower(*arguments)
            self.programs[kind] = lowered.compile(compiler.KEEP_BARRIERS if stay else None)
        return self.programs[kind]

    def __call__(self, *arguments: Any) -> Any:
        """Its results, `[D, ...]`."""
        if jax.process_count() > 1:  # where pmap puts the processes' arrays together
            return self.mapped(*arguments)
        return self.compiled(*arguments)(*arguments)


def on_every_device(
    function: Callable, donate_argnums: tuple[int, ...] = (), axis: str | None = AXIS
) -> OnDevices:
    """`function` of one device's view, compiled; its collectives call the devices `axis`."""
    return OnDevices(jax.pmap(function, axis_name=axis, donate_argnums=donate_argnums))


def put(leaf: Any) -> Array:
    """A host array with the axis of this process's devices, `[devices, ...]`, on the devices."""
    devices = jax.local_devices()
    mesh = Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(AXIS)))


def replicate(tree: Tree) -> Tree:
    """A copy of every array on each device, `[...]` to `[devices, ...]`."""
    devices = jax.local_device_count()
    return jax.tree.map(lambda x: put(np.broadcast_to(x, (devices, *np.shape(x)))), tree)


def shares(batch: np.ndarray, axis: int) -> np.ndarray:
    """Each device's share of a global batch: `[..., B, ...]` to `[devices, ..., B/devices, ...]`.

    Device i of all devices, those of other processes counted, gets the i-th run of examples.
    """
    every = np.split(batch, jax.device_count(), axis)
    first = jax.process_index() * jax.local_device_count()
    return np.stack(every[first : first + jax.local_device_count()])


def split(batch: np.ndarray, axis: int) -> Array:
    """`shares`, on the devices."""
    return put(shares(batch, axis))


def unreplicate(tree: Tree) -> Tree:
    """The first device's values as host arrays of their own, safe from donation."""
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data)[0], tree)


def gather(sharded: Array, axis: int) -> np.ndarray:
    """Undoes `split`, in every process: `[devices, ..., b, ...]` to `[..., B, ...]`."""
    every_process = multihost_utils.process_allgather(np.asarray(sharded))
    return np.concatenate(np.concatenate(every_process), axis)


@dataclass(frozen=True)
class Layout:
    """How replicas with seeds of their own lie on the devices.

    Attributes:
        apart: each device has replicas of its own with their whole batches, and no word for the
            other devices; otherwise every device has all replicas and a share of each batch.
    """

    apart: bool

    @classmethod
    def of(cls, num_seeds: int, batch_size: int, accumulate: int = 1) -> "Layout":
        """Apart where several devices of one process divide the replicas.

        Raises:
            VaeJaxError: the devices divide neither the replicas nor the batch, or a device's share
                has no `accumulate` equal parts.
        """
        devices = jax.device_count()
        apart = jax.process_count() == 1 < devices and num_seeds % devices == 0
        share = batch_size if apart else share_of(batch_size)
        if share % accumulate:
            raise VaeJaxError(
                f"A device's share of a batch is {share} images, which accumulate={accumulate} "
                "does not divide into equal parts."
            )
        return cls(apart)

    def place(self, tree: Tree) -> Tree:
        """Host arrays `[S, ...]` on the devices, `[D, S, ...]`; apart, `[D, S/D, ...]`."""
        if not self.apart:
            return replicate(tree)
        return jax.tree.map(lambda leaf: put(self._deal(np.asarray(leaf))), tree)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """What each of this process's devices takes of `[S, steps, B]`: `[D, S', steps, b]`."""
        return self._deal(rows) if self.apart else shares(rows, axis=2)

    def collect(self, tree: Tree) -> Tree:
        """Undoes `place`: host arrays of their own, safe from donation."""
        if not self.apart:
            return unreplicate(tree)
        return jax.tree.map(lambda x: np.array(x).reshape(-1, *x.shape[2:]), tree)

    @property
    def axis(self) -> str | None:
        """The name of the axis of the devices that share a batch; None where none does."""
        return None if self.apart or jax.device_count() == 1 else AXIS

    def over_seeds(self, function: Callable) -> OnDevices:
        """A function of one replica, for all replicas, on every device.

        Args:
            function: of a replica's state, of images that all replicas share, of its batches and of
                its seed, to a new state and metrics.

        Returns:
            The same of `[D, S, ...]` (images `[D, ...]`), the state donated.
        """

        def every_seed(state: Any, images: Any, batches: Any, seed: Array) -> Any:
            if len(seed) > 1:
                if jax.default_backend() != "cpu":
                    return jax.vmap(function, (0, None, 0, 0))(state, images, batches, seed)
                # A core is busy with one seed's products; small ones of many seeds take longer.
                each = (state, batches, seed)
                return lax.map(lambda one: function(one[0], images, *one[1:]), each)
            # An axis of one costs a few percent in products of small matrices.
            state, batches, seed = jax.tree.map(lambda leaf: leaf[0], (state, batches, seed))
            result = function(state, images, batches, seed)
            return jax.tree.map(lambda leaf: leaf[None], result)

        return on_every_device(every_seed, (0,), self.axis)

    def _deal(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(jax.device_count(), -1, *array.shape[1:])


def give_replicas_cores(num_seeds: int) -> None:
    """Makes the CPU as many devices as divide both its cores' number and the replicas.

    Where that is a device for each core, each has one thread.

    Only before JAX has started; without effect where there are accelerators, or where XLA_FLAGS
    says how many devices the CPU is.
    """
    cores = os.cpu_count() or 1
    devices, flags = math.gcd(num_seeds, cores), os.environ.get("XLA_FLAGS", "")
    if devices > 1 and "xla_force_host_platform_device_count" not in flags:
        jax.config.update("jax_num_cpu_devices", devices)
        if devices == cores:  # their threads would only wait for each other
            os.environ["XLA_FLAGS"] = f"{flags} {compiler.ONE_THREAD}".strip()


def memory() -> int:
    """Bytes of memory that a device has for itself."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:  # the CPU: its devices share it
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return limit


def temporary_bytes(on_devices: OnDevices, *arguments: Any) -> int:
    """Bytes on each device beside arguments and results, by the compiler's account.

    A call with such arguments does not compile the program again.
    """
    return on_devices.compiled(*arguments).memory_analysis().temp_size_in_bytes
