"""Checks the shapes and types in the package's annotations, wherever the tests call it.

Imported before vae_jax; in training the annotations are only read.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintViolation
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
_typed = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float


def _as_jax(value: Any) -> Any:
    """NumPy's arrays will do for JAX's, as they do in every operation."""
    if isinstance(value, tuple):
        return tuple(map(_as_jax, value)) if type(value) is tuple else value
    return jnp.asarray(value) if isinstance(value, np.ndarray) else value


def checked(function: Callable) -> Callable:
    """jaxtyping's copy of a function, without a body, with its arguments and result checked.

    Constructors are left alone: JAX rebuilds pytrees with leaves that are not arrays, and a part
    refuses what a user gives it with a sentence of its own. So are nested functions, which would
    be wrapped again whenever the function around them is called.
    """
    if "<locals>" in function.__qualname__ or function.__name__ == "__init__":
        return function
    check = _typed(function)

    @wraps(function)
    def leniently(*args: Any, **kwargs: Any) -> Any:
        try:
            return check(*args, **kwargs)
        except BeartypeCallHintViolation:
            return check(*map(_as_jax, args), **{name: _as_jax(kwargs[name]) for name in kwargs})

    return leniently


install_import_hook([f"vae_jax.{name}" for name in ANNOTATED], "checks.checked")
