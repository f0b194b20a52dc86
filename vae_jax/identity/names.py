"""Dotted names of functions and classes, and their membership in installed packages."""

import sys
import sysconfig
from pathlib import Path
from types import FunctionType, ModuleType

import vae_jax

_INSTALLED = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
_INSTALLED |= {Path(path) for path in vae_jax.__path__}
# In the user's account, in the system's Python below an environment, on Debian and on Colab.
_OF_PACKAGES = {"site-packages", "dist-packages"}
_PUBLIC = ("vae_jax", "jax.nn", "jax.numpy", "optax", "flax.linen")


def name_of(thing: object) -> str:
    """The dotted name of a function or class `thing`, a public one if there is one."""
    module = getattr(thing, "__module__", None) or "builtins"
    name = getattr(thing, "__qualname__", getattr(thing, "__name__", type(thing).__qualname__))
    for public in _PUBLIC:
        of_package = module.startswith(public.split(".")[0]) and "." not in name
        if of_package and getattr(sys.modules.get(public), name, None) is thing:
            return f"{public}.{name}"
    return f"{module}.{name}"


def named(name: str) -> object:
    """The object with a dotted name in the imported modules; None if undefined."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if (found := sys.modules.get(".".join(parts[:length]))) is not None:
            for part in parts[length:]:
                found = getattr(found, part, None)
            return found
    return None


def is_installed(thing: object) -> bool:
    """Whether `thing`, a module, class or function, is part of an installed package."""
    module = thing if isinstance(thing, ModuleType) else _module_of(thing)
    if module is None or module.__name__ == "__main__":
        return False
    return is_of_package(getattr(module, "__file__", None))


def is_of_package(file: str | None) -> bool:
    """Whether a module's file is part of an installed package; modules without one are Python's."""
    if file is None:
        return True
    path = Path(file).absolute()
    return not (_INSTALLED.isdisjoint(path.parents) and _OF_PACKAGES.isdisjoint(path.parts))


def _module_of(thing: object) -> ModuleType | None:
    if isinstance(thing, FunctionType):  # a decorator may have given it the name of another
        return sys.modules.get(str(thing.__globals__.get("__name__")))
    return sys.modules.get(getattr(thing, "__module__", None) or "builtins")
