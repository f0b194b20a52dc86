"""VAEs for images: encoder x posterior x prior x decoder x likelihood x objective.

The public names stand in `__init__.pyi`; each is imported when it is first used, so that
`vae-jax --help` does not wait for JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
