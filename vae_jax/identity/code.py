"""A checksum of code: its instructions, and whatever it takes from its own module.

Comments, docstrings and layout may change. Code of installed packages has none: their versions are
in a run's record.
"""

import contextlib
import dis
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence, Set
from types import CodeType, FunctionType, ModuleType
from typing import Any

from vae_jax.identity.names import is_installed, name_of


def checksum(thing: object, describe: Callable[[object], object]) -> str | None:
    """The checksum of a function or class; None where it is that of an installed package.

    Args:
        thing: the function or class.
        describe: the description of other objects that its code names.
    """
    if is_installed(thing):
        return None
    seen: dict[int, object] = {}
    found: list[object] = []
    ahead = [("", thing)]
    while ahead:
        name, part = ahead.pop()
        part = unwrapped(part)
        if not isinstance(part, type | FunctionType):
            found.append([name, describe(part)])
            continue
        found.append([name, name_of(part)])
        if id(part) not in seen:
            seen[id(part)] = part
            ahead += _members(part) if isinstance(part, type) else _mentioned(part)
            if isinstance(part, FunctionType) and not is_installed(part):
                found.append(list(_instructions(part.__code__)))
    content = sorted(json.dumps(each) for each in found)
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def unwrapped(part: object) -> Any:
    """The function in a property, a class method or a compiled function."""
    for attribute in ("fget", "__func__", "func", "__wrapped__"):
        if not isinstance(part, type | FunctionType | functools.partial):
            part = getattr(part, attribute, part)
    return part


def variables(thing: object) -> dict[str, object]:
    """What a function closes over, and the defaults that it was made with."""
    function, found = unwrapped(thing), dict[str, object]()
    if not isinstance(function, FunctionType):
        return found
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            found[name] = cell.cell_contents
    for name in ("__defaults__", "__kwdefaults__"):
        if values := getattr(function, name):
            found[name] = values
    return found


def codes_within(factory: object, inner: Sequence[str], closure: Set[str]) -> list[CodeType]:
    """The code of functions inside another, by the names on the way, that close over these."""
    function = inspect.unwrap(unwrapped(factory))
    codes = [function.__code__] if isinstance(function, FunctionType) else []
    for name in inner:
        within = [part for code in codes for part in code.co_consts if isinstance(part, CodeType)]
        codes = [code for code in within if code.co_name == name]
    return [code for code in codes if inner and closure <= set(code.co_freevars)]


def _members(cls: type) -> list[tuple[str, object]]:
    """Functions and constants of a class and its bases, but fields, which instances have."""
    fields = getattr(cls, "__dataclass_fields__", {})
    return [
        (name, part)
        for base in cls.__mro__
        if not is_installed(base)
        for name, part in vars(base).items()
        if name not in fields
        and (isinstance(unwrapped(part), FunctionType) or not name.startswith("_"))
    ]


def _mentioned(function: FunctionType) -> list[tuple[str, object]]:
    """What a function closes over and, if it is not installed, what it takes from its module."""
    found = list(variables(function).items())
    if is_installed(function):
        return found
    steps = list(_every_instruction(function.__code__))
    for name in sorted({str(step.argval) for step in steps if step.opname == "LOAD_GLOBAL"}):
        part = function.__globals__.get(name)
        if isinstance(part, ModuleType) and not is_installed(part):  # and what it takes from that
            taken = {str(step.argval) for step in steps} & vars(part).keys()
            found += [(f"{name}.{each}", vars(part)[each]) for each in sorted(taken)]
        elif part is not None:
            found.append((name, part))
    return found


def _every_instruction(code: CodeType) -> Iterator[dis.Instruction]:
    for step in dis.get_instructions(code):
        yield step
        if isinstance(step.argval, CodeType):
            yield from _every_instruction(step.argval)


def _instructions(code: CodeType) -> Iterator[object]:
    """What code does, whatever its lines are and whatever it says of itself."""
    yield list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    for step in dis.get_instructions(code):
        if isinstance(step.argval, CodeType):
            yield list(_instructions(step.argval))
        else:
            value = sorted(step.argval) if isinstance(step.argval, frozenset) else step.argval
            yield [step.opname, repr(value)]
