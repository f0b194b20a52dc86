"""Checks the shapes and types in the package's annotations, wherever the tests call it.

Imported before vae_jax; in training the annotations are only read. jaxtyping's import hook would
check arguments twice, and decorate nested functions whenever the function around them is called.
"""

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from inspect import Parameter
from itertools import chain, repeat
from types import CodeType, ModuleType
from typing import Any, ParamSpecArgs, ParamSpecKwargs, get_type_hints

import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping._storage import pop_shape_memo, push_shape_memo  # no public scope has arguments

ANNOTATED = (
    "interfaces",
    "random",
    "step",
    "vae",
    "hierarchical",
    "deep",
    "conditional",
    "distributions",
    "flows",
    "posteriors",
    "priors",
    "likelihoods",
    "objectives",
    "second_stage",
)
_typed = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float


def _as_jax(value: Any) -> Any:
    """NumPy's arrays will do for JAX's, as they do in every operation."""
    if isinstance(value, tuple):
        return tuple(map(_as_jax, value)) if type(value) is tuple else value
    return jnp.asarray(value) if isinstance(value, np.ndarray) else value


def _check(of: str, annotation: Any, function: Callable) -> Callable[[Any], None] | None:
    """A check of one value; None where anything will do."""
    if annotation is inspect.Signature.empty:
        return None

    def fits(value: Any) -> None: ...

    fits.__qualname__, fits.__module__ = f"{function.__qualname__}: {of}", function.__module__
    fits.__annotations__ = {"value": annotation}
    try:  # it may have a name that its module does not know yet
        hint = get_type_hints(fits, function.__globals__, include_extras=True)["value"]
    except NameError:
        return None
    if hint is Any or isinstance(hint, ParamSpecArgs | ParamSpecKwargs):
        return None
    fits.__annotations__ = {"value": hint}
    strict = _typed(fits)

    def check(value: Any) -> None:
        try:
            strict(value)
        except BeartypeCallHintViolation:
            strict(_as_jax(value))

    return check


def checked(function: Callable) -> Callable:
    """The function, with its arguments and its result checked in one scope of jaxtyping's."""
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    checks = {each.name: _check(each.name, each.annotation, function) for each in parameters}
    of_result = _check("its result", signature.return_annotation, function)
    if {*checks.values(), of_result} == {None}:
        return function
    kinds = {each.kind: each.name for each in parameters}
    more, others = (
        kinds.get(kind, "") for kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    )
    by_position = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD
    names = [each.name for each in parameters if each.kind in by_position]
    of_positions = [checks[name] for name in names]
    of_more, of_others = checks.get(more), checks.get(others)

    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}

    @wraps(function)
    def with_checks(*args: Any, **kwargs: Any) -> Any:
        push_shape_memo(defaults | dict(zip(names, args, strict=False)) | kwargs)
        try:
            for value, check in zip(args, chain(of_positions, repeat(of_more)), strict=False):
                if check is not None:
                    check(value)
            for name, value in kwargs.items():
                check = checks.get(name, of_others)
                if check is not None:
                    check(value)
            result = function(*args, **kwargs)
            if of_result is not None:
                of_result(result)
            return result
        finally:
            pop_shape_memo()

    return with_checks


def functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """Functions and methods, but for constructors.

    JAX rebuilds pytrees with leaves that are not arrays, and a part refuses what a user gives it
    with a sentence of its own.
    """
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node.body)


class _Loader(SourceFileLoader):
    """Decorates functions before anything else does."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for function in functions(tree.body):
            name = ast.Name("_checked", ast.Load())
            function.decorator_list.append(ast.copy_location(name, function))
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["_checked"] = checked
        super().exec_module(module)


class _Finder(PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "vae_jax" or name.partition(".")[0] not in ANNOTATED:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


sys.meta_path.insert(0, _Finder)
