"""From a description back to its object, if everything in it can be imported."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from types import CellType, FunctionType
from typing import TypeAlias, cast

import numpy as np

from vae_jax.identity.code import codes_within, unwrapped
from vae_jax.identity.description import Json

Arrays: TypeAlias = Callable[[dict[str, Json]], np.ndarray | None]


class NotImportableError(Exception):
    """A part of a description cannot be imported; the message is its name."""


def made_from(description: Json, arrays: Arrays) -> object:
    """The object of a description, whose names are imported, which runs code.

    Args:
        description: the result of `describe`.
        arrays: a function from dtype, shape and SHA-256 to an array that is too large for a
            description, or None.

    Raises:
        NotImportableError: a part cannot be imported.
    """

    def make(part: Json) -> object:
        return made_from(part, arrays)

    if isinstance(description, list):
        return tuple(map(make, description))
    if not isinstance(description, dict):
        return description
    match {name: part for name, part in description.items() if name != "class"}:
        case {"import": str(name)}:
            return _imported(name)
        case {"def": str(name), **parts}:
            return _function(name, {each: make(part) for each, part in parts.items()})
        case {"is": "float", "of": str(text)}:
            return float(text)
        case {"is": "numpy.dtype", "of": str(text)}:
            return np.dtype(text)
        case {"is": "numpy.ndarray", "dtype": str(dtype), "shape": list(shape), "of": str(content)}:
            flat = np.frombuffer(bytes.fromhex(content), np.dtype(dtype))
            return flat.reshape(cast("list[int]", shape))
        case {"is": "numpy.ndarray", "shape": list(shape)}:
            if (found := arrays(description)) is None:
                raise NotImportableError(f"an array of shape {shape}")
            return found
        case {"is": "frozenset", "of": list(parts)}:
            return frozenset(map(make, parts))
        case {"is": "dict", "of": dict(parts)}:
            return {name: make(part) for name, part in parts.items()}
        case {"is": "dict", "of": list(parts)}:
            return dict(cast("Iterator[tuple[object, object]]", map(make, parts)))
        case {"is": "functools.partial", "func": func, "args": args, "keywords": keywords}:
            call, given = make(func), cast("tuple[object, ...]", make(args))
            by_name = cast("dict[str, object]", make(keywords))
            return functools.partial(cast("Callable[..., object]", call), *given, **by_name)
        case {"is": "method", "of": owner, "name": str(name)}:
            return getattr(make(owner), name)
        case {"is": str(name), **parts} if "of" not in parts:
            return _instance(name, {each: make(part) for each, part in parts.items()})
        case {"is": str(name)}:
            raise NotImportableError(name)
    raise NotImportableError("an object without a name")


def _imported(name: str) -> object:
    """The object with a dotted name; a name in one script is undefined in another."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        with contextlib.suppress(ImportError, AttributeError):
            found: object = importlib.import_module(".".join(parts[:length]))
            for part in parts[length:]:
                found = getattr(found, part)
            if parts[0] != "__main__":
                return found
    raise NotImportableError(name)


def _instance(name: str, state: dict[str, object]) -> object:
    """A dataclass or a named tuple from its fields, any other object from its state."""
    cls = _imported(name)
    if not isinstance(cls, type) or cls.__module__ == "builtins":
        raise NotImportableError(name)
    if hasattr(cls, "_fields"):
        return cls(**state)
    if dataclasses.is_dataclass(cls):
        given = [field.name for field in dataclasses.fields(cls) if field.init]
        return cls(**{name: state[name] for name in given if name in state})
    made = object.__new__(cls)
    vars(made).update(state)
    return made


def _function(name: str, state: dict[str, object]) -> FunctionType:
    """The function that another one returns, with the variables in `state`."""
    path, _, number = name.partition("#")
    outer, *inner = path.split(".<locals>.")
    factory = inspect.unwrap(unwrapped(_imported(outer)))
    codes = codes_within(factory, inner, {each for each in state if each[0] != "_"})
    if not isinstance(factory, FunctionType) or int(number or 0) >= len(codes):
        raise NotImportableError(path)
    if {each for each in state if each.startswith("__")} - {"__defaults__", "__kwdefaults__"}:
        raise NotImportableError(path)  # an object around it, such as its derivatives' rules
    code = codes[int(number or 0)]
    cells = [CellType(state[each]) if each in state else CellType() for each in code.co_freevars]
    made = FunctionType(code, factory.__globals__, inner[-1], None, tuple(cells))
    made.__defaults__ = cast("tuple[object, ...] | None", state.get("__defaults__"))
    made.__kwdefaults__ = cast("dict[str, object] | None", state.get("__kwdefaults__"))
    made.__qualname__ = path.removeprefix(f"{made.__module__}.")
    return made
