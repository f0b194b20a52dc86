"""The base of dataclasses of arrays that JAX flattens and unflattens."""

import inspect

from flax import struct


class Pytree:
    """A `flax.struct.dataclass` whose tree structure identifies its class.

    Each subclass gets a static field with its own name: without it, two dataclasses with equal
    fields have equal tree structures (jaxlib 0.10 to 0.12), and `jax.jit` may run the program that
    was compiled for the other.
    """

    def __init_subclass__(cls, **kwargs: object):
        super().__init_subclass__(**kwargs)
        cls.__annotations__ = inspect.get_annotations(cls) | {"_class": str}
        name = f"{cls.__module__}.{cls.__qualname__}"
        cls._class = struct.field(pytree_node=False, default=name, kw_only=True, repr=False)
