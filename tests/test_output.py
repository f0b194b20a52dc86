"""Pictures on the disk: formats, quality, single files, what is refused."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image, ImageDraw
from running import TINY, on_devices

from vae_jax import VaeJaxError, generate, plots
from vae_jax.cli import main
from vae_jax.train import load_run, train_file

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".WEBP": "WEBP"}


def drawing(channels: int = 3) -> np.ndarray:
    """A disc and a line on a gradient, `[1, 48, 40, C]`."""
    picture = Image.linear_gradient("L").resize((40, 48)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 8, 30, 30), fill=(220, 30, 40))
    draw.line((0, 47, 39, 0), fill=(20, 200, 240), width=2)
    pixels = np.asarray(picture if channels == 3 else picture.convert("L")) / 255.0
    return pixels.reshape(1, 48, 40, channels)


def read(path: Path) -> tuple[str | None, np.ndarray]:
    with Image.open(path) as picture:
        return picture.format, np.asarray(picture)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_suffix_is_the_format_and_bytes_go_from_0_to_255(
    suffix: str, channels: int, tmp_path: Path
) -> None:
    x = drawing(channels)
    kind, pixels = read(plots.save_images(x, tmp_path / f"x{suffix}"))
    assert kind == FORMATS[suffix]
    error = np.abs(pixels.reshape(48, 40, -1)[..., :channels] - 255 * x[0]).max()
    assert error <= (0.5 if suffix.lower() in (".png", ".webp") else 40)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_quality_trades_size_for_error(suffix: str, tmp_path: Path) -> None:
    sizes, errors = [], []
    for quality in (5, 40, 95):
        path = plots.save_images(drawing(), tmp_path / f"x{suffix}", file_quality=quality)
        sizes.append(path.stat().st_size)
        errors.append(np.abs(read(path)[1] - 255 * drawing()[0]).mean())
    assert sizes == sorted(set(sizes))
    assert errors == sorted(set(errors), reverse=True)
    default = plots.save_images(drawing(), tmp_path / "default.jpg").read_bytes()
    same = plots.save_images(drawing(), tmp_path / "same.jpg", file_quality=95).read_bytes()
    assert default == same


def test_jpeg_keeps_the_colour_of_every_pixel(tmp_path: Path) -> None:
    """Columns of red and blue one pixel wide, which halved chroma turns into one purple."""
    x = np.zeros((1, 16, 16, 3))
    x[:, :, ::2, 0] = x[:, :, 1::2, 2] = 1
    _, pixels = read(plots.save_images(x, tmp_path / "x.jpg"))
    assert pixels[:, ::2, 0].min() > 150 > 100 > pixels[:, 1::2, 0].max()


def test_each_picture_gets_a_file_whose_name_sorts(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 12)[:, None, None, None] * np.ones((12, 8, 9, 1))
    paths = plots.save_each(x, tmp_path / "new" / "sample-{}.png")
    assert [path.name for path in paths[:2]] == ["sample-00.png", "sample-01.png"]
    assert sorted(paths[0].parent.iterdir()) == paths
    for path, image in zip(paths, x, strict=True):
        np.testing.assert_array_equal(read(path)[1], np.rint(255 * image[..., 0]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run's folder."""
    folder = tmp_path_factory.mktemp("output") / "run"
    with on_devices(1):
        train_file(TINY, folder, {"num_steps": 10})
    return folder


def vae_jax(*arguments: Any) -> None:
    with on_devices(1):
        main([str(argument) for argument in arguments])


@pytest.mark.others_slow
@pytest.mark.parametrize(
    ("command", "suffix", "files"),
    [
        (["sample", "--num", 3, "--file-quality", 50], ".webp", 3),
        pytest.param(["reconstruct", "--num", 3], ".jpg", 3, marks=pytest.mark.slow),
        (["reconstruct", "--num", 30], ".jpg", 21),  # as many as the split has
        pytest.param(
            ["interpolate", "--pairs", 2, "--points", 3], ".webp", 6, marks=pytest.mark.slow
        ),
        (["interpolate", "--pairs", 30, "--points", 3], ".webp", 30),
        (["traverse", "--points", 3, "--file-quality", 80], ".jpeg", 6),
    ],
)
def test_every_command_draws_one_file_or_many(
    command: list[Any],
    suffix: str,
    files: int,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *flags = command
    one, many = tmp_path / f"one{suffix}", tmp_path / "many" / f"{{}}{suffix}"
    vae_jax(name, run, "--out", one, *flags)
    assert capsys.readouterr().out == f"{one}\n"
    assert read(one)[0] == FORMATS[suffix]
    vae_jax(name, run, "--out", many, *flags)
    digits = len(str(files - 1))
    paths = [many.with_name(f"{n:0{digits}}{suffix}") for n in range(files)]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in paths]
    for path in paths:
        kind, pixels = read(path)
        assert (kind, pixels.shape[:2]) == (FORMATS[suffix], tiny.IMAGE_SHAPE[:2])


@pytest.mark.parametrize("draw", [generate.reconstruct, partial(generate.interpolate, points=3)])
def test_a_split_without_images_is_refused(draw: Any, run: Path) -> None:
    """The test split of a folder with two pictures is one."""
    with on_devices(1):
        loaded = load_run(run)
    data = loaded.experiment.data
    data = replace(data, test=replace(data.test, images=data.test.images[:0]))
    emptied = replace(loaded, experiment=replace(loaded.experiment, data=data))
    with pytest.raises(VaeJaxError, match=r"test split of bars has no .*another split"):
        draw(emptied, "test", 3)


@pytest.mark.others_slow
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
def test_a_seed_is_the_same_bytes(suffix: str, run: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        vae_jax("sample", run, "--num", 4, "--seed", seed, "--out", tmp_path / f"{name}{suffix}")
    a, b, c = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "x.gif"], r"must end in \.png, \.jpg, \.jpeg, \.webp"),
        (["--out", "folder/"], r"must end in"),
        (["--out", "x.png", "--file-quality", 90], r"PNG keeps every byte"),
        (["--out", "x.jpg", "--file-quality", 0], r"is 0: give 1 to 100"),
        (["--out", "x.webp", "--file-quality", 101], r"is 101: give 1 to 100"),
    ],
)
@pytest.mark.parametrize("command", ["sample", "reconstruct", "interpolate", "traverse"])
def test_refusals_come_before_the_run_is_read(
    command: str, flags: list[Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        vae_jax(command, "no-such-run", *flags)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
