"""Checks the shapes and types in the package's annotations, wherever the tests call it.

Imported before vae_jax; in training the annotations are only read.
"""

from collections.abc import Callable

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ANNOTATED = (
    "interfaces",
    "random",
    "step",
    "vae",
    "hierarchical",
    "conditional",
    "distributions",
    "flows",
    "posteriors",
    "priors",
    "likelihoods",
    "objectives",
)
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float


def checked(function: Callable) -> Callable:
    """The function with its arguments and results checked at every call.

    Constructors are left alone: JAX rebuilds pytrees with leaves that are not arrays, and a part
    refuses what a user gives it with a sentence of its own. So are nested functions, which would
    be wrapped again whenever the function around them is called.
    """
    nested = "<locals>" in function.__qualname__
    return function if nested or function.__name__ == "__init__" else _check(function)


install_import_hook([f"vae_jax.{name}" for name in ANNOTATED], "checks.checked")
