"""A user's feature space, from a file."""

from pathlib import Path
from types import ModuleType

import numpy as np

from vae_jax.errors import VaeJaxError
from vae_jax.metrics.inception import inception_features
from vae_jax.metrics.spaces import Features, check_images, in_chunks


def load_features(reference: str) -> dict[str, Features]:
    """Load a feature space: an Inception network from its weights, or a function of the user's.

    Args:
        reference: `WEIGHTS.npz`, as `inception_features` takes it; or `FILE.py:FUNCTION`, where the
            function maps uint8 images `[n, H, W, C]` to `[n, F]`.

    Returns:
        `inception`, or the function under its name; it is called with a few images at a time.

    Raises:
        VaeJaxError: the file cannot be read or run, or lacks the arrays or the function; later, a
            call did not return numbers `[n, F]`.
    """
    if reference.endswith(".npz"):
        return {"inception": inception_features(reference)}
    file, _, name = reference.rpartition(":")
    if not file or not name:
        raise VaeJaxError(
            f"--features is {reference!r}: give it as WEIGHTS.npz or FILE.py:FUNCTION."
        )
    module = ModuleType("features_file")
    module.__file__ = file
    try:
        exec(compile(Path(file).read_text(encoding="utf-8"), file, "exec"), module.__dict__)
    except Exception as error:
        raise VaeJaxError(f"The features file {file} cannot be run: {error}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise VaeJaxError(f"The features file {file} has no function {name}: define it there.")

    def checked(images: np.ndarray) -> np.ndarray:
        found = np.asarray(function(images))
        if found.ndim != 2 or len(found) != len(images) or found.dtype.kind not in "fiu":
            raise VaeJaxError(
                f"{reference} returned {found.dtype} {found.shape} for images {images.shape}: let "
                f"it return numbers [{len(images)}, F]."
            )
        return found

    return {name: lambda images: in_chunks(checked, check_images(images))}
