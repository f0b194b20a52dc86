"""A model's variables as plain arrays in a file, for other programs, and back."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Never, cast

import jax
import numpy as np

from vae_jax import storage
from vae_jax.errors import VaeJaxError
from vae_jax.given import checked
from vae_jax.interfaces import Variables

SUFFIXES = (".npz", ".safetensors")


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays by name into an .npz or a .safetensors file.

    Returns:
        The path of the file.

    Raises:
        VaeJaxError: the file is of another kind, or cannot be written.
    """
    check_suffix(file)
    tensors = _safetensors() if file.suffix == ".safetensors" else None
    with storage.writing(file), storage.whole_file(file) as partial:
        if tensors is None:
            np.savez(partial, **cast("dict[str, Never]", arrays))
        else:
            whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            tensors.save_file(whole, partial)
    return file


def flattened(variables: Variables) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths, such as `params/encoder/Dense_0/kernel`."""
    leaves, _ = jax.tree.flatten_with_path(variables)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


@checked
def load_variables(file: str | Path) -> dict[str, Variables]:
    """The variables from a file of `vae-jax export`, for `model.apply` or `Run.with_variables`.

    Args:
        file: an .npz or a .safetensors file.

    Raises:
        VaeJaxError: the file does not exist, is damaged, or of another kind.

    Example:
        >>> variables = load_variables("model.npz")
        >>> q = model.apply(variables, x, method="encode")
    """
    path = storage.from_home(file)
    check_suffix(path)
    if not path.is_file():
        raise VaeJaxError(f"There is no file {path}: write one with `vae-jax export RUN --out`.")
    tensors = _safetensors() if path.suffix == ".safetensors" else None
    try:
        if tensors is None:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        else:
            arrays = cast("dict[str, np.ndarray]", tensors.load_file(path))
    except Exception as error:  # parsers raise many kinds of errors
        raise VaeJaxError(f"{path} is damaged ({error}): export the run again.") from error
    tree: dict[str, Variables] = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        inner = tree
        for parent in parents:
            inner = cast("dict[str, Variables]", inner.setdefault(parent, {}))
        cast("dict[str, object]", inner)[last] = array
    return tree


def check_alike(given: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]) -> None:
    """Check that the `given` arrays have the names and shapes of a model's `own`.

    Raises:
        VaeJaxError: a name or a shape differs; the sentence names the first.
    """
    for name in sorted(given.keys() | own.keys()):
        shapes = [list(each[name].shape) if name in each else "absent" for each in (given, own)]
        there, here = shapes
        if there != here:
            raise VaeJaxError(
                f"{name} of the given variables is {there}, the model's is {here}: give variables "
                "that were exported from a run of this model."
            )


def check_suffix(file: Path) -> None:
    """Refuse a file of another kind.

    Raises:
        VaeJaxError: the name does not end with .npz or .safetensors.
    """
    if file.suffix not in SUFFIXES:
        raise VaeJaxError(f"{file} must end in {' or '.join(SUFFIXES)}.")


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise VaeJaxError(
            "Files of the kind .safetensors need a package that is not installed: "
            "`pip install safetensors`, or choose a name that ends in .npz."
        ) from error
    return safetensors.numpy
