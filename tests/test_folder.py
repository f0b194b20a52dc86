"""A folder of pictures: every odd file is either converted as it should be or reported by name."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import ROOT, on_devices

from vae_jax import Experiment, VaeJaxError, generate, load_folder, train
from vae_jax.data import Data, SplitName
from vae_jax.data.folder import Files, Listing, walk
from vae_jax.data.folder_prepare import UnusableError, decode
from vae_jax.experiment import load_again, read_module
from vae_jax.identity import describe

ORANGE = (240, 120, 30)


def picture(size: tuple[int, int] = (32, 32), colour: tuple[int, int, int] = ORANGE) -> Image.Image:
    return Image.new("RGB", size, colour)


def halves(left: int, right: int, height: int = 32) -> np.ndarray:
    """Grey levels, uint8 [height, 32]: one on the left, another on the right."""
    return np.repeat(np.array([[left, right]], np.uint8), 16, 1).repeat(height, 0)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every odd file there is, in class folders, beside nine plain pictures."""
    root = tmp_path_factory.mktemp("odd pictures")
    for name in ("科幻", "oil paint", "empty"):
        (root / name).mkdir()
    for i in range(8):
        picture(colour=(10 * i, 100, 200)).save(root / "oil paint" / f"plain {i}.png")
    picture().save(root / "科幻" / "星球 一.webp", lossless=True)
    (root / "科幻" / "notes.txt").write_text("no picture")
    (root / "科幻" / "nothing.jpg").touch()
    whole = root / "科幻" / "truncated.jpg"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3)).astype(np.uint8)).save(
        whole
    )
    whole.write_bytes(whole.read_bytes()[:1500])
    picture().convert("CMYK").save(root / "科幻" / "cmyk.jpg", quality=95)
    sixteen = halves(0, 255).astype(np.uint16) * np.uint16(257)
    Image.fromarray(sixteen).save(root / "科幻" / "sixteen bits.png")
    palette = picture().quantize(4)
    palette.save(root / "科幻" / "palette.png", transparency=0)  # wholly transparent
    picture((1, 1)).save(root / "科幻" / "dot.png")
    frames = [picture(), picture(colour=(0, 0, 0))]
    frames[0].save(root / "科幻" / "animated.webp", save_all=True, append_images=frames[1:])
    frames[0].save(root / "科幻" / "animated.png", save_all=True, append_images=frames[1:])
    frames[0].save(root / "科幻" / "animated.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    Image.fromarray(halves(0, 255)).save(root / "科幻" / "turned.png", exif=exif)
    (root / "科幻" / "link.png").symlink_to(root / "oil paint" / "plain 7.png")
    (root / "科幻" / "dangling.png").symlink_to(root / "nowhere.png")
    (root / "科幻" / "loop").symlink_to(root, target_is_directory=True)
    (root / "oil paint" / ".hidden.png").write_text("left alone")
    return root


REASONS = {
    "科幻/notes.txt": "not a JPEG, PNG, WebP, GIF, BMP or TIFF picture",
    "科幻/nothing.jpg": "not a JPEG, PNG, WebP, GIF, BMP or TIFF picture",
    "科幻/truncated.jpg": "damaged (image file is truncated",
    "科幻/dot.png": "too small (1x1 pixels)",
    "科幻/animated.webp": "an animation, not one picture",
    "科幻/animated.png": "an animation, not one picture",
    "科幻/animated.gif": "an animation, not one picture",
    "科幻/dangling.png": "a link that leads nowhere",
    "empty/": "no usable picture in it",
}
USABLE = ("星球 一.webp", "cmyk.jpg", "sixteen bits.png", "palette.png", "turned.png", "link.png")


def test_an_odd_folder_trains_on_what_is_usable_and_lists_the_rest_in_one_message(
    odd: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = load_folder(odd, 32, data_dir=tmp_path)
    said = capfd.readouterr().err
    _, message = said.split("Not used, of ")  # one message
    lines = message.splitlines()[1:]
    assert len(lines) == len(REASONS)
    for name, reason in REASONS.items():
        assert any(line.strip().startswith(f"{name}: {reason}") for line in lines), name
    splits = (data.train, data.valid, data.test)
    assert sum(map(len, splits)) == 8 + len(USABLE)
    assert min(map(len, splits)) >= 1
    assert data.class_names == ("oil paint", "科幻")
    labels = np.concatenate([split.labels for split in splits if split.labels is not None])
    np.testing.assert_array_equal(np.bincount(labels), [8, len(USABLE)])
    assert data.image_shape == (32, 32, 3)
    assert "14 usable files" in data.description
    # Each image has the label of the folder that it is from: the plain ones are blue.
    for split in splits:
        plain = (split.images[..., 2] == 200).all((1, 2))
        assert split.labels is not None
        assert (split.labels[~plain] == 1).all()
    # From the cache, and without a word: nothing is read or said again.
    again = load_folder(odd, 32, data_dir=tmp_path)
    assert again.fingerprint == data.fingerprint
    opened = load_again(describe(data.source))  # as from the folder of a run
    assert (opened.fingerprint, opened.description) == (data.fingerprint, data.description)
    assert capfd.readouterr().err == ""
    strays = [odd / "oil paint" / name for name in ("Thumbs.db", "desktop.ini", "labels.csv")]
    for stray in strays:  # which do not make other data
        stray.write_text("left beside the pictures")
    again = load_folder(odd, 32, data_dir=tmp_path)
    for stray in strays:
        stray.unlink()
    assert (again.description, again.fingerprint) == (data.description, data.fingerprint)


def test_what_odd_pictures_become(odd: Path) -> None:
    """Against their known contents; JPEG to a few levels."""
    folder = odd / "科幻"
    np.testing.assert_array_equal(decode(folder / "星球 一.webp", 32, 32, 3)[3, 5], ORANGE)
    cmyk = decode(folder / "cmyk.jpg", 32, 32, 3)
    np.testing.assert_allclose(cmyk, np.broadcast_to(np.array(ORANGE, float), cmyk.shape), atol=6)
    sixteen = decode(folder / "sixteen bits.png", 32, 32, 1)[..., 0]
    np.testing.assert_array_equal(sixteen, halves(0, 255))
    np.testing.assert_array_equal(decode(folder / "palette.png", 32, 32, 3), 255)
    turned = decode(folder / "turned.png", 32, 32, 1)[..., 0]
    np.testing.assert_array_equal(turned, np.rot90(halves(0, 255), -1))


def test_pictures_are_cut_around_their_centre_and_resized(tmp_path: Path) -> None:
    """A wide one loses its sides; large flat areas keep their level to a rounding error."""
    wide = np.zeros((40, 120), np.uint8)
    wide[:, 40:80] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    made = decode(tmp_path / "wide.png", 20, 20, 3)
    np.testing.assert_allclose(made[:, 3:-3], 200, atol=1)  # the filter's window sees the sides
    assert made.min() > 180
    tall = decode(tmp_path / "wide.png", 10, 30, 1)[..., 0]
    assert tall.shape == (10, 30)
    np.testing.assert_allclose(tall[:, [0, 15, -1]], [[0, 200, 0]] * 10, atol=1)


def test_a_large_jpeg_is_as_if_decoded_whole(tmp_path: Path) -> None:
    """Decoding a JPEG coarsely first, which is fast, changes what it becomes by little."""
    y, x = np.mgrid[:512, :512]
    smooth = (127 + 100 * np.sin(x / 60) * np.cos(y / 90)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "large.jpg", quality=95)
    Image.fromarray(smooth).save(tmp_path / "large.png")
    jpeg, png = (decode(tmp_path / f"large.{e}", 32, 32, 1).astype(int) for e in ("jpg", "png"))
    assert abs(jpeg - png).max() <= 4


def test_a_bomb_and_a_pipe_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    Image.new("L", (1100, 1100)).save(tmp_path / "bomb.png")
    with pytest.raises(UnusableError, match="larger than 1 megapixels"):
        decode(tmp_path / "bomb.png", 32, 32, 3)
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    with pytest.raises(UnusableError, match="not a readable file"):
        decode(tmp_path / "pipe.png", 32, 32, 3)


# Splits and classes


def test_files_are_listed_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Folder by folder, where a slash comes before some characters and after others."""
    names = ["a/x", "a/b/y", "a/b.c/y", "a/b-c", "a.d/z", "a-d/z", "a d", "a0/z", "ab", "Z/é/1"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [name for name, _ in walk(tmp_path)] == sorted(names)
    files, text = Files.of(tmp_path), b""
    for name in sorted(names):
        status = (tmp_path / name).stat()
        text += f"{name}\0{status.st_size} {status.st_mtime_ns}\0".encode()
    assert files.listing == Listing(hashlib.sha256(text).hexdigest(), len(names), False)


SHARES: dict[SplitName, float] = {"train": 0.8, "valid": 0.1, "test": 0.1}


def listing(*names: str) -> Files:
    return Files(Path("/pictures"), names, [""] * len(names))


def test_a_file_keeps_its_split_while_others_come_and_go() -> None:
    names = [f"{i:04d}.png" for i in range(2000)]
    whole = listing(*names)
    splits = whole.splits(np.arange(2000))
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(2000))
    assert splits.keys() == SHARES.keys()
    for split, share in SHARES.items():
        assert abs(len(splits[split]) / 2000 - share) < 4 * np.sqrt(share * (1 - share) / 2000)
        assert (np.diff(splits[split]) > 0).all()
    half = listing(*names[::2])
    for split, rows in half.splits(np.arange(1000)).items():
        assert {half.names[row] for row in rows} <= {names[row] for row in splits[split]}


@pytest.mark.parametrize("count", range(1, 8))
def test_tiny_folders_have_something_in_each_split(count: int) -> None:
    for seed in range(40):
        rows = np.arange(count)
        splits = listing(*(f"{seed}-{i}.png" for i in rows)).splits(rows)
        assert sorted(np.concatenate(list(splits.values()))) == list(rows)
        sizes = [len(rows) for rows in splits.values()]
        assert min(sizes) >= 1 if count >= 3 else sizes == [count, 0, 0]


def test_classes_are_the_first_level_and_loose_pictures_one_of_their_own() -> None:
    files = listing("a/deep/1.png", "b/2.png", "3.png")
    assert [files.class_of(row) for row in range(3)] == ["a", "b", "."]
    assert not files.has_own_splits
    assert not listing("train/1.png", "3.png").has_own_splits
    own = listing("train/a/1.png", "train/b/2.png", "val/b/3.png", "test/4.png")
    assert [own.class_of(row) for row in range(4)] == ["a", "b", "b", "."]
    rows = own.splits(np.arange(4))
    assert {split: list(r) for split, r in rows.items()} == {
        "train": [0, 1],
        "valid": [2],
        "test": [3],
    }


def plain_folder(root: Path, count: int = 5) -> Path:
    root.mkdir()
    for i in range(count):
        picture(colour=(40 * i, 0, 0)).save(root / f"{i}.png")
    return root


def test_a_changed_folder_is_prepared_anew_and_a_moved_one_has_the_same_data(
    tmp_path: Path,
) -> None:
    folder = plain_folder(tmp_path / "pictures")

    def load(path: Path, **settings: int) -> Data:
        return load_folder(path, 32, data_dir=tmp_path / "data", **settings)  # type: ignore[arg-type]

    data = load(folder)
    assert data.train.labels is None
    assert data.class_names is None
    moved = folder.rename(tmp_path / "moved")
    assert load(moved).fingerprint == data.fingerprint
    assert load(moved, channels=1).image_shape == (32, 32, 1)
    picture(colour=(1, 2, 3)).save(moved / "0.png")
    assert load(moved).fingerprint != data.fingerprint


def test_folders_without_pictures_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VaeJaxError, match=r"pictures .*/nowhere does not exist"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(VaeJaxError, match="channels of load_folder is 2: give 1 or 3"):
        load_folder(tmp_path, channels=2)  # type: ignore[arg-type]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture")
    with pytest.raises(VaeJaxError, match=r"no training picture .* \(a.txt: not a JPEG"):
        load_folder(tmp_path / "texts", data_dir=tmp_path / "data")
    (tmp_path / "file").touch()
    with pytest.raises(VaeJaxError, match=r"cannot be kept in .*/file/data .* --data-dir"):
        load_folder(plain_folder(tmp_path / "plain"), 32, data_dir=tmp_path / "file" / "data")


TFDS = """
import sys, numpy as np, tensorflow_datasets as tfds
builder = tfds.ImageFolder(sys.argv[1])
print(*builder.info.features["label"].names)
for split in ("train", "test"):
    for example in tfds.as_numpy(builder.as_dataset(split)):
        print(split, example["label"], example["image"].tobytes().hex())
"""


@pytest.mark.slow
def test_a_folder_laid_out_for_tfds_is_as_tfds_has_it(tmp_path: Path) -> None:
    """The same images with the same labels in the same splits, by `tfds.ImageFolder`."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 3)):
        for name in ("art", "photo"):
            (tmp_path / "in" / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(generator.integers(256, size=(8, 8, 3)).astype(np.uint8))
                image.save(tmp_path / "in" / split / name / f"{i}.png")
    data = load_folder(tmp_path / "in", 8, data_dir=tmp_path / "data")
    command = [sys.executable, "-c", TFDS, str(tmp_path / "in")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names, *examples = done.stdout.splitlines()
    assert tuple(names.split()) == data.class_names
    ours = [
        f"{name} {label} {image.tobytes().hex()}"
        for name, split in (("train", data.train), ("test", data.test))
        for image, label in zip(split.images, split.labels, strict=True)  # type: ignore[arg-type]
    ]
    assert sorted(ours) == sorted(examples)


# The experiments


@pytest.mark.slow
def test_the_experiment_trains_on_the_odd_folder(odd: Path, tmp_path: Path) -> None:
    """What is usable of it, cut to 12x12, through the file's own networks made small."""
    _, module = read_module(ROOT / "experiments" / "folder.py")
    sizes = {"size": 12, "width": 2, "latent_dim": 2, "batch_size": 4, "num_steps": 3}
    with pytest.MonkeyPatch.context() as patch, on_devices(1):
        patch.setenv("VAE_JAX_DATA_DIR", str(tmp_path / "data"))
        experiment: Experiment = module.experiment(images=str(odd), **sizes)
        assert [type(part).__name__ for part in experiment.augment] == [
            "HorizontalFlip",
            "RandomShift",
            "BrightnessJitter",
            "ColourJitter",
        ]
        assert experiment.model.labels is None
        styles: Experiment = module.experiment(images=str(odd), styles=True, **sizes)
        run = train(styles, tmp_path / "run")
        with pytest.raises(VaeJaxError, match="has no sub-folders: make one of each style"):
            module.experiment(images=str(plain_folder(tmp_path / "plain")), styles=True, size=12)
        drawn = generate.sample(run, 2, labels=[run.find_label("科幻")])
    assert drawn.shape == (2, 12, 12, 3)
    assert np.isfinite(run.folder.read_metrics()[0]["loss"])
    assert int(run.state.skipped[0]) == 0
    with pytest.raises(VaeJaxError, match="--size is 4: it must be 8 or more"):
        module.experiment(images=str(odd), size=4)


@pytest.mark.slow
def test_the_recipe_beats_plain_training_on_few_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the first 200 digits of mnist_5k, in a short run of one seed, by several nats.

    A thousand images take more steps than a test can: there the docstring's command tells.
    """
    monkeypatch.setenv("VAE_JAX_DATA_DIR", str(tmp_path / "data"))
    _, module = read_module(ROOT / "experiments" / "small_data.py")
    monkeypatch.setattr(module, "SIZES", (200,))
    with on_devices(1):
        _, written = module.figures(
            workdir=tmp_path, data="mnist_5k", num_steps=3000, seeds=1, num_samples=50
        )
    table = [line.split("|") for line in written.read_text().splitlines() if "step" in line]
    nll = {(c[1].strip(), c[2].split(",")[0].strip()): float(c[3]) for c in table}
    assert nll["plain_200", "best"] < nll["plain_200", "latest"]
    assert nll["recipe_200", "best"] < nll["plain_200", "best"] - 5
