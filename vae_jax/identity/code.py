"""A checksum of code: its instructions, and everything that it takes from its own module.

Comments, docstrings and layout do not change it. Code of installed packages has no checksum: their
versions are in a run's record.
"""

import contextlib
import dis
import enum
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Sequence, Set
from types import CodeType, FunctionType, ModuleType
from typing import Any

from vae_jax.identity.names import is_installed, is_of_package, name_of

_COPIED = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__"}


def checksum(thing: object, describe: Callable[[object], object]) -> str | None:
    """The checksum of a function or class; None for one of an installed package.

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
        name, whole = ahead.pop()
        part = unwrapped(whole)
        if not isinstance(part, type | FunctionType):
            found.append([name, describe(part)])
            continue
        found.append([name, name_of(part)])
        if id(whole) not in seen:
            seen[id(whole)] = whole
            ahead += _members(part) if isinstance(part, type) else _mentioned(whole)
            if isinstance(part, FunctionType) and not is_installed(part):
                found.append(list(_instructions(part.__code__)))
    content = sorted(json.dumps(each) for each in found)
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def unwrapped(part: object) -> Any:
    """The function in `part`, a property, a class method or a compiled function."""
    return list(_layers(part))[-1]


def _layers(part: object) -> Iterator[object]:
    """A function and its wrappers, such as the rules of its derivatives; the function is last."""
    yield part
    for attribute in ("fget", "__func__", "func", "__wrapped__"):
        if not isinstance(part, type | FunctionType | functools.partial) and hasattr(
            part, attribute
        ):
            part = getattr(part, attribute)
            yield part


def variables(thing: object) -> dict[str, object]:
    """The variables that a function closes over, its defaults, and its attributes."""
    function, found = unwrapped(thing), dict[str, object]()
    if not isinstance(function, FunctionType):
        return found
    for layer in _layers(thing):
        attributes = {
            name: value
            for name, value in getattr(layer, "__dict__", {}).items()
            if name not in _COPIED and (layer is function or not name.startswith("_"))
        }
        if attributes:
            found["__dict__" if layer is function else f"__{type(layer).__name__}__"] = attributes
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            found[name] = cell.cell_contents
    for name in ("__defaults__", "__kwdefaults__"):
        if values := getattr(function, name):
            found[name] = values
    return found


def codes_within(factory: object, inner: Sequence[str], closure: Set[str]) -> list[CodeType]:
    """The code of functions inside another.

    Args:
        factory: the code of the outer function.
        inner: the names of the functions, from outside in.
        closure: the names of the variables that they close over.
    """
    function = inspect.unwrap(unwrapped(factory))
    codes = [function.__code__] if isinstance(function, FunctionType) else []
    for name in inner:
        within = [part for code in codes for part in code.co_consts if isinstance(part, CodeType)]
        codes = [code for code in within if code.co_name == name]
    return [code for code in codes if inner and closure <= set(code.co_freevars)]


def _members(cls: type) -> list[tuple[str, object]]:
    """The functions and constants of a class and its bases, without the fields of instances."""
    if issubclass(cls, enum.Enum):
        return [(name, member.value) for name, member in cls.__members__.items()]
    fields = getattr(cls, "__dataclass_fields__", {})
    return [
        (name, part)
        for base in cls.__mro__
        if not is_installed(base)
        for name, part in vars(base).items()
        if name not in fields
        and (isinstance(unwrapped(part), FunctionType) or not name.startswith("_"))
    ]


def _mentioned(thing: object) -> list[tuple[str, object]]:
    """The objects that a function closes over and, unless installed, takes from its module."""
    function, found = unwrapped(thing), list(variables(thing).items())
    if is_installed(function):
        return found
    steps = list(_every_instruction(function.__code__))
    names = {str(step.argval) for step in steps}
    for name in _named_by(steps, "LOAD_GLOBAL"):
        if (part := function.__globals__.get(name)) is not None:
            found += _taken(name, part, names)
    for name in _named_by(steps, "IMPORT_NAME"):
        for module in _imported(name, _named_by(steps, "IMPORT_FROM"), function.__globals__):
            found += _taken(name, module, names)
    return found


def _named_by(steps: Sequence[dis.Instruction], operation: str) -> list[str]:
    return sorted({str(step.argval) for step in steps if step.opname == operation})


def _taken(name: str, part: object, names: Set[str]) -> list[tuple[str, object]]:
    """An object or, for a module that is not installed, the objects that `names` take from it."""
    found, ahead, seen = list[tuple[str, object]](), [(name, part)], set[int]()
    while ahead:
        name, part = ahead.pop()
        if not isinstance(part, ModuleType) or is_installed(part):
            found.append((name, part))
        elif id(part) not in seen:
            seen.add(id(part))
            ahead += [(f"{name}.{each}", vars(part)[each]) for each in names & vars(part).keys()]
    return sorted(found, key=lambda each: each[0])


def _imported(name: str, parts: Sequence[str], scope: dict[str, object]) -> Iterator[ModuleType]:
    """The modules outside of installed packages that a statement in a function may import.

    Args:
        name: the name after `import` or `from`, without dots before it.
        parts: the names after `import` in `from ... import`, modules or others.
        scope: the variables of the function's module.
    """
    package = str(scope.get("__package__") or "")
    around = itertools.accumulate(package.split("."), lambda outer, inner: f"{outer}.{inner}")
    roots = {f"{each}.{name}".strip(".") for each in (*around, "")} | {name.partition(".")[0]}
    for full in roots | {f"{root}.{part}" for root in roots for part in parts}:
        with contextlib.suppress(Exception):  # there is none, or the function itself will raise
            spec = importlib.util.find_spec(full)
            if spec is not None and not is_of_package(spec.origin):
                yield importlib.import_module(full)


def _every_instruction(code: CodeType) -> Iterator[dis.Instruction]:
    for step in dis.get_instructions(code):
        yield step
        if isinstance(step.argval, CodeType):
            yield from _every_instruction(step.argval)


def _instructions(code: CodeType) -> Iterator[object]:
    """The instructions of code, without line numbers and docstring."""
    yield list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    for step in dis.get_instructions(code):
        if isinstance(step.argval, CodeType):
            yield list(_instructions(step.argval))
        else:
            value = sorted(step.argval) if isinstance(step.argval, frozenset) else step.argval
            yield [step.opname, repr(value)]
