"""Checks of the fields of parts, and of the arguments of functions, against their annotations.

The annotation of a field describes the values that fit, as in `beta: Weight`, and `check_fields`
compares. In `Annotated`, a function tells whether a value fits, and a string describes those that
do.
"""

import dataclasses
import functools
import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from numbers import Integral, Real
from typing import (
    Annotated,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.nn.initializers import Initializer

from vae_jax.errors import VaeJaxError

P = ParamSpec("P")
Result = TypeVar("Result")

_LEAST, _GREATEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Bounds:
    """The numbers that fit, all finite as float32; for a sequence, the lengths that fit.

    A number below the least normal float32 counts as zero, since XLA keeps no subnormal ones. A
    traced number fits, as its value is not known.

    Attributes:
        least: the least number that fits.
        most: the greatest number that fits.
        above: the exclusive lower limit.
        below: the exclusive upper limit.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __call__(self, value: object) -> bool:
        """Whether `value` fits: a number, or the length of a sequence."""
        if isinstance(value, Tracer):
            return True
        try:
            if isinstance(value, Real | np.ndarray | Array):
                number = float(value)
            elif isinstance(value, Sized):
                number = len(value)
            else:
                return True  # None, if a hint allows it
        except OverflowError:  # a whole number that no float holds
            return False
        if abs(number) < _LEAST:
            number = 0.0
        if abs(number) > _GREATEST:
            return False
        return bool(self.least <= number <= self.most and self.above < number < self.below)

    def __str__(self) -> str:
        limits = ("of at least", self.least), ("above", self.above), ("of at most", self.most)
        limits = (*limits, ("below", self.below))
        said = " and ".join(f"{word} {at:g}" for word, at in limits if math.isfinite(at))
        return said.replace("and of", "and")


Count = Annotated[int, Bounds(least=1)]
Index = Annotated[int, Bounds(least=0)]
Weight = Annotated[float, Bounds(least=0)]
Seed = Annotated[int, Bounds(least=0, most=2**32 - 1), "a whole number from 0 to 2^32 - 1"]
Positive = Annotated[float, Bounds(above=0)]
Proportion = Annotated[float, Bounds(least=0, most=1)]
Share = Annotated[float, Bounds(above=0, most=1)]
Decay = Annotated[float, Bounds(least=0, below=1)]
Limit = Annotated[float, lambda value: value == value, "a number, which may be infinite"]
_WIDTHS = "a tuple of whole numbers, each at least 1, such as (64, 64)"
Widths = Annotated[Sequence[Count], _WIDTHS]
SomeWidths = Annotated[Sequence[Count], Bounds(least=1), _WIDTHS]
Network = Annotated[
    nn.Module, "a Linen module, such as MLP((64, 64)), or nnx.bridge.to_linen(...) of an NNX one"
]
Dim = Annotated[
    int,
    Bounds(least=1),
    "the length of vectors, at least 1 (for latents of any shape take DiagonalGaussian and "
    "StandardNormal)",
]
SeveralDims = Annotated[
    int,
    Bounds(least=2),
    "the length of vectors, at least 2 (of one component, this flow only shifts and scales)",
]
LatentShape = Annotated[
    Count | Annotated[tuple[Count, ...], Bounds(least=1)],
    "d for vectors, (n, d) for sets of n vectors or (h, w, c) for maps, all at least 1",
]


def fits(value: object, hint: object) -> bool:
    """Whether `value` is of the type in `hint`; a hint that is not understood fits every value."""
    kind, tests, _ = _read(hint)
    return _is_of(value, kind) and all(test(value) for test in tests)


def _read(hint: object) -> tuple[object, list[Callable[[object], bool]], str]:
    """The type in a hint, its tests, and its description."""
    if get_origin(hint) is not Annotated:
        return hint, [Bounds()] if hint is int or hint is float else [], ""
    kind, *rest = cast(tuple[object, ...], get_args(hint))
    tests = [cast(Callable[[object], bool], each) for each in rest if callable(each)]
    return kind, tests, next((each for each in rest[::-1] if isinstance(each, str)), "")


def _is_of(value: object, kind: object) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        alike = [each for each in arguments if isinstance(value, type(each))]
        return value in alike and not isinstance(value, bool)
    if kind is int or kind is float:
        if kind is float and isinstance(value, np.ndarray | Array):  # a program may take it
            return value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)
        if kind is int and isinstance(value, Integral) and not -(2**31) <= int(value) < 2**32:
            return False
        number = Integral if kind is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    if origin in (tuple, Sequence):
        if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
            return False
        if origin is tuple and arguments[-1:] != (Ellipsis,):
            return len(value) == len(arguments) and all(map(fits, value, arguments))
        return all(fits(each, arguments[0]) for each in value)
    if origin is Callable:
        if isinstance(value, type):  # which makes its instances
            return isinstance(arguments[-1], type) and issubclass(value, arguments[-1])
        return callable(value)
    if kind is None:
        return value is None
    if kind is Initializer and _is_uncalled(value):
        return False
    expected = origin or kind
    if not isinstance(expected, type):
        return True
    try:
        is_instance = isinstance(value, expected)
    except TypeError:  # a protocol for type checkers alone
        return True
    return is_instance and (expected in (object, type) or not isinstance(value, type))


def _is_uncalled(value: object) -> bool:
    """Whether a function makes initializers, as `he_normal` does, and is not itself one."""
    try:
        parameters = inspect.signature(value).parameters.values() if callable(value) else ()
    except ValueError:  # a class or function of Python's own
        return True
    return bool(parameters) and all(each.default is not each.empty for each in parameters)


def taking(*arguments: object, **named: object) -> Callable[[object], bool]:
    """A test of whether a function takes such `arguments` and `named` ones, of any values."""

    def takes(function: object) -> bool:
        try:
            inspect.signature(cast(Callable[..., object], function)).bind(*arguments, **named)
        except (TypeError, ValueError):
            return False
        return True

    return takes


def described(hint: object) -> str:
    """The description of a hint, such as "a whole number of at least 1"."""
    kind, tests, said = _read(hint)
    if said:
        return said
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return ", or ".join(map(described, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if kind is int or kind is float:
        limits = [str(test) for test in tests if isinstance(test, Bounds)]
        return " ".join(["a whole number" if kind is int else "a number", *limits]).rstrip()
    if origin in (tuple, Sequence):
        entries = [described(each) for each in arguments if each is not Ellipsis]
        if origin is Sequence or Ellipsis in arguments:
            return f"a tuple, each entry {entries[0]}"
        return f"({', '.join(entries)})"
    if kind is bool:
        return "True or False"
    if kind is None or kind is types.NoneType:
        return "None"
    if kind is Initializer:
        return "an initializer, such as nn.initializers.he_normal()"
    if origin is Callable or (isinstance(kind, type) and "__call__" in vars(kind)):
        return "a function"
    return _with_article(getattr(origin or kind, "__name__", str(kind)))


def shown(value: object) -> str:
    """The value as error messages show it."""
    if isinstance(value, np.ndarray | Array):
        return f"an array of {value.dtype} {value.shape}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    if value is None or isinstance(value, Real | str | tuple | list):
        text = repr(value)
        if isinstance(value, tuple | list):
            text = f"({', '.join(map(shown, value))}{',' * (len(value) == 1)})"
        return text if len(text) <= 60 else f"{text[:56]} ..."
    return _with_article(type(value).__name__)


def _with_article(name: str) -> str:
    sounds_like_a_vowel = re.match("[AEIOaeio]|[FHLMNRSX][A-Z]", name)
    return f"{'an' if sounds_like_a_vowel else 'a'} {name}"


def check_fits(what: str, value: object, hint: object) -> None:
    """Check that a value is of the type in a hint.

    Args:
        what: the name of the value, for messages.
        value: the value.
        hint: the hint.

    Raises:
        VaeJaxError: the value does not fit; the sentence describes one that would.
    """
    if fits(value, hint):
        return
    # The method resolution order is compared, since `issubclass` refuses some protocols.
    if isinstance(value, type) and set(value.__mro__[:-1]).intersection(_members(hint)):
        name = value.__name__
        raise VaeJaxError(f"{what} is the class {name}: give an instance of it, {name}(...).")
    raise VaeJaxError(f"{what} is {shown(value)}: give {described(hint)}.")


def _members(hint: object) -> list[type]:
    """The classes in a hint."""
    if isinstance(hint, type):
        return [hint]
    return [each for inner in get_args(hint) for each in _members(inner)]


@functools.cache
def _hints(owner: Callable[..., object]) -> dict[str, object]:
    try:
        return get_type_hints(owner, include_extras=True)
    except (NameError, TypeError):  # a user's own, with names that only type checkers import
        return {}


def check_fields(part: object) -> None:
    """Check the fields of `part`, a dataclass or a Linen module, against their annotations.

    Raises:
        VaeJaxError: a field does not fit its annotation.
    """
    assert dataclasses.is_dataclass(part)
    hints = _hints(type(part))
    linens = ("parent", "name") if isinstance(part, nn.Module) else ()
    for field in dataclasses.fields(part):
        if field.name in hints and field.name not in linens:
            what = f"{field.name} of {type(part).__name__}"
            check_fits(what, getattr(part, field.name), hints[field.name])


class Checked:
    """The base of a dataclass whose constructor refuses values that its annotations exclude."""

    def __post_init__(self):
        check_fields(self)


def _modules(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules in the fields of a part, by name."""
    for field in dataclasses.fields(part):
        value = None if field.name == "parent" else getattr(part, field.name)
        if isinstance(value, nn.Module):
            yield field.name, value
        elif isinstance(value, tuple | list):
            for index, each in enumerate(value):
                if isinstance(each, nn.Module):
                    yield f"{field.name}[{index}]", each


def check_apart(part: nn.Module) -> None:
    """Check that no module is in two positions of `part`.

    Raises:
        VaeJaxError: a module is in two positions, which would share its parameters.
    """
    found: dict[int, str] = {}
    for name, module in _modules(part):
        if (first := found.setdefault(id(module), name)) != name:
            raise VaeJaxError(
                f"{first} and {name} of {type(part).__name__} are one and the same "
                f"{type(module).__name__}, with one set of parameters: make two."
            )


def check_encoder(what: str, network: nn.Module) -> None:
    """Check that `network`, with the name `what`, can be called with its inputs alone.

    Raises:
        VaeJaxError: `network` needs further arguments.
    """
    if not _can_be_called(network, 1):
        raise VaeJaxError(
            f"{what} is {shown(network)}, which cannot be called with x alone, as encoders are: "
            "give an encoder, such as MLP((64,)) or ConvEncoder((32, 64), 256)."
        )


def check_decoder(what: str, network: nn.Module, of_an_image: bool = True) -> None:
    """Check that a network can be called with latents and, for an image, with its shape.

    Args:
        what: the name of the network, for messages.
        network: the network.
        of_an_image: whether it is a decoder of images.

    Raises:
        VaeJaxError: the network takes other arguments.
    """
    if not _can_be_called(network, 2 if of_an_image else 1):
        arguments = "(z, image_shape)" if of_an_image else "z alone"
        raise VaeJaxError(
            f"{what} is {shown(network)}, which cannot be called with {arguments}, as decoders "
            "are: give a decoder, such as MLP((64,)) or ConvDecoder((64, 32), 256)."
        )


def _can_be_called(network: nn.Module, count: int) -> bool:
    try:
        inspect.signature(type(network).__call__).bind(*[None] * (count + 1))
    except TypeError:
        return False
    return True


def checked(function: Callable[P, Result]) -> Callable[P, Result]:
    """The function, refusing arguments that its annotations exclude."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> Result:
        hints = _hints(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            many = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            for each, one in value.items() if many else [(name, value)]:
                check_fits(f"{each} of {function.__name__}", one, hints.get(name, object))
        return function(*args, **kwargs)

    return checking
