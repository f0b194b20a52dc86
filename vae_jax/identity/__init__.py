"""Descriptions of objects in JSON, and the way back: the identity of a run from Python or a file.

Equal descriptions mean equal behaviour.

numbers, text, None      as they are
tuples and lists         a list
{"is": class, ...}       an object, by its fields or its state
{"import": name}         a function or class that has a name in a module
{"def": name, ...}       a function made by another, by the variables that it closes over

Code outside of installed packages is described by a checksum (`code.py`). Functions that differ in
numbers alone are found by their jaxprs (`programs.py`).
"""

from vae_jax.identity.description import Json, describe
from vae_jax.identity.difference import ABSENT, differences
from vae_jax.identity.from_description import NotImportableError, made_from

__all__ = ["ABSENT", "Json", "NotImportableError", "describe", "differences", "made_from"]
