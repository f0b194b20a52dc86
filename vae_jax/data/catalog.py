"""The data sets known by name: their splits, and the way from a name to arrays."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vae_jax import storage
from vae_jax.data import cache, preparation
from vae_jax.data.datasets import Data, find_protocol
from vae_jax.data.files import is_path, load_path
from vae_jax.data.pipeline import SplitName
from vae_jax.data.tfds_name import PREFIX, load_tfds, prepare_tfds
from vae_jax.errors import VaeJaxError
from vae_jax.given import checked


@dataclass(frozen=True)
class Source:
    """A data set known by name.

    Attributes:
        name: its TFDS name.
        sizes: the number of images in each official split; if "valid" is missing, validation images
            are cut from the end of the training split.
        image_shape: (height, width, channels).
        protocol: the default protocol; "threshold" means that the images are already binary.
        manual_files: the files that `--manual-dir` must hold if TFDS cannot download them.
        origin: the source of those files.
        default_valid: the number of validation images to cut if there is no official split.
    """

    name: str
    sizes: Mapping[SplitName, int]
    image_shape: tuple[int, int, int]
    protocol: str
    manual_files: tuple[str, ...] = ()
    origin: str = ""
    default_valid: int = 0


_MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "mnist",
            {"train": 60_000, "test": 10_000},
            (28, 28, 1),
            "dynamic",
            _MNIST_FILES,
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            default_valid=10_000,
        ),
        Source(
            "fashion_mnist",
            {"train": 60_000, "test": 10_000},
            (28, 28, 1),
            "dynamic",
            _MNIST_FILES,
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            default_valid=10_000,
        ),
        Source(
            "binarized_mnist",
            {"train": 50_000, "valid": 10_000, "test": 10_000},
            (28, 28, 1),
            "threshold",
            tuple(f"binarized_mnist_{split}.amat" for split in ("train", "valid", "test")),
            "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
        ),
        Source("mnist_5k", {"train": 4_000, "valid": 500, "test": 500}, (28, 28, 1), "dynamic"),
        Source(
            "frey_faces",
            {"train": 1_565, "valid": 200, "test": 200},
            (28, 20, 1),
            "grey",
            ("frey_rawface.mat",),
            "https://cs.nyu.edu/~roweis/data/",
        ),
        Source(
            "caltech101_silhouettes",
            {"train": 4_100, "valid": 2_264, "test": 2_307},
            (28, 28, 1),
            "threshold",
            ("caltech101_silhouettes_28_split1.mat",),
            "https://people.cs.umass.edu/~marlin/data/",
        ),
        Source(
            "cifar10",
            {"train": 50_000, "test": 10_000},
            (32, 32, 3),
            "grey",
            ("cifar-10-binary.tar.gz",),
            "https://www.cs.toronto.edu/~kriz/",
            default_valid=5_000,
        ),
        Source(
            "cifar10_4k",
            {"train": 3_200, "valid": 400, "test": 400},
            (32, 32, 3),
            "grey",
            ("cifar10_train_first4000.npz",),
            "your own hand (the arrays image and label of CIFAR-10's first 4,000 training images)",
        ),
        Source(
            "cifar10_jpeg",
            {"train": 50_000, "test": 10_000},
            (32, 32, 3),
            "grey",
            ("train.tar.xz", "test.tar.xz"),
            "your own hand (CIFAR-10's images as train/CLASS/NNNN.jpg and test/CLASS/NNNN.jpg)",
            default_valid=5_000,
        ),
        Source(
            "emoji_styles",
            {"train": 3_822, "valid": 480, "test": 480},
            (64, 64, 3),
            "grey",
            ("emoji_styles.tar.xz",),
            "your own hand (the emoji of OpenMoji, Twemoji and Fluent as STYLE/CODE_POINTS.png)",
        ),
    )
}


@dataclass(frozen=True)
class Listing:
    """An entry of `vae-jax data list`.

    Attributes:
        source: the data set.
        sizes: the number of images in each split that `load` gives by default.
        prepared: whether `load` would find it in the cache.
    """

    source: Source
    sizes: Mapping[SplitName, int]
    prepared: bool


def list_datasets(data_dir: str | Path | None = None) -> list[Listing]:
    """Every data set known by name, prepared in `data_dir` or not."""
    root = cache.root(data_dir)
    return [
        Listing(
            source=source,
            sizes=_split_sizes(source, None),
            prepared=cache.folder(root, source.name).exists(),
        )
        for source in SOURCES.values()
    ]


@checked
def load(
    name: str | Path,
    protocol: str | None = None,
    *,
    valid: int | None = None,
    size: int | None = None,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
) -> Data:
    """Load a data set as memory maps, and prepare it first if necessary.

    Args:
        name: a name in `SOURCES`; that of any image data set of TFDS, tfds:NAME or
            tfds:NAME/CONFIG, whose images are cut to squares and resized; or the path of your own
            images, as in `load_path`.
        protocol: a name in `PROTOCOLS`; None takes the data set's own, "grey" for tfds:NAME.
        valid: the number of images to cut from the end of the official training split for
            validation; None takes the data set's own, for tfds:NAME a tenth, at most 10,000.
        size: the side of images of tfds:NAME; None takes the only one that is prepared, else 64.
        data_dir: the folder of TFDS and the cache; None takes VAE_JAX_DATA_DIR, else TFDS_DATA_DIR,
            else ~/tensorflow_datasets.
        manual_dir: a folder of files downloaded by hand, those of NAME in its sub-folder NAME if
            there is one; None takes VAE_JAX_MANUAL_DIR, if set.

    Returns:
        The data.

    Raises:
        VaeJaxError: an argument is out of range, the data set cannot be prepared, or its cache is
            corrupted.
    """
    name = str(name)
    if name.startswith(PREFIX):
        target = prepare(name, data_dir, manual_dir, size=size)
        protocol = protocol or "grey"
        again = partial(load, name, protocol, valid=valid, size=size, data_dir=data_dir)
        return load_tfds(name, protocol, valid, target, again)
    _check_size(name, size)
    if is_path(name):
        if valid is not None:
            raise VaeJaxError(f"valid={valid} does not apply to {name}: leave it out.")
        return load_path(name, protocol, data_dir=data_dir)
    source = _find_source(name)
    protocol = protocol or source.protocol
    find_protocol(protocol)
    if source.protocol == "threshold" != protocol:
        raise VaeJaxError(
            f"{name} is binary already, so the protocol {protocol!r} does not apply: leave it at "
            "'threshold'."
        )
    sizes = _split_sizes(source, valid)
    prepare(name, data_dir, manual_dir)
    folder = cache.folder(cache.root(data_dir), name)
    arrays, manifest = cache.read(name, folder)
    split_rule = "the data set's own splits"
    if "valid" not in source.sizes:
        for kind in ("images", "labels"):
            whole = arrays[f"train_{kind}"]
            arrays[f"train_{kind}"] = whole[: sizes["train"]]
            arrays[f"valid_{kind}"] = whole[sizes["train"] :]
        if sizes["valid"]:
            split_rule = (
                f"validation is the last {sizes['valid']:,} of the {source.sizes['train']:,} "
                "official training images"
            )
    data = Data.from_arrays(
        name,
        *(arrays[f"{split}_images"] for split in sizes),
        protocol=protocol,
        labels={s: arrays[f"{s}_labels"] for s in sizes if f"{s}_labels" in arrays},
        class_names=manifest.get("class_names"),
        split_rule=split_rule,
    )
    again = partial(load, name, protocol, valid=valid, data_dir=data_dir)
    return data.loaded_by(again, partial(cache.remembered, folder, manifest["files"]))


def prepare(
    name: str,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    *,
    size: int | None = None,
    verify: bool = False,
) -> Path:
    """Prepare a data set with TFDS in a subprocess, unless it is already in the cache.

    Args:
        name, data_dir, manual_dir, size: as for `load`.
        verify: whether to check every byte that is already cached; `load` checks only files whose
            size or time has changed since the last check.

    Returns:
        The folder of its arrays.

    Raises:
        VaeJaxError: the name is unknown, a file or TensorFlow is missing, the disk cannot be
            written, or the cache is damaged.
    """
    root = cache.root(data_dir)
    if name.startswith(PREFIX):
        manual_folder = _manual_folder(name.removeprefix(PREFIX), manual_dir)
        return prepare_tfds(name, size, root, manual_folder, verify=verify)
    _check_size(name, size)
    _find_source(name)
    target = cache.folder(root, name)
    if target.exists():
        if verify:
            cache.read(name, target, wholly=True)
        return target
    manual_folder = _manual_folder(name, manual_dir)
    arguments = [name, str(root), *([] if manual_folder is None else [str(manual_folder)])]
    preparation.run("vae_jax.data.tfds_prepare", arguments, f"{name} with TFDS in {root}")
    return target


def _check_size(name: str, size: int | None) -> None:
    if size is not None:
        raise VaeJaxError(
            f"{name} has a size of its own, and size={size} is for tfds:NAME: leave it out."
        )


def _find_source(name: str) -> Source:
    if name not in SOURCES:
        raise VaeJaxError(
            f"There is no data set {name!r}: choose one of {', '.join(SOURCES)}, any of TFDS's as "
            "tfds:NAME, or the path of an .npy or .npz file or of a folder of pictures."
        )
    return SOURCES[name]


def _split_sizes(source: Source, valid: int | None) -> dict[SplitName, int]:
    sizes = source.sizes
    if "valid" in sizes:
        if valid not in (None, sizes["valid"]):
            raise VaeJaxError(
                f"{source.name} has an official validation split of {sizes['valid']:,} images, so "
                f"valid={valid} does not apply: leave it out."
            )
        return dict(sizes)
    valid = source.default_valid if valid is None else valid
    if not 0 <= valid < sizes["train"]:
        raise VaeJaxError(
            f"valid={valid} is out of range for {source.name}: cut 0 to {sizes['train'] - 1:,} of "
            "its training images."
        )
    return {"train": sizes["train"] - valid, "valid": valid, "test": sizes["test"]}


def _manual_folder(name: str, manual_dir: str | Path | None) -> Path | None:
    chosen = manual_dir or os.environ.get("VAE_JAX_MANUAL_DIR")
    if not chosen:
        return None
    folder = storage.from_home(chosen)
    if not folder.is_dir():
        raise VaeJaxError(f"The manual folder {folder} does not exist: make it or name another.")
    return folder / name if (folder / name).is_dir() else folder
