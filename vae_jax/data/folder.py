"""A folder of pictures as a data set: its files, splits and classes, and the way to arrays.

TFDS's `ImageFolder` needs a folder for each split, lists .jpg, .jpeg and .png alone, ignores the
orientation that cameras record, and stops at the first file that does not decode. Therefore the
files are listed here and decoded by Pillow (`folder_prepare`); a folder laid out for TFDS keeps its
splits and classes.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from vae_jax import storage
from vae_jax.data import cache, preparation
from vae_jax.data.datasets import Data, find_protocol
from vae_jax.data.pipeline import SplitName
from vae_jax.errors import VaeJaxError
from vae_jax.given import checked
from vae_jax.processes.agreement import told_by_main
from vae_jax.progress import say

VALID = TEST = 0.1
_FORMAT = 2  # the version of the cache; after a change folders are prepared again
SPLITS_NAMED: dict[str, SplitName] = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "test": "test",
}
_ORDER: tuple[SplitName, ...] = ("train", "valid", "test")
_LISTED = 30
_State = str | tuple[int, int]
"""The size and time of a file, as text, or the identity of a folder."""


@dataclass(frozen=True)
class Listing:
    """A fingerprint of a folder's content, without the names of its files.

    Attributes:
        key: a hash of the names, sizes and times of the files, in the order of the names.
        count: the number of files.
        has_own_splits: whether the folder holds a folder `train`, and beside it at most folders
            named `valid`, `validation`, `val` and `test`.
    """

    key: str
    count: int
    has_own_splits: bool

    @classmethod
    def of(cls, entries: Iterable[tuple[str, str]]) -> "Listing":
        """The listing from an iterator of names and states, which it consumes."""
        digest, count, tops = hashlib.sha256(), 0, set[str]()
        for name, state in entries:
            digest.update(b"%b\0%b\0" % (os.fsencode(name), state.encode()))
            count += 1
            tops.add(name.split("/")[0] if "/" in name else "")
        own_splits = "train" in tops and tops <= SPLITS_NAMED.keys()
        return cls(digest.hexdigest(), count, own_splits)

    def key_of(self, height: int, width: int, channels: int) -> str:
        """The name under which these files are cached at an image shape.

        Args:
            height: the height of the images.
            width: their width.
            channels: their channels.
        """
        what = f"{self.key} {height} {width} {channels} {_FORMAT}"
        return hashlib.sha256(what.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Files:
    """The files of a folder, sorted by name; those that begin with a dot are left out.

    Attributes:
        root: the folder.
        names: the paths below it, with slashes.
        states: the size and time of each, which show a change.
    """

    root: Path
    names: Sequence[str]
    states: Sequence[str]

    @classmethod
    def of(cls, root: Path) -> "Files":
        """List the folder `root` and the folders in it, links to folders included."""
        found = list(walk(root))
        return cls(root, [name for name, _ in found], [state for _, state in found])

    @cached_property
    def listing(self) -> Listing:
        """Their hash and count."""
        return Listing.of(zip(self.names, self.states, strict=True))

    @property
    def has_own_splits(self) -> bool:
        """See `Listing`."""
        return self.listing.has_own_splits

    def class_of(self, row: int) -> str:
        """The first folder in a row's path, below the root or that of the split; "." if none."""
        folders = self.names[row].split("/")[int(self.has_own_splits) : -1]
        return folders[0] if folders else "."

    def splits(self, rows: np.ndarray) -> dict[SplitName, np.ndarray]:
        """Divide the usable `rows`: by the folder's own splits, or by a hash of each name.

        A name whose hash u in [0, 1) is below 0.1 is in test, and one from 0.9 on in valid, so that
        a file keeps its split while others come and go. With three files or more, each split has
        at least one: the smallest u is in test, the largest in valid.
        """
        names = [self.names[int(row)] for row in rows]
        if self.has_own_splits:
            own = [SPLITS_NAMED[name.split("/")[0]] for name in names]
            train, valid, test = (rows[np.array(own) == split] for split in _ORDER)
            return {"train": train, "valid": valid, "test": test}
        u = np.array([_uniform(name) for name in names])
        num_test, num_valid = int((u < TEST).sum()), int((u >= 1 - VALID).sum())
        if len(rows) < 3:
            num_test = num_valid = 0
        else:
            num_test = min(max(1, num_test), len(rows) - 2)
            num_valid = min(max(1, num_valid), len(rows) - 1 - num_test)
        by_hash = rows[u.argsort()]
        test, train, valid = np.split(by_hash, [num_test, len(rows) - num_valid])
        return {"train": np.sort(train), "valid": np.sort(valid), "test": np.sort(test)}


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def walk(root: Path) -> Iterator[tuple[str, str]]:
    """The files below `root`, sorted by name: names with slashes, and sizes and times as text.

    Only the names in the folders on the way to the current file are held.
    """
    entered: set[tuple[int, int]] = set()
    opened: list[Iterator[tuple[str, _State]]] = [iter([("", _identity(os.stat(root)))])]
    while opened:  # no recursion: folders may be deeper than Python's stack
        name, state = next(opened[-1], (None, ""))
        if name is None:
            opened.pop()
        elif isinstance(state, str):
            yield name, state
        elif state not in entered:  # a link may lead back
            entered.add(state)
            try:
                opened.append(iter(_entries(root, name)))
            except OSError:  # no permission: the folder is listed, and later reported as unusable
                yield name, "none"


def _entries(root: Path, below: str) -> list[tuple[str, _State]]:
    """The entries of a folder; folders end in /, so that their order is that of all paths below."""
    found: list[tuple[str, _State]] = []
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            name = below + entry.name
            if entry.name.startswith("."):
                continue
            try:
                status = entry.stat()
            except OSError:  # a link that leads nowhere
                found.append((name, "none"))
                continue
            if stat.S_ISDIR(status.st_mode):
                found.append((name + "/", _identity(status)))
            else:
                found.append((name, f"{status.st_size} {status.st_mtime_ns}"))
    return sorted(found, key=lambda one: one[0])


def _uniform(name: str) -> float:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) / 2**64


@checked
def load_folder(
    path: str | Path,
    size: int | tuple[int, int] = 64,
    *,
    channels: Literal[1, 3] = 3,
    protocol: str = "grey",
    data_dir: str | Path | None = None,
) -> Data:
    """Load the pictures of a folder as memory maps, decoded once.

    Each is rotated upright as its camera recorded it, laid on white if transparent, cropped to the
    requested shape around its centre, and resized. The first level of sub-folders, if there is one,
    gives the labels and `class_names`. A hash of the file names gives the splits, 80, 10 and 10 %
    (in small folders roughly, with at least one picture each), unless the sub-folders are `train`,
    `valid` and `test`, as for TFDS's `ImageFolder`: then these are the splits, and their
    sub-folders the classes. Unusable files are listed with the reasons when the folder is prepared.

    Args:
        path: the folder.
        size: the side of the square images, or (height, width).
        channels: 3 for RGB, 1 for grey.
        protocol: a name in `PROTOCOLS`.
        data_dir: the folder for decoded images, as for `load`.

    Returns:
        The data.

    Raises:
        VaeJaxError: the folder does not exist or has no usable picture, or an argument is out of
            range.
    """
    find_protocol(protocol)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise VaeJaxError(f"size={size}: images have at least one pixel.")
    root = storage.from_home(path)
    if root.is_file():
        raise VaeJaxError(
            f"{root} is a file: name the folder of pictures that it is in, or an .npy or .npz file "
            "of arrays."
        )
    if not root.is_dir():
        raise VaeJaxError(f"The folder of pictures {root} does not exist: name one that does.")
    where = root, (height, width, channels), cache.root(data_dir)
    told = told_by_main(lambda: json.dumps(asdict(_prepared(*where))))
    listing = _prepared(*where) if told is None else Listing(**json.loads(told))
    if not cache_of(listing, *where).exists():  # this process sees other files, or another disk
        listing = _prepared(*where)
    target = cache_of(listing, *where)
    arrays, manifest = cache.read(root.name, target)
    used = sum(len(arrays[f"{split}_images"]) for split in _ORDER)
    rule = "the folder's own splits" if listing.has_own_splits else "split by a hash of file names"
    data = Data.from_arrays(
        root.name,
        *(arrays[f"{split}_images"] for split in _ORDER),
        protocol=protocol,
        labels={s: arrays[f"{s}_labels"] for s in _ORDER if f"{s}_labels" in arrays},
        class_names=manifest["class_names"],
        split_rule=f"{rule}, {used:,} usable files",
    )
    again = partial(
        load_folder, root, size, channels=channels, protocol=protocol, data_dir=data_dir
    )
    return data.loaded_by(again, partial(cache.remembered, target, manifest["files"]))


def cache_of(listing: Listing, root: Path, shape: tuple[int, int, int], data_dir: Path) -> Path:
    """The folder for the arrays of these files in this shape.

    Args:
        listing: the fingerprint of the files.
        root: their folder.
        shape: (H, W, C).
        data_dir: as for `load`.
    """
    return cache.folder(data_dir, f"image_folder/{root.name}-{listing.key_of(*shape)}")


def _prepared(root: Path, shape: tuple[int, int, int], data_dir: Path) -> Listing:
    """The `Listing` of a folder, after decoding its pictures unless that is done.

    Raises:
        VaeJaxError: no picture can be used.
    """
    listing = Listing.of(walk(root))
    target = cache_of(listing, root, shape, data_dir)
    if not target.exists():
        arguments = [str(root), *map(str, shape), str(data_dir)]
        preparation.run("vae_jax.data.folder_prepare", arguments, f"the pictures of {root}")
        if not target.exists():
            raise VaeJaxError(f"{root} changed while it was read: run it again.")
        _, manifest = cache.read(root.name, target)
        report_skipped(manifest["skipped"] or [], f"{listing.count:,} files in {root}", target)
    return listing


def report_skipped(skipped: Sequence[str], whole: str, target: Path) -> None:
    """Report the pictures that could not be used, if any, with the reasons.

    Args:
        skipped: a line for each.
        whole: the name of the whole, for the message.
        target: the folder of the arrays, which has the full list.
    """
    if not skipped:
        return
    lines = [f"Not used, of {whole}:", *(f"  {line}" for line in skipped[:_LISTED])]
    if len(skipped) > _LISTED:
        more = len(skipped) - _LISTED
        lines.append(f"  and {more:,} more, which {target}/manifest.json lists")
    for line in lines:
        say(line)
