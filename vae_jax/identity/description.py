"""From an object to its description."""

import dataclasses
import enum
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import TypeAlias

import flax.linen as nn
import jax
import numpy as np

from vae_jax.identity.code import checksum, codes_within, unwrapped, variables
from vae_jax.identity.names import is_installed, name_of, named

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_KEPT = 1000  # the largest size of an array whose description has its numbers


def describe(thing: object) -> Json:
    """The description of the object `thing`, as read from a JSON file."""
    return _describe(thing, ())


def _describe(thing: object, around: tuple[int, ...]) -> Json:
    """The description of an object that is part of others, with the ids `around`."""
    if id(thing) in around:
        return {"is": "recursion"}

    def of(part: object) -> Json:
        return _describe(part, (*around, id(thing)))

    match thing:
        case enum.Enum():
            about = {} if is_installed(type(thing)) else {"value": of(thing.value)}
            return {"import": f"{name_of(type(thing))}.{thing.name}"} | about
        case float() if not math.isfinite(thing):
            return {"is": "float", "of": str(thing)}
        case np.ndarray() | np.generic() | jax.Array():
            return _array(np.asarray(thing))
        case None | bool() | int() | str() | float():
            return thing
        case Path():
            return str(thing)
        case np.dtype():
            return {"is": "numpy.dtype", "of": str(thing)}
        case tuple() if isinstance(fields := getattr(thing, "_fields", None), tuple):
            return {"is": name_of(type(thing))} | dict(zip(fields, map(of, thing), strict=True))
        case tuple() | list():
            return [of(part) for part in thing]
        case set() | frozenset():
            return {"is": "frozenset", "of": sorted(map(of, thing), key=json.dumps)}
        case Mapping():
            if all(isinstance(key, str) for key in thing):
                return {"is": "dict", "of": {key: of(thing[key]) for key in sorted(thing)}}
            pairs: list[Json] = [[of(key), of(value)] for key, value in thing.items()]
            return {"is": "dict", "of": sorted(pairs, key=json.dumps)}
        case functools.partial():
            call = {"func": thing.func, "args": thing.args, "keywords": thing.keywords}
            return {"is": "functools.partial"} | {name: of(part) for name, part in call.items()}
        case MethodType():
            return {"is": "method", "of": of(thing.__self__), "name": thing.__name__}
        case ModuleType():
            return {"import": thing.__name__}
        case _ if callable(thing) and named(name := name_of(thing)) is thing:
            return {"import": name} | _code(thing, of)
        case _ if isinstance(unwrapped(thing), type | FunctionType):
            return _local(thing, of)
    return {"is": name_of(type(thing))} | _code(type(thing), of) | _state(thing, of)


def _array(array: np.ndarray) -> Json:
    content = np.ascontiguousarray(array).tobytes()
    about: dict[str, Json] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    about["sha256"] = hashlib.sha256(content).hexdigest()
    if array.size <= _KEPT:
        about["of"] = content.hex()
    return {"is": "numpy.ndarray"} | about


def _code(thing: object, of: Callable[[object], Json]) -> dict[str, Json]:
    found = checksum(thing, of)
    return {} if found is None else {"class": found}


def _local(thing: object, of: Callable[[object], Json]) -> dict[str, Json]:
    """A function, or a class, that another function has made."""
    name = name_of(thing)
    made_with = variables(thing)
    outer, *inner = name.split(".<locals>.")
    alike = codes_within(named(outer), inner, {each for each in made_with if each[0] != "_"})
    code = getattr(unwrapped(thing), "__code__", None)
    number = f"#{alike.index(code)}" if code in alike and len(alike) > 1 else ""
    about = {each: of(part) for each, part in made_with.items()}
    return {"def": name + number} | _code(thing, of) | about


def _state(thing: object, of: Callable[[object], Json]) -> dict[str, Json]:
    """The state of an object: its fields, attributes, or `repr`."""
    cls = type(thing)
    if dataclasses.is_dataclass(thing):
        state = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
        if isinstance(thing, nn.Module):  # its position in a model, unless the user has named it
            position = {"parent"} if thing.name else {"parent", "name"}
            state = {name: part for name, part in state.items() if name not in position}
        # NumPy's numbers count as Python's, unless a user's code may ask for their types.
        same = np.generic if is_installed(cls) else np.integer | np.bool_
        state = {
            name: part.item() if isinstance(part, same) else part for name, part in state.items()
        }
        return {name: of(part) for name, part in state.items()}
    kept = {
        name: part
        for name, part in getattr(thing, "__dict__", {}).items()
        if not isinstance(getattr(cls, name, None), functools.cached_property)
    }
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            own = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") else name
            if hasattr(thing, own):
                kept[name] = getattr(thing, own)
    said = {} if kept or " at 0x" in repr(thing) else {"of": repr(thing)}
    return {name: of(part) for name, part in kept.items()} | said
