"""A data set in memory: three splits of uint8 images, a protocol, and a fingerprint."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from vae_jax import given, random
from vae_jax.data.pipeline import PROTOCOLS, Protocol, SplitName, Support
from vae_jax.errors import Shown, VaeJaxError


@dataclass(frozen=True, eq=False)
class Split(given.Checked):
    """Images and, if the data set has them, class labels.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N] or None.
    """

    images: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False, repr=False)
class Data(Shown, given.Checked):
    """A data set ready for training: three splits, the last two possibly empty, and a protocol.

    Attributes:
        name: its name in results.
        protocol: the map from its bytes to x.
        train: the training images.
        valid: the images for choosing between models.
        test: the images for reported numbers alone.
        split_rule: the origin of the splits, in a clause.
        class_names: the names of the labels 0, 1, ...; None if there are no labels.
        source: the call that reloads these data; None if they were given as arrays, or changed
            after they were loaded.
    """

    name: str
    protocol: Protocol
    train: Split
    valid: Split
    test: Split
    split_rule: str
    class_names: tuple[str, ...] | None = None
    source: "partial[Data] | None" = field(default=None, init=False)
    _remembered: Callable[[str, Callable[[], str]], str] | None = field(
        default=None, init=False, repr=False
    )

    def __getitem__(self, split: SplitName) -> Split:
        """The split of this name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    @classmethod
    def from_arrays(
        cls,
        name: str,
        train: np.ndarray,
        valid: np.ndarray | None = None,
        test: np.ndarray | None = None,
        *,
        protocol: str,
        labels: Mapping[SplitName, np.ndarray] | None = None,
        class_names: Sequence[str] | None = None,
        split_rule: str = "split by the user",
    ) -> "Data":
        """Make a data set from arrays.

        Args:
            name: its name in results.
            train: uint8 [N, H, W, C], at least one image.
            valid: uint8 [N, H, W, C]; None is an empty split.
            test: uint8 [N, H, W, C]; None is an empty split.
            protocol: a name in `PROTOCOLS`.
            labels: integers [N], from 0, for any of "train", "valid" and "test".
            class_names: the names of the labels; None names them by their numbers.
            split_rule: the origin of the splits, in a clause.

        Raises:
            VaeJaxError: the protocol is unknown, an array is not uint8 [N, H, W, C], the shapes of
                two splits differ, there is no training image, or labels and names do not agree.
        """
        train = _as_images(name, "train", train)
        empty = np.empty((0, *train.shape[1:]), np.uint8)
        images: dict[SplitName, np.ndarray] = {
            "train": train,
            "valid": empty if valid is None else valid,
            "test": empty if test is None else test,
        }
        if labels is not None and not isinstance(labels, Mapping):
            raise VaeJaxError(
                f"labels of {name} is {given.shown(labels)}: give those of each split, such as "
                'labels={"train": labels}.'
            )
        unknown = set(labels or {}) - set(images)
        if unknown:
            raise VaeJaxError(
                f"There are labels of {name} for {sorted(unknown)[0]!r}: give them for train, "
                "valid and test."
            )
        splits = {}
        for split, array in images.items():
            array = _as_images(name, split, array)
            if array.shape[1:] != train.shape[1:]:
                raise VaeJaxError(
                    f"The {split} images of {name} have the shape {array.shape[1:]} where its "
                    f"training images have {train.shape[1:]}: give all splits the same image shape."
                )
            splits[split] = Split(array, _find_labels(name, split, len(array), labels or {}))
        if not len(train):
            raise VaeJaxError(f"{name} has no training image: give at least one.")
        return cls(
            name=name,
            protocol=find_protocol(protocol),
            **splits,
            split_rule=split_rule,
            class_names=_name_classes(name, splits, class_names),
        )

    @classmethod
    def absent(
        cls,
        name: str,
        protocol: str,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str] | None,
        fingerprint: str,
    ) -> "Data":
        """Data without its images: everything else is known, and each split is empty.

        Args:
            name: its name.
            protocol: the name of its protocol.
            image_shape: (H, W, C).
            class_names: the names of the labels.
            fingerprint: the fingerprint with the images.
        """
        nothing = Split(np.empty((0, *image_shape), np.uint8), None)
        names = None if class_names is None else tuple(class_names)
        splits = nothing, nothing, nothing
        made = cls(name, find_protocol(protocol), *splits, "not here", class_names=names)
        vars(made)["fingerprint"] = fingerprint
        return made

    @given.checked
    def with_missing(self, missing: Mapping[SplitName, np.ndarray]) -> "Data":
        """These data with missing pixels, for models with the likelihood `SeenPixels`.

        Images get one more channel, the last: 255 for seen pixels and 0 for missing ones. Missing
        pixels are also 0 in the other channels, so that nothing of them is left.

        Args:
            missing: booleans `[H, W]`, one for all images, or `[N, H, W]`, True for missing pixels,
                for any of "train", "valid" and "test"; the others are complete.

        Raises:
            VaeJaxError: there is no such split, or a mask does not fit its images.

        Example:
            Half of the pixels of each image, at random::

                generator = np.random.default_rng(0)
                data.with_missing({"train": generator.random((len(data.train), 28, 28)) < 0.5})
        """
        if unknown := set(missing) - {"train", "valid", "test"}:
            raise VaeJaxError(
                f"There is a mask of {self.name} for {min(unknown)!r}: give masks for train, valid "
                "and test."
            )

        def incomplete(split: SplitName) -> np.ndarray:
            images = self[split].images
            none = np.zeros(images.shape[1:3], bool)
            mask = given.mask(missing.get(split, none), len(images), images.shape[1:3])
            seen = np.uint8(255) * ~mask[..., None]
            return np.concatenate([images & seen, seen], -1)

        shares = [f"{np.mean(mask):.0%} of {split}" for split, mask in missing.items()]
        splits: dict[SplitName, Split]
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return Data.from_arrays(
            self.name,
            *(incomplete(split) for split in splits),
            protocol=self.protocol.name,
            labels={s: part.labels for s, part in splits.items() if part.labels is not None},
            class_names=self.class_names,
            split_rule=f"{self.split_rule}; pixels missing: {', '.join(shares) or 'none'}",
        )

    def loaded_by(
        self,
        source: "partial[Data]",
        remembered: Callable[[str, Callable[[], str]], str] | None = None,
    ) -> "Data":
        """These data, with the call that reloads them.

        Args:
            source: that call.
            remembered: a function from the shapes of the splits and a function that computes the
                fingerprint to the fingerprint; it computes only an unknown one.
        """
        object.__setattr__(self, "_remembered", remembered)
        object.__setattr__(self, "source", source)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the images, labels and shapes of all splits."""
        splits: dict[SplitName, Split]
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        if self._remembered is None:
            return _fingerprint(splits)
        return self._remembered(_shapes(splits), partial(_fingerprint, splits))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def shown(self) -> dict[str, str]:
        """A summary of the data in a few lines."""
        sizes = f"{len(self.train):,} training, {len(self.valid):,} validation, {len(self.test):,}"
        height, width, channels = self.image_shape
        return {
            "data": self.name,
            "images": f"{sizes} test ({self.split_rule})",
            "shape": f"{height} x {width} x {channels}",
            "protocol": f"{self.protocol.name}, {self.protocol.description}",
            "classes": shortened(self.class_names or ("none",)),
        }

    @property
    def support(self) -> Support:
        """The values that x takes under the protocol."""
        return self.protocol.support

    @property
    def description(self) -> str:
        """The data, its splits and its protocol in one clause, as results state them."""
        return (
            f"{self.name}: {len(self.train):,} training, {len(self.valid):,} validation and "
            f"{len(self.test):,} test images ({self.split_rule}), protocol {self.protocol.name} "
            f"({self.protocol.description}; noise seed {random.DATA_SEED})"
        )


def shortened(names: Sequence[str]) -> str:
    """The first ten of some names."""
    more = f", ... ({len(names)})" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def find_protocol(name: str) -> Protocol:
    """The protocol of the name `name`.

    Raises:
        VaeJaxError: no protocol has that name; the sentence lists the names.
    """
    if name not in PROTOCOLS:
        raise VaeJaxError(f"There is no protocol {name!r}: choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def _as_images(name: str, split: SplitName, images: object) -> np.ndarray:
    what = f"The {split} images of {name}"
    images = given.array(images, f"{split} of {name}", "[N, H, W, C], with C = 1 for grey images")
    images = images if isinstance(images, np.ndarray) else np.asarray(images)
    if np.issubdtype(images.dtype, np.floating):
        nan = np.argwhere(np.isnan(images))
        if len(nan):
            index = tuple(int(i) for i in nan[0])
            raise VaeJaxError(
                f"{what} hold a NaN, the first at index {index}: mend it and give uint8 values."
            )
    if images.dtype != np.uint8:
        raise VaeJaxError(
            f"{what} are {images.dtype}: give uint8 values from 0 to 255 (for images in [0, 1], "
            "multiply by 255 and round)."
        )
    height, _, channels = images.shape[1:]
    if not math.prod(images.shape[1:]):
        raise VaeJaxError(f"{what} have the shape {images.shape}, without a pixel: give some.")
    if height in (1, 3) and channels > 4:
        raise VaeJaxError(
            f"{what} have the shape {images.shape}, channels first: give channels last, "
            "images.transpose(0, 2, 3, 1)."
        )
    return images


def _find_labels(
    name: str, split: SplitName, num_images: int, labels: Mapping[SplitName, np.ndarray]
) -> np.ndarray | None:
    if split not in labels:
        return None
    found = np.asarray(labels[split])
    if found.shape != (num_images,) or not np.issubdtype(found.dtype, np.integer):
        raise VaeJaxError(
            f"The {split} labels of {name} are {found.dtype} of shape {found.shape}: give "
            f"{num_images} integers, one per image."
        )
    return found.astype(np.int32, copy=False)


def _name_classes(
    name: str, splits: Mapping[SplitName, Split], wanted: Sequence[str] | None
) -> tuple[str, ...] | None:
    every = {split: part.labels for split, part in splits.items() if part.labels is not None}
    every = {split: labels for split, labels in every.items() if len(labels)}
    if not every:
        return None
    highest = max(int(labels.max()) for labels in every.values())
    if isinstance(wanted, str):
        raise VaeJaxError(f"class_names of {name} is {wanted!r}: give a tuple of names.")
    names = tuple(map(str, range(highest + 1)) if wanted is None else wanted)
    for split, labels in every.items():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(names):
            raise VaeJaxError(
                f"The {split} labels of {name} go from {low} to {high}, and there are "
                f"{len(names)} class_names: number the classes from 0 and name each."
            )
    if len(set(names)) < len(names):
        twice = next(each for each in names if names.count(each) > 1)
        raise VaeJaxError(f"Two classes of {name} are named {twice!r}: give each its own name.")
    return names


def _shapes(splits: Mapping[SplitName, Split]) -> str:
    def shape(array: np.ndarray | None) -> str:
        return "none" if array is None else f"{array.dtype} {array.shape}"

    return "; ".join(f"{n} {shape(s.images)} {shape(s.labels)}" for n, s in splits.items())


def _fingerprint(splits: Mapping[SplitName, Split]) -> str:
    digest = hashlib.sha256()
    for name, split in splits.items():
        for array in (split.images, split.labels):
            digest.update(f"{name} {None if array is None else array.shape}\n".encode())
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
