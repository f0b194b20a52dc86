"""Tree structures that `jax.jit` tells apart."""

import inspect
from typing import Any

from flax import struct


class Distinct:
    """Gives each subclass, a `flax.struct.dataclass`, a static field with its own name.

    In jaxlib 0.10 the tree structures of two dataclasses with equal fields are equal, and now and
    then `jax.jit` takes the program of one for the other.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.__annotations__ = inspect.get_annotations(cls) | {"_class": str}
        name = f"{cls.__module__}.{cls.__qualname__}"
        cls._class = struct.field(pytree_node=False, default=name, kw_only=True, repr=False)
