"""VAEs for images: encoder x posterior x prior x decoder x likelihood x objective.

The public names stand in `__init__.pyi`; each is imported when it is first used, so that
`vae-jax --help` does not wait for JAX.
"""

import importlib

import lazy_loader

from vae_jax.cpu import compiler

compiler.leave_out_ynnpack()  # before JAX computes, so that users' own programs are right too

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """A public name, imported; `train` is the module, which can be called like its function."""
    if name == "__version__":
        from importlib.metadata import version

        return version("vae_jax")
    return importlib.import_module(f"{__name__}.train") if name == "train" else _public(name)
