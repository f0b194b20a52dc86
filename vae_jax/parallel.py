"""Devices: the only file that knows them.

A function of one device's view, with collectives over the axis `AXIS`, runs on every device
through `on_every_device`. Its arguments carry a leading axis over the devices of this process:
`replicate` gives each device a copy of one value, `split` a share of a batch.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Generic, Literal, TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled, Wrapped
from jax.tree_util import KeyPath
from jax.typing import ArrayLike
from typing_extensions import override

from vae_jax.cpu import compiler, platform
from vae_jax.cpu.cores import over_replicas
from vae_jax.errors import VaeJaxError

AXIS = "batch"
Shard = Literal["optimizer"]
"""The part of a state of which each device may have only a share."""
SHARDED = ("opt_state", "ema_params")
_others_left = False
Tree = TypeVar("Tree")
Result = TypeVar("Result")


def check_devices() -> None:
    """Make sure that JAX finds a device.

    Raises:
        VaeJaxError: JAX finds none, as where JAX_PLATFORMS names another kind.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion fails where CUDA has no device
        wanted = os.environ.get("JAX_PLATFORMS")
        reason = f"JAX_PLATFORMS is {wanted}" if wanted else str(error).split("\n")[0]
        raise VaeJaxError(
            f"JAX finds no device ({reason}): set JAX_PLATFORMS=cpu, or leave it out to take what "
            "there is."
        ) from error


def leave_to_others() -> None:
    """Restrict this process to the CPU; call it before any device is used."""
    jax.config.update("jax_platforms", "cpu")


def own_process() -> int:
    """The number of this process."""
    return jax.process_index()


def is_main_process() -> bool:
    """Whether this process writes the run folder."""
    return own_process() == 0


def num_devices() -> int:
    """The number of devices of all processes that have not left."""
    return jax.local_device_count() if _others_left else jax.device_count()


def num_processes() -> int:
    """The number of processes of this run that have not left."""
    return 1 if _others_left else jax.process_count()


def go_on_alone() -> None:
    """Compute on the devices of this process alone from now on: the others have left."""
    global _others_left
    _others_left = True


def max_over_processes(value: int) -> int:
    """The largest `value` of all processes, which wait here for each other."""
    if num_processes() == 1:
        return value
    return int(multihost_utils.process_allgather(np.asarray(value)).max())


def from_main_process(tree: Tree) -> Tree:
    """The main process's `tree` of host arrays, to the bit, without a copy there; all wait here."""

    def of_one(leaf: np.ndarray | jax.ShapeDtypeStruct) -> np.ndarray:
        own = np.asarray(leaf) if is_main_process() else np.zeros(leaf.shape, leaf.dtype)
        bits = multihost_utils.broadcast_one_to_all(own.ravel().view(np.uint8))  # -0.0 + 0 is 0
        return own if is_main_process() else np.asarray(bits).view(own.dtype).reshape(own.shape)

    return jax.tree.map(of_one, tree)


def own_devices() -> dict[str, str | int]:
    """The number and kind of this process's devices, which must be the same in all processes."""
    return {"number": jax.local_device_count(), "kind": jax.local_devices()[0].device_kind}


def describe_devices() -> dict[str, str | int]:
    """The hardware, for the record of a result."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def share_of(batch_size: int) -> int:
    """The number of examples on each device, of `batch_size` in the global batch.

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
    """Whether the traced function sees a share of the batch; on one device means cost copies."""
    try:
        return lax.axis_size(AXIS) > 1
    except NameError:  # outside of `on_every_device`
        return False


def gather_batch(share: Array, axis: int = 0) -> Array:
    """Gather the examples of all devices in global order, `[b, ...]` to `[B, ...]`.

    Estimators that look at the batch as a whole gather it along `axis` first, so that they do not
    depend on the number of devices. Gradients pass through. Outside of `on_every_device` the share
    is the batch.
    """
    return lax.all_gather(share, AXIS, axis=axis, tiled=True) if _shared() else share


def batch_mean(share: Tree) -> Tree:
    """The mean over devices of the means over their equal shares, leaf by leaf."""
    return lax.pmean(share, AXIS) if _shared() else share


def batch_sum(share: Tree) -> Tree:
    """The sum over devices of the sums over their shares, leaf by leaf."""
    return lax.psum(share, AXIS) if _shared() else share


def updated_if(good: Array, update: Callable[[], Tree], old: Tree) -> Tree:
    """`update()` where the scalar `good` is true, else `old`, a tree of the same shapes."""
    if platform.branches_in_place():
        return lax.cond(good, update, lambda: old)
    return jax.tree.map(partial(jnp.where, good), update(), old)


def batch_offset(share: int) -> Array | int:
    """The position in the global batch of this device's first of `share` examples."""
    return lax.axis_index(AXIS) * share if _shared() else 0


def are_finite(arrays: Iterable[Array | np.ndarray]) -> bool:
    """Whether all numbers of replicated `arrays` are finite, as found on the devices."""
    own = [a.addressable_data(0) if isinstance(a, Array) else a for a in arrays]
    return all(bool((jnp if isinstance(a, Array) else np).isfinite(a).all()) for a in own)


@dataclass
class OnDevices(Generic[Result]):
    """A function that runs on every device at once; its arguments have the device axis.

    Attributes:
        mapped: the function under `jax.pmap`, or under `jax.jit` if arrays are global (`Sharded`).
        programs: the compiled programs, one for each kind of arguments.
    """

    mapped: Wrapped
    programs: dict[Hashable, Compiled] = field(default_factory=dict)

    def compiled(self, *arguments: object) -> Compiled:
        """The program for arguments `[D, ...]` of these shapes and types, D devices."""
        leaves, structure = jax.tree.flatten(arguments)
        kind = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if kind not in self.programs:
            options = platform.options() if num_processes() == 1 else compiler.RIGHT
            self.programs[kind] = self.mapped.lower(*arguments).compile(options or None)
            compiler.give_back_memory()
        return self.programs[kind]

    def __call__(self, *arguments: object) -> Result:
        """The function's results, `[D, ...]`."""
        if num_processes() > 1:  # pmap puts the arrays of the processes together
            return self.mapped(*arguments)
        return self.compiled(*arguments)(*arguments)


def jit(function: Callable[..., object], **how: Any) -> Wrapped:
    """`jax.jit`, for one device by default, with options that XLA needs to compile rightly."""
    return jax.jit(function, compiler_options=compiler.RIGHT or None, **how)


def whole_everywhere(function: Callable[..., object]) -> Wrapped:
    """`jax.jit` of a function of global arrays, whose results are whole on every device."""
    return jit(function, out_shardings=NamedSharding(global_mesh(), PartitionSpec()))


def on_every_device(
    function: Callable[..., Result], donate_argnums: tuple[int, ...] = (), axis: str | None = AXIS
) -> OnDevices[Result]:
    """Compile a function of one device's view for all devices.

    Args:
        function: a function of arrays, whose collectives name the devices `axis`.
        donate_argnums: the positions of arguments whose memory the results may reuse.
        axis: the name of the device axis.
    """
    pmap = partial(jax.pmap, devices=jax.local_devices()) if _others_left else jax.pmap
    return OnDevices(pmap(function, axis_name=axis, donate_argnums=donate_argnums))


def local_mesh() -> Mesh:
    """The devices of this process, along the one axis."""
    return Mesh(np.asarray(jax.local_devices()), (AXIS,))


def global_mesh() -> Mesh:
    """The devices of all processes, along the one axis."""
    return Mesh(np.asarray(jax.devices()), (AXIS,))


def put(leaf: ArrayLike) -> Array:
    """Put a host array `[devices, ...]` on this process's devices."""
    return jax.device_put(leaf, NamedSharding(local_mesh(), PartitionSpec(AXIS)))


@dataclass(frozen=True)
class Placed:
    """A tree of arrays `[devices, ...]` on the devices, which `replicate` does not copy."""

    tree: object


def replicate(tree: Tree) -> Tree:
    """Copy every array of a tree to each device, `[...]` to `[devices, ...]`, unless `Placed`."""
    devices = jax.local_device_count()

    def of_one(leaf: ArrayLike | Placed) -> object:
        if isinstance(leaf, Placed):
            return leaf.tree
        return put(np.broadcast_to(leaf, (devices, *np.shape(leaf))))

    return jax.tree.map(of_one, tree, is_leaf=lambda leaf: isinstance(leaf, Placed))


def shares(batch: np.ndarray, axis: int) -> np.ndarray:
    """Cut a global batch into shares: `[..., B, ...]` to `[devices, ..., B/devices, ...]`.

    Device i, counted over all processes, gets the i-th run of examples along `axis`.
    """
    every = np.split(batch, num_devices(), axis)
    first = 0 if num_processes() == 1 else own_process() * jax.local_device_count()
    return np.stack(every[first : first + jax.local_device_count()])


def split(batch: np.ndarray, axis: int) -> Array:
    """Cut a global batch into `shares` along `axis` and put them on the devices."""
    return put(shares(batch, axis))


def to_host(arrays: Tree) -> Tree:
    """Host arrays of a tree of device arrays, copied once and thus safe from donation."""
    if platform.shows_its_memory():
        return jax.tree.map(np.array, arrays)
    for leaf in jax.tree.leaves(arrays):
        leaf.copy_to_host_async()
    return jax.tree.map(np.asarray, arrays)


def unreplicate(tree: Tree) -> Tree:
    """The first device's values as host arrays, copied and thus safe from donation."""
    first = to_host(jax.tree.map(lambda x: x.addressable_shards[0].data, tree))
    return jax.tree.map(lambda x: x[0], first)


def gather(sharded: Array, axis: int) -> np.ndarray:
    """Undo `split` along `axis`, in every process: `[devices, ..., b, ...]` to `[..., B, ...]`."""
    own = np.asarray(sharded)
    if num_processes() == 1:
        return np.concatenate(own, axis)
    return np.concatenate(np.concatenate(multihost_utils.process_allgather(own)), axis)


class Layout(ABC):
    """The layout of replicas, each with its own seed, on the devices.

    Attributes:
        apart: whether each device has its own replicas with whole batches and exchanges nothing
            with the others; otherwise every device has all replicas and a share of each batch.
    """

    apart: bool = False

    @staticmethod
    def of(
        num_seeds: int, batch_size: int, accumulate: int = 1, shard: Shard | None = None
    ) -> "Layout":
        """The layout for these replicas: apart if the devices of one process divide them.

        Args:
            num_seeds: the number of replicas S.
            batch_size: the number of images in the global batch B.
            accumulate: the number of parts of a device's share.
            shard: the part of the state that is sharded, or None.

        Raises:
            VaeJaxError: the devices divide neither the replicas nor the batch, or a device's share
                has no `accumulate` equal parts.
        """
        check_devices()
        devices = jax.device_count()
        apart = jax.process_count() == 1 < devices and num_seeds % devices == 0 and shard is None
        share = batch_size if apart else share_of(batch_size)
        if share % accumulate:
            raise VaeJaxError(
                f"A device's share of a batch is {share} images, which accumulate={accumulate} "
                "does not divide into equal parts."
            )
        return Replicated(apart) if shard is None else Sharded()

    @property
    def axis(self) -> str | None:
        """The name of the axis of the devices that share a batch; None if they share none."""
        return None if self.apart or jax.device_count() == 1 else AXIS

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """The parts of rows `[S, steps, B]` for this process's devices, `[D, S', steps, b]`."""
        return _dealt(rows) if self.apart else shares(rows, axis=2)

    @property
    @abstractmethod
    def spread(self) -> bool:
        """Whether no process has the whole state."""

    @abstractmethod
    def from_main_process(self, tree: Tree) -> Tree:
        """The main process's state, for `place`; in the others `tree` gives shapes and types."""

    @abstractmethod
    def place(self, tree: Tree) -> Tree:
        """Put a tree of host arrays `[S, ...]`, with an axis over replicas, on the devices."""

    @abstractmethod
    def everywhere(self, tree: Tree) -> Tree:
        """Put a tree of host arrays that replicas share on each device."""

    @abstractmethod
    def put(self, leaf: np.ndarray) -> Array:
        """Put an array from `rows` on the devices of this process."""

    @abstractmethod
    def shapes(self, tree: Tree, everywhere: bool = False) -> Tree:
        """The shapes that `place` or, if so, `everywhere` would put on the devices."""

    @abstractmethod
    def collect(self, tree: Tree) -> Tree:
        """Undo `place`, in every process: host arrays, copied and thus safe from donation."""

    @abstractmethod
    def in_place(self, tree: object) -> Placed:
        """Variables of a state on the devices, as evaluation takes them; not if `apart`."""

    @abstractmethod
    def over_seeds(self, function: Callable[..., Result]) -> OnDevices[Result]:
        """Map a function of one replica over all replicas and devices.

        Args:
            function: a function of a replica's state, of images that all replicas share, of its
                batches, of its seed and of its numbers, such as `step.scanned_steps`.

        Returns:
            The same function of arrays that this layout has placed, the state donated.
        """


@final
@dataclass(frozen=True)
class Replicated(Layout):
    """Every device has the whole state of its replicas: `[D, S, ...]`, apart `[D, S/D, ...]`."""

    apart: bool = False

    @property
    @override
    def spread(self) -> bool:
        return False

    @override
    def from_main_process(self, tree: Tree) -> Tree:
        return from_main_process(tree)

    @override
    def place(self, tree: Tree) -> Tree:
        if not self.apart:
            return replicate(tree)
        return jax.tree.map(lambda leaf: put(_dealt(np.asarray(leaf))), tree)

    @override
    def everywhere(self, tree: Tree) -> Tree:
        return replicate(tree)

    @override
    def put(self, leaf: np.ndarray) -> Array:
        return put(leaf)

    @override
    def shapes(self, tree: Tree, everywhere: bool = False) -> Tree:
        devices = jax.local_device_count()

        def of_one(leaf: Array) -> jax.ShapeDtypeStruct:
            shape = leaf.shape
            if self.apart and not everywhere:
                shape = shape[0] // devices, *shape[1:]
            return jax.ShapeDtypeStruct((devices, *shape), leaf.dtype)

        return jax.tree.map(of_one, tree)

    @override
    def collect(self, tree: Tree) -> Tree:
        if not self.apart:
            return unreplicate(tree)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), to_host(tree))

    @override
    def in_place(self, tree: object) -> Placed:
        return Placed(tree)

    @override
    def over_seeds(self, function: Callable[..., Result]) -> OnDevices[Result]:
        return on_every_device(_every_seed(function), (0,), self.axis)


@final
class Sharded(Layout):
    """Every device has all parameters, and a share of the optimizer's state and of their average.

    A device computes gradients of its share of the batch, then its share of the optimizer's step,
    written for one device and partitioned by the compiler. Arrays are global, `[S, ...]`; one
    without an axis that the devices divide stays whole.

    References:
        Rajbhandari et al. (2020), "ZeRO: memory optimizations toward training trillion parameter
            models", section 5.1.
    """

    @property
    @override
    def spread(self) -> bool:
        return num_processes() > 1

    @override
    def from_main_process(self, tree: Tree) -> Tree:
        if not self.spread:
            return tree
        # One array after the other: other processes never hold more than one whole.
        return _sharded(tree, lambda leaf, sharding: _cut(from_main_process(leaf), sharding))

    @override
    def place(self, tree: Tree) -> Tree:
        return _sharded(tree, _cut)

    everywhere = place  # images are not part of a state, and stay whole

    @override
    def put(self, leaf: np.ndarray) -> Array:
        sharding = NamedSharding(global_mesh(), PartitionSpec(AXIS))
        return jax.make_array_from_process_local_data(sharding, leaf)

    @override
    def shapes(self, tree: Tree, everywhere: bool = False) -> Tree:
        def of_one(leaf: Array, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return _sharded(tree, of_one)

    @override
    def collect(self, tree: Tree) -> Tree:
        if not self.spread:
            return to_host(tree)
        return jax.tree.map(lambda leaf: np.array(self._whole(leaf)), tree)  # one at a time

    @override
    def in_place(self, tree: object) -> Placed:
        def of_one(leaf: Array) -> Array:
            own = [shard.data[None] for shard in leaf.addressable_shards]
            sharding = NamedSharding(local_mesh(), PartitionSpec(AXIS))
            return jax.make_array_from_single_device_arrays((len(own), *leaf.shape), sharding, own)

        return Placed(jax.tree.map(of_one, self._whole(tree)))

    @override
    def over_seeds(self, function: Callable[..., Result]) -> OnDevices[Result]:
        every_seed = _every_seed(function)

        def of_shares(state: object, images: object, batches: object, *each: object) -> Result:
            def joined(shares: Array) -> Array:  # [D, S, steps, b, ...] to [S, steps, B, ...]
                whole = jnp.moveaxis(shares, 0, 2)
                return whole.reshape(*whole.shape[:2], -1, *whole.shape[4:])

            return self.constrained(every_seed(state, images, jax.tree.map(joined, batches), *each))

        return OnDevices(jit(of_shares, donate_argnums=0))

    def constrained(self, tree: Tree) -> Tree:
        """The traced tree, constrained to the sharding of `place`."""
        return _sharded(tree, lax.with_sharding_constraint)

    def on_shares(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """A function of one device's view of state, images, batch and seed as one of all's."""
        whole, shared = PartitionSpec(), PartitionSpec(AXIS)
        specs = whole, shared, shared, whole
        return jax.shard_map(
            function, mesh=global_mesh(), in_specs=specs, out_specs=whole, check_vma=False
        )

    @cached_property
    def _whole(self) -> Wrapped:
        return whole_everywhere(lambda tree: tree)


def _dealt(array: np.ndarray) -> np.ndarray:
    """`[S, ...]` to `[D, S/D, ...]`: a run of replicas for each device."""
    return array.reshape(jax.device_count(), -1, *array.shape[1:])


def _every_seed(function: Callable[..., Result]) -> Callable[..., Result]:
    """A function of one replica (see `Layout.over_seeds`) as one of all replicas of a device."""

    def every_seed(
        state: object, images: object, batches: object, seed: Array, *numbers: Array
    ) -> Result:
        each = (state, batches, seed, *numbers)

        def of_one(state: object, *own: object) -> Result:
            return function(state, images, *own)

        if len(seed) > 1:
            return over_replicas(of_one)(*each)
        # An axis of size one makes products of small matrices slower.
        result = of_one(*jax.tree.map(lambda leaf: leaf[0], each))
        return jax.tree.map(lambda leaf: leaf[None], result)

    return every_seed


def _sharded(tree: Tree, put: Callable[[Array, NamedSharding], object]) -> Tree:
    """The tree of `put(array, sharding)`, with each array's sharding in a `Sharded` layout."""
    mesh = global_mesh()

    def of_one(path: KeyPath, leaf: Array) -> object:
        axes: list[str | None] = [None] * np.ndim(leaf)
        if any(getattr(key, "name", None) in SHARDED for key in path[:2]):
            divided = [n for n, size in enumerate(leaf.shape) if size % mesh.size == 0]
            for axis in divided[-1:]:
                axes[axis] = AXIS
        return put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree_util.tree_map_with_path(of_one, tree)


def _cut(whole: np.ndarray | Array, sharding: NamedSharding) -> Array:
    """Put this process's parts of a host array on its devices, unless they are there."""
    if isinstance(whole, Array):
        return jax.device_put(whole, sharding)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def device_memory() -> int:
    """The bytes of memory of each device; devices that share the host's memory divide it."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return platform.memory() // jax.local_device_count() if limit is None else limit


def temporary_bytes(on_devices: OnDevices[Result], *arguments: object) -> int:
    """The bytes that `on_devices` needs on each device besides its `arguments` and results."""
    analysis = on_devices.compiled(*arguments).memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes
