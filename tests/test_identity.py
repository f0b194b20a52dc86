"""What an object is: the same where it does the same, and another where it does not."""

import dataclasses
import enum
import functools
import importlib
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from vae_jax import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Bernoulli,
    DiagonalGaussian,
    Gaussian,
    GaussianMixture,
    StandardNormal,
    VampPrior,
    optimizers,
)
from vae_jax.identity import NotImportableError, describe, differences, made_from
from vae_jax.identity.names import is_installed

adam = optax.adam
PARAMS = {"encoder": jnp.arange(3.0), "decoder": jnp.ones(2)}


def vae(**parts: Any) -> VAE:
    every: dict[str, Any] = {
        "encoder": MLP((8,)),
        "posterior": DiagonalGaussian(2),
        "prior": StandardNormal(2),
        "decoder": MLP((8,)),
        "likelihood": Bernoulli(),
    }
    return VAE(**every | parts)


def mask_all(params: Any) -> Any:
    return jax.tree.map(lambda _: True, params)


def scaled(function: Callable[..., Any], factor: float) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(x: Any) -> Any:
        return factor * function(x)

    return inner


def straight_through(gradient: float) -> Callable[..., Any]:
    """The identity, with a rule of its own for its derivative."""

    @jax.custom_vjp
    def function(x: Any) -> Any:
        return x

    function.defvjp(lambda x: (x, None), lambda _, g: (gradient * g,))
    return function


def with_tangent(factor: float) -> Callable[..., Any]:
    @jax.custom_jvp
    def function(x: Any) -> Any:
        return x

    function.defjvp(lambda primals, tangents: (primals[0], factor * tangents[0]))
    return jax.jit(function)


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("__hidden", "slope")

    def __init__(self, slope: float, hidden: float = 0.0):
        self.slope, self.__hidden = slope, hidden

    def __call__(self, x: Any) -> Any:
        return self.slope * x + self.__hidden


def by_member(value: float) -> Callable[..., Any]:
    class Slope(enum.Enum):
        ONE = value

    return lambda x: Slope.ONE.value * x


def by_attribute(value: float) -> Callable[..., Any]:
    def function(x: Any) -> Any:
        return getattr(function, "slope") * x  # noqa: B009

    vars(function)["slope"] = value
    return function


def executed(source: str) -> Callable[..., Any]:
    scope: dict[str, Any] = {}
    exec(source, scope)
    return scope["function"]


# Pairs that a name alone, a type alone or a repr alone would take for the same.
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "rule of a gradient": (straight_through(1.0), straight_through(-1.0)),
    "rule of a tangent": (with_tangent(1.0), with_tangent(2.0)),
    "slot": (Slotted(1.0), Slotted(2.0)),
    "hidden slot": (Slotted(1.0, 0.0), Slotted(1.0, 1.0)),
    "member": (by_member(1.0), by_member(2.0)),
    "attribute": (by_attribute(1.0), by_attribute(2.0)),
    "executed": (executed("function = lambda x: x"), executed("function = lambda x: 2 * x")),
    "rate": (adam(1e-3), adam(2e-3)),
    "default": (adam(1e-3), adam(1e-3, b1=0.8)),
    "optimizer": (adam(1e-3), optax.sgd(1e-3)),
    "order": (
        optax.chain(optax.clip(1.0), adam(1e-3)),
        optax.chain(adam(1e-3), optax.clip(1.0)),
    ),
    "clipping": (
        optax.chain(optax.clip(1.0), adam(1e-3)),
        optax.chain(optax.clip(2.0), adam(1e-3)),
    ),
    "schedule": (
        adam(optax.cosine_decay_schedule(1e-3, 10)),
        adam(optax.cosine_decay_schedule(1e-3, 20)),
    ),
    "boundaries": (
        adam(optax.piecewise_constant_schedule(1e-3, {10: 0.1})),
        adam(optax.piecewise_constant_schedule(1e-3, {11: 0.1})),
    ),
    "lambda": (adam(lambda step: 1e-3), adam(lambda step: 2e-3)),
    "lambda's method": (adam(lambda step: 1 - step), adam(lambda step: 1 + step)),
    "hyperparameters": (
        optax.inject_hyperparams(adam)(learning_rate=1e-3),
        optax.inject_hyperparams(adam)(learning_rate=2e-3),
    ),
    "every k": (
        optax.MultiSteps(adam(1e-3), 4).gradient_transformation(),
        optax.MultiSteps(adam(1e-3), 5).gradient_transformation(),
    ),
    "mask": (optax.masked(adam(1e-3), {"encoder": True}), optax.masked(adam(1e-3), mask_all)),
    "group": (
        optimizers.by_group(adam(1e-3), critic=adam(1e-4)),
        optimizers.by_group(adam(1e-3), prior=adam(1e-4)),
    ),
    "switch": (
        optimizers.switched(5, adam(1e-3), optax.sgd(0.1)),
        optimizers.switched(6, adam(1e-3), optax.sgd(0.1)),
    ),
    "model": (vae(), vae(encoder=MLP((9,)))),
    "activation": (vae(), vae(encoder=MLP((8,), activation=jax.nn.relu))),
    "likelihood": (vae(), vae(likelihood=Gaussian())),
    "a part's name": (vae(), vae(encoder=MLP((8,), name="other"))),
    "prior's numbers": (vae(prior=GaussianMixture(3, 2)), vae(prior=GaussianMixture(4, 2))),
    "images": (
        VampPrior(2, images=np.zeros((50, 6, 6, 1), np.uint8)),
        VampPrior(2, images=np.ones((50, 6, 6, 1), np.uint8)),
    ),
    "objective": (ELBO(), IWAE(5)),
    "beta": (ELBO(beta=0.5), ELBO()),
    "warm-up": (
        ELBO(beta=optax.linear_schedule(0.0, 1.0, 10)),
        ELBO(beta=optax.linear_schedule(0.0, 1.0, 11)),
    ),
    "partial": (
        functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
        functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
    ),
    "compiled": (jax.jit(lambda x: x), jax.jit(lambda x: 2 * x)),
    "decorated": (scaled(jax.nn.relu, 1.0), scaled(jax.nn.relu, 2.0)),
    "decorated or not": (scaled(jax.nn.relu, 1.0), jax.nn.relu),
    "type of a number": (np.float32(1), np.float64(1)),
    "array": (np.zeros(3), np.array([0.0, 0.0, 1.0])),
    "shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "keys": ({1: 2}, {"1": 2}),
    "infinity": (float("inf"), float("-inf")),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_does_something_else_is_described_otherwise(case: str) -> None:
    one, other = map(describe, DIFFERENT[case])
    assert one != other
    assert list(differences(one, other))


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_description_is_what_json_keeps_of_it(case: str) -> None:
    for thing in DIFFERENT[case]:
        description = describe(thing)
        assert json.loads(json.dumps(description, allow_nan=False)) == description
        assert describe(thing) == description
        assert " at 0x" not in json.dumps(description)


def test_a_nan_is_itself() -> None:
    one, other = (describe({"beta": float("nan")}) for _ in range(2))
    assert not list(differences(one, other))


def test_a_description_does_not_depend_on_the_process() -> None:
    """Whose hashes of text, on which the order of sets depends, are its own."""
    program = (
        "import json, optax, jax; from vae_jax.identity import describe; from vae_jax import *\n"
        "def f(x): return x in {'a', 'b', 'c', 'd'} or g(x)\n"
        "def g(x): return {'e', 'f', 'g'} & x\n"
        "print(json.dumps([describe(f), describe(frozenset('abcdef')), describe(optax.adamw(1e-3)),"
        "describe(VAE(encoder=MLP((8,)), posterior=DiagonalGaussian(2), prior=StandardNormal(2),"
        "decoder=MLP((8,)), likelihood=Bernoulli()))]))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]


# Code of the user's own


SOURCE = '''
import dataclasses
import flax.linen as nn
import jax.numpy as jnp

SLOPE = 2.0

def helper(x):
    return jnp.tanh(x) * SLOPE

def unrelated(x):
    return x

class Own(nn.Module):
    """A network."""

    width: int = 3
    gain = 1.0

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        return self.last(helper(nn.Dense(self.width)(x)))

    def last(self, x):
        return self.gain * x  # as it is

    @property
    def twice(self):
        return 2

    @staticmethod
    def fixed(x):
        return [y + 1 for y in x]
'''


def own(source: str) -> Any:
    module = ModuleType("own_parts")
    module.__file__ = "/nowhere/own_parts.py"
    sys.modules["own_parts"] = module
    exec(compile(textwrap.dedent(source), "own_parts.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # as it is", "  # as it was"),
        ('"""Apply it."""', '"""Apply it, once more."""'),
        ('        """Apply it."""\n', ""),
        ('"""A network."""', '"""The network."""'),
        ("return self.gain * x", "return (\n            self.gain * x\n        )"),
        ("def unrelated(x):\n    return x", "def unrelated(x):\n    return 3 * x"),
        ("import dataclasses", "import dataclasses, json"),
    ],
)
def test_what_code_says_of_itself_may_change(old: str, new: str) -> None:
    assert old in SOURCE
    assert describe(own(SOURCE).Own(4)) == describe(own(SOURCE.replace(old, new)).Own(4))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.gain * x", "self.gain + x"),
        ("gain = 1.0", "gain = 2.0"),
        ("SLOPE = 2.0", "SLOPE = 3.0"),
        ("jnp.tanh(x)", "jnp.sin(x)"),
        ("return 2", "return 3"),
        ("y + 1 for", "y + 2 for"),
        ("nn.Dense(self.width)", "nn.Dense(self.width, use_bias=False)"),
    ],
)
def test_what_code_does_may_not(old: str, new: str) -> None:
    assert old in SOURCE
    one, other = (
        {"encoder": describe(own(source).Own(4))} for source in (SOURCE, SOURCE.replace(old, new))
    )
    (difference,) = differences(one, other)
    assert str(difference) == "the code of encoder is not what it was"


@pytest.mark.parametrize(
    "function",
    [
        "import settings\n    return settings.SLOPE * x",
        "from settings import SLOPE as s\n    return s * x",
        "import own_package.inner\n    return own_package.inner.SLOPE * x",
        "import own_package.inner as i\n    return i.SLOPE * x",
        "from own_package.inner import SLOPE\n    return SLOPE * x",
        "from .own_package import inner\n    return inner.SLOPE * x",
        "from .own_package.inner import SLOPE\n    return SLOPE * x",
        "return own_package.inner.SLOPE * x",
        "return by_name.inner.SLOPE * x",
    ],
)
def test_modules_that_a_function_takes_from(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is imported, within the function or outside, with the whole way to the number."""
    monkeypatch.syspath_prepend(tmp_path)
    around = tmp_path / "around"
    for folder in (tmp_path, around):
        (folder / "own_package").mkdir(parents=True)
        (folder / "own_package" / "__init__.py").touch()
    (around / "__init__.py").touch()
    head = "import own_package.inner\nimport own_package as by_name\n"
    head = head if function.startswith("return") else ""
    (around / "parts.py").write_text(f"{head}def function(x):\n    {function}\n")
    numbers = [tmp_path / "settings.py", tmp_path / "own_package" / "inner.py"]
    numbers += [around / "own_package" / "inner.py"]

    def described(slope: float, other: float) -> Any:
        for file in numbers:
            file.write_text(f"SLOPE = {slope}\nOTHER = {other}\n")
        mine = ("around", "own_package", "settings")
        for name in [name for name in sys.modules if name.split(".")[0] in mine]:
            del sys.modules[name]
        importlib.invalidate_caches()
        for folder in tmp_path.rglob("__pycache__"):
            shutil.rmtree(folder)
        return describe(importlib.import_module("around.parts").function)

    assert described(1.0, 1.0) == described(1.0, 2.0)
    assert described(1.0, 1.0) != described(2.0, 1.0)


def test_a_rule_of_a_derivative_is_not_made_again() -> None:
    with pytest.raises(NotImportableError, match="straight_through"):
        made_from(describe(straight_through(1.0)), lambda _: None)


def test_numbers_of_numpy_are_the_same_numbers_in_the_package_s_parts() -> None:
    size, weight = cast(int, np.int64(2)), cast(float, np.float32(0.1))
    assert describe(DiagonalGaussian(size)) == describe(DiagonalGaussian(2))
    assert describe(ELBO(beta=np.float64(0.5))) == describe(ELBO(beta=0.5))
    assert describe(ELBO(beta=weight)) != describe(ELBO(beta=0.1))
    mine, same = (
        dataclasses.replace(tiny.experiment(num_steps=2), batch_size=cast(int, count), ema_decay=e)
        for count, e in ((np.int64(5), np.float64(0.5)), (5, 0.5))
    )
    assert mine.description == same.description


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages", "mine"])
def test_packages_have_no_checksum_wherever_they_are_installed(folder: str) -> None:
    """Of the system's Python below an environment, or of the user's account."""
    module = ModuleType("elsewhere")
    module.__file__ = f"/opt/python3/{folder}/elsewhere.py"
    assert is_installed(module) == (folder != "mine")


def test_functions_that_name_each_other_have_an_end() -> None:
    source = "def f(x): return g(x) + F()\ndef g(x): return f(x)\nclass F:\n    x = [f, g]\n"
    assert describe(own(source).f) == describe(own(source).f)
    ring: list[Any] = [1]
    ring.append(ring)
    assert describe(ring) == [1, {"is": "recursion"}]


# The way back


def no_array(_: object) -> None:
    return None


SCHEDULES = {
    "exponential": optax.exponential_decay(1.0, 10, 0.9),
    "bounded": optax.exponential_decay(1.0, 10, 0.9, end_value=0.1),
    "warm-up": optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100),
    "joined": optax.join_schedules(
        [optax.constant_schedule(1.0), optax.linear_schedule(1, 0, 9)], [5]
    ),
}
OPTIMIZERS = {
    "adam": adam(1e-3),
    "adamw": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULES["warm-up"])),
    "joined": adam(SCHEDULES["joined"]),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adafactor": optax.adafactor(1e-3),
    "lion": optax.lion(1e-3),
    "masked": optax.masked(adam(1e-3), {"encoder": True, "decoder": False}),
    "groups": optimizers.by_group(adam(1e-3), encoder=optax.set_to_zero()),
    "switched": optimizers.switched(5, adam(1e-3), optax.sgd(0.1)),
    "injected": optax.inject_hyperparams(adam)(learning_rate=1e-3),
    "finite": optax.apply_if_finite(adam(1e-3), 4),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_comes_back(name: str) -> None:
    schedule: Any = SCHEDULES[name]
    made: Any = made_from(json.loads(json.dumps(describe(schedule))), no_array)
    for step in (0, 3, 12, 90):
        assert made(step) == schedule(step)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_comes_back(name: str) -> None:
    optimizer, gradients = OPTIMIZERS[name], jax.tree.map(jnp.sin, PARAMS)
    made: Any = made_from(json.loads(json.dumps(describe(optimizer))), no_array)
    assert describe(made) == describe(optimizer)
    states = [each.init(PARAMS) for each in (optimizer, made)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    one, other = (
        each.update(gradients, state, PARAMS)[0]
        for each, state in zip((optimizer, made), states, strict=True)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "thing",
    [
        vae(),
        vae(encoder=MLP((8,), activation=jax.nn.relu), likelihood=Gaussian(squash=jnp.tanh)),
        ELBO(beta=optax.linear_schedule(0.0, 1.0, 10)),
        jnp.bfloat16,
        np.dtype("bfloat16"),
        float("-inf"),
        {1: "a", 2: ("b", None)},
        {"b": frozenset("abc")},
        functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_an_object_comes_back(thing: Any) -> None:
    description = json.loads(json.dumps(describe(thing)))
    assert describe(made_from(description, no_array)) == description


def test_an_array_comes_back_or_is_asked_for() -> None:
    small, large = np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((50, 6, 6, 1), np.uint8)
    np.testing.assert_array_equal(made_from(describe(small), no_array), small)  # pyright: ignore
    with pytest.raises(NotImportableError, match=r"an array of shape \[50, 6, 6, 1\]"):
        made_from(describe(large), no_array)
    assert made_from(describe(large), lambda about: large) is large


@dataclasses.dataclass
class Counted:
    """With a field that its constructor does not take."""

    count: int
    twice: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.twice = 2 * self.count


def test_fields_that_are_computed_are_computed_again() -> None:
    assert made_from(describe(Counted(3)), no_array) == Counted(3)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({"import": "__main__.part"}, r"__main__\.part"),
        ({"import": "no_such_package.part"}, r"no_such_package\.part"),
        ({"import": "json.no_such_part"}, r"json\.no_such_part"),
        ({"is": "no_such_package.Part", "width": 3}, r"no_such_package\.Part"),
        ({"is": "builtins.object"}, r"builtins\.object"),
        ({"is": "re.Pattern", "of": "re.compile('a')"}, r"re\.Pattern"),
        ({"def": "json.dumps.<locals>.nothing"}, r"json\.dumps\.<locals>\.nothing"),
        ({"def": "json.dumps"}, r"json\.dumps"),
        ({"is": "recursion"}, "recursion"),
        ({}, "without a name"),
        ({"is": 3}, "without a name"),
    ],
)
def test_what_cannot_be_imported_is_named(description: Any, said: str) -> None:
    with pytest.raises(NotImportableError, match=said):
        made_from(description, no_array)
