"""VAEs for images: encoder x posterior x prior x decoder x likelihood x objective.

The public names are in `__init__.pyi`; each is imported when it is first used, so that
`vae-jax --help` does not wait for JAX.
"""

import importlib

import lazy_loader

from vae_jax.cpu import compiler

compiler.restrict_ynnpack()  # before JAX computes, so that users' own programs are right too

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """The object of a public name, imported; `train` is the module, callable like its function."""
    if name == "__version__":
        from importlib.metadata import version

        return version("vae_jax")
    if name == "train":
        return importlib.import_module(f"{__name__}.train")
    try:
        return _public(name)
    except AttributeError as error:
        if name.startswith("_"):
            raise
        raise AttributeError(f"vae_jax has no {name!r}{_meant(name)}") from error


def _meant(name: str) -> str:
    """The public names that may have been meant by this one, as a question."""
    import difflib

    known = {each.lower(): each for each in __all__}
    close = difflib.get_close_matches(name.lower(), known, n=3)
    close += [each for each in known if len(name) > 2 and name.lower() in each]
    names = [known[each] for each in dict.fromkeys(close)][:3]
    return f": did you mean {' or '.join(names)}?" if names else "."
