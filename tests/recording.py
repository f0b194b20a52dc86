"""The keys that a program draws from and folds, recorded while it runs.

A key is recorded where every sampler of `jax.random` turns it into bits, inside `jit`, `vmap`,
`scan` and `grad` alike. What does not lead to a key is removed before a program is compiled, so a
whole training step costs a fraction of a second.
"""

import ast
import contextlib
import functools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.random import prng  # no public function sees every draw
from jax.custom_batching import custom_vmap
from jax.extend.random import define_prng_impl

import vae_jax
from vae_jax.cpu import threefry

PACKAGE = Path(vae_jax.__file__).parent
SPLITS = {"train", "valid", "test", "given"}  # purposes, in `random.image_keys`
Key = tuple[int, int]


@functools.cache
def purposes() -> set[str]:
    """The names of all purposes in the package: its calls of `purpose` and `purposes`."""
    calls = [
        node
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
    ]
    return SPLITS | {
        name.value
        for call in calls
        if getattr(call.func, "attr", None) in ("purpose", "purposes")
        for name in call.args[1:]
        if isinstance(name, ast.Constant) and isinstance(name.value, str)
    }


def checksum(name: str) -> int:
    """The number by which a purpose is folded in."""
    return zlib.crc32(name.encode()) | 1 << 31


class Recording:
    """The keys of the programs that ran.

    Attributes:
        drawn: how often each key was drawn from, or split by one of JAX's own samplers.
        folded: the keys that others were derived from.
        origins: what each derived key was derived from, and how: one way, unless keys collide.
        bits: what was drawn, in `recording(bits=True)`: keys `[n, 2]` and bits `[n, ...]`.
    """

    def __init__(self):
        self.drawn = Counter[Key]()
        self.folded = set[Key]()
        self.origins: dict[Key, set[tuple[Key, int | None]]] = {}
        self.bits: list[tuple[np.ndarray, np.ndarray]] = []
        self._names = {checksum(name): name for name in purposes()}

    def path(self, key: Key) -> tuple[str | int, ...]:
        """The purposes and indices that led to a key from the one that nothing led to."""
        for parent, data in self.origins.get(key, ()):
            step = "split" if data is None else self._names.get(data, data)
            return *self.path(parent), step
        return ()

    def paths(self) -> set[tuple[str | int, ...]]:
        """Those of all keys that were drawn from, but for what samplers split off by themselves."""
        return {path for path in map(self.path, self.drawn) if "split" not in path}

    def check(self, repeated: dict[tuple[str, ...], int] | None = None) -> None:
        """Every key is drawn from once, and none is drawn from and folded.

        Args:
            repeated: paths, without their indices, of noise that is meant to be drawn more than
                once, and how often.

        Raises:
            AssertionError: two draws share bits.
        """
        assert self.drawn, "nothing was drawn"
        for ways in self.origins.values():
            assert len(ways) == 1, f"{[(*self.path(k), data) for k, data in ways]} are one key"
        for key, times in self.drawn.items():
            path = self.path(key)
            if "split" in path:
                continue
            names = tuple(step for step in path if isinstance(step, str))
            wanted = (repeated or {}).get(names, 1)
            assert times == wanted, f"{path} is drawn from {times} times"
            assert key not in self.folded, f"{path} is drawn from and folded"


_active: list[Recording] = []


def _recorder(write: Callable[..., None]) -> Callable[..., Any]:
    """A function of arrays `[...]` that calls `write` with host arrays `[n, ...]` when it runs."""

    def call(*arrays: Any) -> None:
        if _active:
            write(_active[-1], *map(np.asarray, arrays))

    @custom_vmap
    def record(*arrays: Any) -> Any:
        jax.debug.callback(call, *arrays)
        return ()

    @record.def_vmap
    def _(size: int, batched: Any, *arrays: Any) -> Any:
        """All at once, where `debug.callback` would unroll the axis."""
        record(
            *(
                array if is_batched else jnp.broadcast_to(array, (size, *array.shape))
                for array, is_batched in zip(arrays, batched, strict=True)
            )
        )
        return (), ()

    return record


def _keys(array: np.ndarray) -> Iterator[Key]:
    yield from map(tuple, array.reshape(-1, 2).tolist())


def _write_draw(recording: Recording, keys: np.ndarray, *bits: np.ndarray) -> None:
    recording.drawn.update(_keys(keys))
    for array in bits:
        count = keys.size // 2
        recording.bits.append((keys.reshape(count, 2), array.reshape(count, -1)))


def _write_fold(
    recording: Recording, parents: np.ndarray, data: np.ndarray, children: np.ndarray
) -> None:
    parents = np.broadcast_to(parents, children.shape)
    for parent, number, child in zip(
        _keys(parents), data.ravel().tolist(), _keys(children), strict=True
    ):
        recording.folded.add(parent)
        recording.origins.setdefault(child, set()).add((parent, number))


def _write_split(recording: Recording, parents: np.ndarray, children: np.ndarray) -> None:
    recording.drawn.update(_keys(parents))
    count = children.size // parents.size
    for parent, child in zip(
        _keys(np.repeat(parents.reshape(-1, 2), count, 0)), _keys(children), strict=True
    ):
        recording.origins.setdefault(child, set()).add((parent, None))


_record_draw, _record_fold, _record_split = map(_recorder, (_write_draw, _write_fold, _write_split))
_random_bits, _fold_in, _split = prng.random_bits, prng.random_fold_in, prng.random_split


def _implementation(name: str) -> Any:
    """JAX's threefry under another name, so that no program traced elsewhere is taken for it."""
    own = prng.prngs["threefry2x32"]
    return define_prng_impl(
        key_shape=own.key_shape,
        seed=own.seed,
        split=own.split,
        random_bits=own.random_bits,
        fold_in=own.fold_in,
        name=name,
        tag=name,
    )


_IMPLEMENTATIONS = {bits: _implementation(f"recorded{bits}") for bits in (False, True)}


def _is_recorded(keys: Any) -> bool:
    return "recorded" in str(keys.dtype)


def _recorded_bits(keys: Any, bit_width: int, shape: tuple[int, ...]) -> Any:
    made = _random_bits(keys, bit_width, shape)
    if _is_recorded(keys):
        with_bits = "True" in str(keys.dtype)
        _record_draw(jax.random.key_data(keys), *([made] if with_bits else []))
    return made


def _recorded_fold(keys: Any, data: Any) -> Any:
    made = _fold_in(keys, data)
    if _is_recorded(keys):
        as_integer = jnp.asarray(data, jnp.uint32)
        _record_fold(jax.random.key_data(keys), as_integer, jax.random.key_data(made))
    return made


def _recorded_split(keys: Any, shape: tuple[int, ...]) -> Any:
    made = _split(keys, shape)
    if _is_recorded(keys):
        _record_split(jax.random.key_data(keys), jax.random.key_data(made))
    return made


@contextlib.contextmanager
def recording(bits: bool = False) -> Iterator[Recording]:
    """Records keys that `vae_jax.random.key` makes, and all that comes of them.

    Args:
        bits: whether also what is drawn.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threefry, "_impl", _IMPLEMENTATIONS[bits])
        patch.setattr(prng, "random_bits", _recorded_bits)
        patch.setattr(prng, "random_fold_in", _recorded_fold)
        patch.setattr(prng, "random_split", _recorded_split)
        _active.append(Recording())
        try:
            yield _active[-1]
        finally:
            jax.effects_barrier()
            _active.pop()


_jit = jax.jit


def keys_alone(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
    """The function, compiled without what its results need but its keys do not: it returns zeros.

    In place of `jax.jit` it makes a program that is quick to compile. A function of other things
    than arrays, which a library compiles within a program, is called as it is.
    """

    def call(*arguments: Any) -> Any:
        if not all(isinstance(leaf, jax.typing.ArrayLike) for leaf in jax.tree.leaves(arguments)):
            return function(*arguments)
        shapes: list[Any] = []

        def without_results(*arguments: Any) -> None:
            shapes.append(jax.tree.map(jax.typeof, function(*arguments)))

        _jit(without_results)(*arguments)
        jax.effects_barrier()
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes[0])

    return call
