"""A data set that Hugging Face's `datasets` has written with `save_to_disk`, by its path."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path

from vae_jax import storage
from vae_jax.data import cache, preparation
from vae_jax.data.datasets import Data, find_protocol
from vae_jax.data.folder import Files, report_skipped
from vae_jax.data.pipeline import SplitName
from vae_jax.errors import VaeJaxError

SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


def files_of(folder: Path) -> Files:
    """The files of the data set in `folder`, without those that `datasets` caches beside them."""
    every = Files.of(folder)
    own = {
        name: state
        for name, state in zip(every.names, every.states, strict=True)
        if not Path(name).name.startswith(("cache-", "tmp"))
    }
    return Files(folder, [*own], [*own.values()])


def is_saved(folder: Path) -> bool:
    """Whether `folder` was written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def load_saved(
    folder: str | Path,
    size: tuple[int, int],
    *,
    channels: int,
    protocol: str,
    data_dir: str | Path | None = None,
) -> Data:
    """Load the pictures of a data set in a folder as memory maps, decoded once.

    Each is treated as in `load_folder`. Splits and classes are those of the data set; one without
    validation or test images is split as an .npz file is in `load_path`.

    Args:
        folder: the folder.
        size: (height, width).
        channels: 3 for RGB, 1 for grey.
        protocol: a name in `PROTOCOLS`.
        data_dir: the folder for decoded pictures, as for `load`.

    Returns:
        The data.

    Raises:
        VaeJaxError: `datasets` is not installed, or the column of images is missing or ambiguous.
    """
    find_protocol(protocol)
    folder = storage.from_home(folder)
    if not is_saved(folder):
        raise VaeJaxError(f"The data set {folder} does not exist: name one that does.")
    target = cache_of(files_of(folder), *size, channels, cache.root(data_dir))
    fresh = not target.exists()
    if fresh:
        if find_spec("datasets") is None:
            raise VaeJaxError(
                f"{folder} is a data set of Hugging Face's, which needs a package that is not "
                "installed: `pip install datasets`."
            )
        arguments = [str(folder), *map(str, (*size, channels)), str(cache.root(data_dir))]
        preparation.run("vae_jax.data.hugging_face_prepare", arguments, f"the pictures of {folder}")
    arrays, manifest = cache.read(folder.name, target)
    if fresh:
        report_skipped(manifest["skipped"] or [], f"the pictures of {folder}", target)
    data = Data.from_arrays(
        folder.name,
        *(arrays[f"{split}_images"] for split in SPLITS),
        protocol=protocol,
        labels={s: arrays[f"{s}_labels"] for s in SPLITS if f"{s}_labels" in arrays},
        class_names=manifest["class_names"],
        split_rule=manifest["split_rule"],
    )
    again = partial(
        load_saved, folder, size, channels=channels, protocol=protocol, data_dir=data_dir
    )
    return data.loaded_by(again, partial(cache.remembered, target, manifest["files"]))


def cache_of(files: Files, height: int, width: int, channels: int, data_dir: Path) -> Path:
    """The folder for the arrays of these files in this size.

    Args:
        files: the files.
        height: the height of the images.
        width: their width.
        channels: their channels.
        data_dir: as for `load`.
    """
    key = files.listing.key_of(height, width, channels)
    return cache.folder(data_dir, f"hugging_face/{files.root.name}-{key}")
