"""Functions that differ in numbers alone, as one function of these numbers.

A function is traced to its jaxpr, in which a hyperparameter is a literal or a constant, whichever
field, closure or schedule it came from. Functions whose jaxprs are equal but for such numbers are
one program, with the numbers as its inputs. What Python decides by a value, such as a branch, a
shape or an exponent, makes the jaxprs unequal, and the functions separate programs.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core import primitives as of_jax

Result = TypeVar("Result")
Value: TypeAlias = Array | np.ndarray
Position: TypeAlias = "tuple[int | str, ...]"
"""The position of a number: the equations on the way to it, and its index."""
Numbers: TypeAlias = Mapping[Position, Value]

# Calls of inner functions that are not differentiated any more: their derivatives do not matter.
_CALLS = {
    of_jax.jit_p: "jaxpr",
    of_jax.custom_jvp_call_p: "call_jaxpr",
    of_jax.custom_vjp_call_p: "call_jaxpr",
}
_LOOPS = (of_jax.scan_p, of_jax.while_p, of_jax.cond_p, of_jax.remat_p)


@dataclass(frozen=True)
class Program(Generic[Result]):
    """Functions that differ in numbers alone.

    Attributes:
        members: their indices among all functions.
        numbers: the numbers in which they differ, an array `[members, ...]` each.
        function: a function of the arguments, followed by the numbers of one member.
    """

    members: list[int]
    numbers: tuple[np.ndarray, ...]
    function: Callable[..., Result]


def programs(
    functions: Sequence[Callable[..., Result]],
    *arguments: object,
    axes: Sequence[tuple[str, int]] = (),
) -> list[Program[Result]]:
    """Group functions that differ in numbers alone.

    A function without a match stays as it is, and its program is the same to the bit.

    Args:
        functions: functions of the same arguments.
        arguments: arrays, or their shapes and types, which alone matter.
        axes: the names and sizes of the axes that the functions' collectives use.

    Returns:
        The groups, in the order of their first functions.
    """
    trace = partial(jax.make_jaxpr, axis_env=list(axes), return_shape=True)
    traced: list[tuple[ClosedJaxpr, Result]] = [trace(each)(*arguments) for each in functions]
    found: list[dict[Position, Value]] = [{} for _ in functions]
    groups: dict[Hashable, list[int]] = {}
    for index, (jaxpr, result) in enumerate(traced):
        skeleton = _skeleton(jaxpr.jaxpr, jaxpr.consts, (), found[index])
        groups.setdefault((skeleton, jax.tree.structure(result)), []).append(index)

    def program(members: list[int]) -> Program[Result]:
        first = members[0]
        columns = {
            position: [found[index][position] for index in members] for position in found[first]
        }
        differing = {
            position: np.stack(column)
            for position, column in columns.items()
            if len({np.asarray(value).tobytes() for value in column}) > 1
        }
        if not differing:
            return Program(members, (), functions[first])
        jaxpr, result = traced[first]

        def function(*arguments: object) -> Result:
            leaves = jax.tree.leaves(arguments)
            others, numbers = leaves[: -len(differing)], leaves[-len(differing) :]
            own = dict(zip(differing, numbers, strict=True))
            results = _run(jaxpr.jaxpr, jaxpr.consts, others, (), own)
            return jax.tree.unflatten(jax.tree.structure(result), results)

        return Program(members, tuple(differing.values()), function)

    return [program(members) for members in groups.values()]


def _skeleton(
    jaxpr: Jaxpr, consts: Sequence[Value], position: Position, numbers: dict[Position, Value]
) -> Hashable:
    """A jaxpr without its numbers, which are collected by their positions."""
    names: dict[Var, int] = {}

    def of_number(value: Value, position: Position) -> Hashable:
        if jnp.issubdtype(value.dtype, jax.dtypes.extended):
            return id(value)
        numbers[position] = value
        return value.shape, value.dtype

    def of_atom(atom: Var | Literal, position: Position) -> Hashable:
        if isinstance(atom, Literal):
            return of_number(np.asarray(atom.val), position), atom.aval
        return names.setdefault(atom, len(names)), atom.aval

    def of_parameter(part: object, position: Position) -> Hashable:
        match part:
            case ClosedJaxpr():
                return _skeleton(part.jaxpr, part.consts, position, numbers)
            case Jaxpr():
                return _skeleton(part, (), position, numbers)
            case tuple() | list():
                return tuple(of_parameter(each, (*position, n)) for n, each in enumerate(part))
            case Hashable():
                return part
        return id(part)

    def of_equation(equation: JaxprEqn, position: Position) -> Hashable:
        primitive, parameters = equation.primitive, equation.params
        if primitive in _CALLS:
            parameters = {_CALLS[primitive]: parameters[_CALLS[primitive]]}
        inner_numbers = len(numbers)
        inner = [of_parameter(parameters[name], (*position, name)) for name in sorted(parameters)]
        if primitive not in _CALLS and primitive not in _LOOPS:  # no number in it can be replaced
            fixed = list(numbers)[inner_numbers:]
            inner.append(tuple(np.asarray(numbers.pop(each)).tobytes() for each in fixed))
        inputs = [of_atom(atom, (*position, "in", n)) for n, atom in enumerate(equation.invars)]
        outputs = [of_atom(atom, position) for atom in equation.outvars]
        return primitive, tuple(inner), tuple(inputs), tuple(outputs)

    inputs = tuple(of_atom(atom, position) for atom in [*jaxpr.constvars, *jaxpr.invars])
    constants = tuple(of_number(value, (*position, "const", n)) for n, value in enumerate(consts))
    equations = tuple(of_equation(each, (*position, n)) for n, each in enumerate(jaxpr.eqns))
    outputs = tuple(of_atom(atom, (*position, "out", n)) for n, atom in enumerate(jaxpr.outvars))
    return inputs, constants, equations, outputs


def _run(
    jaxpr: Jaxpr,
    consts: Sequence[Value],
    arguments: Sequence[Value],
    position: Position,
    numbers: Numbers,
) -> list[Value]:
    """The results of a jaxpr with other numbers in some positions."""
    values = dict(zip(jaxpr.invars, arguments, strict=True))
    for n, (variable, value) in enumerate(zip(jaxpr.constvars, consts, strict=True)):
        values[variable] = numbers.get((*position, "const", n), value)

    def read(atom: Var | Literal, position: Position) -> Value:
        if isinstance(atom, Literal):
            return numbers.get(position, atom.val)
        return values[atom]

    for n, equation in enumerate(jaxpr.eqns):
        here = (*position, n)
        inputs = [read(atom, (*here, "in", k)) for k, atom in enumerate(equation.invars)]
        inside = any(each[: len(here)] == here and each[len(here)] != "in" for each in numbers)
        with equation.ctx.manager:
            if inside:
                outputs = _run_inside(equation, inputs, here, numbers)
            else:
                parameters = equation.primitive.get_bind_params(equation.params)
                outputs = equation.primitive.bind(*inputs, **parameters)
                outputs = outputs if equation.primitive.multiple_results else [outputs]
        for variable, output in zip(equation.outvars, outputs, strict=True):
            values[variable] = output
    return [read(atom, (*position, "out", k)) for k, atom in enumerate(jaxpr.outvars)]


def _run_inside(
    equation: JaxprEqn, inputs: list[Value], position: Position, numbers: Numbers
) -> Sequence[Value]:
    """The results of an equation, some numbers in its inner jaxprs replaced by others."""
    parameters = equation.params

    def inner(name: str, *index: int) -> Callable[..., list[Value]]:
        part = parameters[name][index[0]] if index else parameters[name]
        closed = part if isinstance(part, ClosedJaxpr) else ClosedJaxpr(part, ())
        where = (*position, name, *index)
        return lambda *args: _run(closed.jaxpr, closed.consts, args, where, numbers)

    match equation.primitive:
        case of_jax.scan_p:
            consts, carry, xs = _parts_of_scan(equation, inputs)

            def body(carry: list[Value], xs: list[Value]) -> tuple[list[Value], list[Value]]:
                results = inner("jaxpr")(*consts, *carry, *xs)
                return results[: len(carry)], results[len(carry) :]

            options = {name: parameters[name] for name in ("length", "reverse", "unroll")}
            carry, ys = lax.scan(body, carry, xs, **options)
            return [*carry, *ys]
        case of_jax.while_p:
            first, then = parameters["cond_nconsts"], parameters["body_nconsts"]
            of_cond, of_body = inputs[:first], inputs[first:][:then]
            return lax.while_loop(
                lambda state: inner("cond_jaxpr")(*of_cond, *state)[0],
                lambda state: inner("body_jaxpr")(*of_body, *state),
                inputs[first + then :],
            )
        case of_jax.cond_p:
            branches = [inner("branches", n) for n in range(len(parameters["branches"]))]
            return lax.switch(inputs[0], branches, *inputs[1:])
        case of_jax.remat_p:
            closed = jax.make_jaxpr(inner("jaxpr"))(*inputs)  # its constants are the numbers
            variables = closed.jaxpr.constvars + closed.jaxpr.invars
            hoisted = closed.jaxpr.replace(constvars=[], invars=variables)
            options = parameters | {"jaxpr": hoisted}
            return of_jax.remat_p.bind(*closed.consts, *inputs, **options)
        case _:
            return inner(_CALLS[equation.primitive])(*inputs)


def _parts_of_scan(
    equation: JaxprEqn, inputs: list[Value]
) -> tuple[list[Value], list[Value], list[Value]]:
    """The constants, the first state and the sequences of a scan."""
    parameters = equation.params
    if "ft_in" in parameters:  # from JAX 0.12 on
        consts, carry, xs = parameters["ft_in"].update(inputs).unpack()
        return list(consts), list(carry), list(xs)
    fixed, carried = parameters["num_consts"], parameters["num_carry"]
    return inputs[:fixed], inputs[fixed:][:carried], inputs[fixed + carried :]
