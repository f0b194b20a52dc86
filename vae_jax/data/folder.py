"""A folder of pictures as a data set: what is in it, its splits and classes, and the way to arrays.

TFDS's `ImageFolder` wants a folder for each split, lists .jpg, .jpeg and .png alone, ignores the
orientation that cameras note, and stops at the first file that does not decode. So the files are
listed here and decoded by Pillow (`folder_prepare`); a folder laid out for TFDS keeps its splits
and classes.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from vae_jax import storage
from vae_jax.data import cache, preparation
from vae_jax.data.datasets import Data, find_protocol
from vae_jax.data.pipeline import SplitName
from vae_jax.errors import VaeJaxError
from vae_jax.progress import say

VALID = TEST = 0.1
_FORMAT = 2  # of the cache: another number makes it anew
SPLITS_NAMED: dict[str, SplitName] = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "test": "test",
}
_ORDER: tuple[SplitName, ...] = ("train", "valid", "test")
_LISTED = 30


@dataclass(frozen=True)
class Files:
    """The files of a folder, sorted by name; those that begin with a dot are left out.

    Attributes:
        root: the folder.
        names: paths below it, with slashes.
        states: size and time of each, from which a change is told.
    """

    root: Path
    names: Sequence[str]
    states: Sequence[str]

    @classmethod
    def of(cls, root: Path) -> "Files":
        """Lists a folder and the folders in it, links to folders included."""
        found = sorted(_walk(str(root)))
        return cls(root, [name for name, _ in found], [state for _, state in found])

    @cached_property
    def key(self) -> str:
        """A hash of names, sizes and times."""
        digest = hashlib.sha256()
        for name, state in zip(self.names, self.states, strict=True):
            digest.update(b"%b\0%b\0" % (os.fsencode(name), state.encode()))
        return digest.hexdigest()

    def key_of(self, height: int, width: int, channels: int) -> str:
        """A name for what these files become in a size."""
        what = f"{self.key} {height} {width} {channels} {_FORMAT}"
        return hashlib.sha256(what.encode()).hexdigest()[:16]

    @cached_property
    def has_own_splits(self) -> bool:
        """Whether there is a folder `train` with none beside it but `valid` and `test`."""
        tops = {name.split("/")[0] if "/" in name else "" for name in self.names}
        return "train" in tops and tops <= SPLITS_NAMED.keys()

    def class_of(self, row: int) -> str:
        """The first folder below the root or its split; "." where there is none."""
        folders = self.names[row].split("/")[int(self.has_own_splits) : -1]
        return folders[0] if folders else "."

    def splits(self, rows: np.ndarray) -> dict[SplitName, np.ndarray]:
        """Divides the usable rows: by the folder's own splits, or by a hash of each name.

        A name's hash u in [0, 1) puts it into test below 0.1 and into valid from 0.9 on, so that a
        file stays where it is while others come and go. Of three files or more, one at least is in
        each: the smallest u and the largest.
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


def _walk(root: str) -> Iterator[tuple[str, str]]:
    entered: set[tuple[int, int]] = set()
    ahead = [("", _identity(os.stat(root)))]
    while ahead:  # no recursion: folders may be deeper than Python's stack
        below, identity = ahead.pop()
        if identity in entered:  # a link to where we have been
            continue
        entered.add(identity)
        try:
            with os.scandir(os.path.join(root, below)) as entries:
                sorted_entries = sorted(entries, key=lambda entry: entry.name)
        except OSError:  # no permission: a folder's name among the files, reported as such
            yield below, "none"
            continue
        folders = []
        for entry in sorted_entries:
            if entry.name.startswith("."):
                continue
            name = below + entry.name
            try:
                status = entry.stat()
            except OSError:  # a link that leads nowhere
                yield name, "none"
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append((name + "/", _identity(status)))
            else:
                yield name, f"{status.st_size} {status.st_mtime_ns}"
        ahead += reversed(folders)


def _uniform(name: str) -> float:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) / 2**64


def load_folder(
    path: str | Path,
    size: int | tuple[int, int] = 64,
    *,
    channels: Literal[1, 3] = 3,
    protocol: str = "grey",
    data_dir: str | Path | None = None,
) -> Data:
    """Loads the pictures of a folder as memory maps, decoded once.

    Each is turned as its camera noted, laid on white where it is transparent, cut to the wanted
    shape around its centre, and resized. The first level of sub-folders, if there is one, gives the
    labels and `class_names`. A hash of the file names gives the splits, 80, 10 and 10 % (for small
    folders about so, and one picture at least), but where the sub-folders are `train`, `valid` and
    `test`, as TFDS's `ImageFolder` has them: then these do, and their sub-folders are the classes.
    Files that cannot be used are listed with the reasons when the folder is prepared.

    Args:
        path: the folder.
        size: side of the square images, or (height, width).
        channels: 3 for RGB, 1 for grey.
        protocol: a name in `PROTOCOLS`.
        data_dir: where the decoded images are kept, as for `load`.

    Raises:
        VaeJaxError: the folder is not there or has no usable picture, or an argument is out of
            range.
    """
    find_protocol(protocol)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1 or channels not in (1, 3):
        raise VaeJaxError(
            f"size={size}, channels={channels}: images have at least one pixel, and 1 channel "
            "(grey) or 3 (RGB)."
        )
    root = storage.from_home(path)
    if root.is_file():
        raise VaeJaxError(
            f"{root} is a file: name the folder of pictures that it is in, or an .npy or .npz file "
            "of arrays."
        )
    if not root.is_dir():
        raise VaeJaxError(f"The folder of pictures {root} does not exist: name one that does.")
    files = Files.of(root)
    target = cache_of(files, height, width, channels, cache.root(data_dir))
    fresh = not target.exists()
    if fresh:
        arguments = [str(root), str(height), str(width), str(channels), str(cache.root(data_dir))]
        preparation.run("vae_jax.data.folder_prepare", arguments, f"the pictures of {root}")
        if not target.exists():
            raise VaeJaxError(f"{root} changed while it was read: run it again.")
    arrays, manifest = cache.read(root.name, target)
    if fresh:
        whole = f"{len(files.names):,} files in {files.root}"
        report_skipped(manifest["skipped"] or [], whole, target)
    used = sum(len(arrays[f"{split}_images"]) for split in _ORDER)
    rule = "the folder's own splits" if files.has_own_splits else "split by a hash of file names"
    data = Data.from_arrays(
        root.name,
        *(arrays[f"{split}_images"] for split in _ORDER),
        protocol=protocol,
        labels={s: arrays[f"{s}_labels"] for s in _ORDER if f"{s}_labels" in arrays},
        class_names=manifest["class_names"],
        split_rule=f"{rule}, {used:,} of {len(files.names):,} files usable",
    )
    again = partial(
        load_folder, root, size, channels=channels, protocol=protocol, data_dir=data_dir
    )
    return data.loaded_by(again, partial(cache.remembered, target, manifest["files"]))


def cache_of(files: Files, height: int, width: int, channels: int, data_dir: Path) -> Path:
    """Where the arrays of these files in this size are, or will be."""
    key = files.key_of(height, width, channels)
    return cache.folder(data_dir, f"image_folder/{files.root.name}-{key}")


def report_skipped(skipped: Sequence[str], whole: str, target: Path) -> None:
    """Says what of the whole could not be used, if anything, and why."""
    if not skipped:
        return
    lines = [f"Not used, of {whole}:", *(f"  {line}" for line in skipped[:_LISTED])]
    if len(skipped) > _LISTED:
        more = len(skipped) - _LISTED
        lines.append(f"  and {more:,} more, which {target}/manifest.json lists")
    for line in lines:
        say(line)
