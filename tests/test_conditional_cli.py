"""Labels on the command line: a class drawn, a style changed, a classifier asked about both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import TINY, on_devices, script

from vae_jax import VaeJaxError, generate, load_run, train_file
from vae_jax.cli import main

SOURCE = """

unconditional = experiment


def experiment(*, conditional: bool = True) -> Experiment:
    import dataclasses
    from vae_jax import LabelEmbedding

    given = model(16).clone(labels=LabelEmbedding(8, 4) if conditional else None)
    short = unconditional(
        num_steps=1500, learning_rate=2e-2, log_every=500, checkpoint_every=1500
    )
    return dataclasses.replace(short, model=given)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on the tiny bars: `conditional`, whose classes are the 8 bars, and `plain`."""
    folder = tmp_path_factory.mktemp("conditional")
    file = folder / "bars.py"
    file.write_text(TINY.read_text() + SOURCE)
    with on_devices(1):
        train_file(file, folder / "conditional")
        train_file(file, folder / "plain", {"conditional": False})
    return folder


def vae_jax(*arguments: Any) -> None:
    with on_devices(1):
        main([str(argument) for argument in arguments])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"), float)


@pytest.mark.slow
def test_a_class_is_drawn_by_its_name(folder: Path, tmp_path: Path):
    """Bars 0 to 3 are rows, 4 to 7 columns, of 4x4 pixels."""
    for label in (1, 6):
        out = tmp_path / f"{label}.png"
        vae_jax("sample", folder / "conditional", "--labels", label, "--num", 9, "--out", out)
        tiles = pixels(out).reshape(3, 4, 3, 4).swapaxes(1, 2).reshape(9, 4, 4)
        bar = tiles.mean(2 if label < 4 else 1)
        assert (bar.argmax(1) == label % 4).all()


def test_without_a_label_every_class_has_a_row(folder: Path, tmp_path: Path):
    vae_jax("sample", folder / "conditional", "--num", 20, "--out", tmp_path / "all.jpg")
    drawn = pixels(tmp_path / "all.jpg")
    assert drawn.shape == (8 * 4, 2 * 4)
    vae_jax("sample", folder / "conditional", "--num", 16, "--out", tmp_path / "all.png")
    rows = pixels(tmp_path / "all.png").reshape(8, 4, 2, 4).mean(2)
    assert (rows[:4].mean(2).argmax(1) == np.arange(4)).all()
    assert (rows[4:].mean(1).argmax(1) == np.arange(4)).all()


def test_a_style_is_changed(folder: Path, tmp_path: Path):
    """One bar becomes another; all classes are drawn where none is asked for."""
    run, out = folder / "conditional", tmp_path / "restyled.png"
    vae_jax(
        "restyle",
        run,
        "--source",
        2,
        "--targets",
        2,
        5,
        "--num",
        2,
        "--split",
        "train",
        "--out",
        out,
    )
    two = pixels(out).shape
    vae_jax("restyle", run, "--source", 2, "--num", 2, "--split", "train", "--out", out)
    assert pixels(out).shape[0] > two[0]
    with on_devices(1):
        _, images, *_ = generate.restyle(load_run(run), 2, [2, 5], "train", 2)
    assert (images[:, 0].mean((2, 3)).argmax(1) == 2).all()
    assert (images[:, 1].mean((1, 3)).argmax(1) == 1).all()


@pytest.mark.parametrize(
    ("run", "flags", "said"),
    [
        ("conditional", ("sample", "--labels", "sci-fi"), "bars has no class 'sci-fi': choose one"),
        ("conditional", ("restyle", "--source", "8"), "no class '8': choose one of 0, 1, 2"),
        ("conditional", ("restyle", "--source", "0", "--targets", "x"), "no class 'x'"),
        ("plain", ("sample", "--labels", "1"), "trained without labels"),
        ("plain", ("restyle", "--source", "1"), "trained without labels"),
    ],
)
def test_unknown_labels_are_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run: str,
    flags: tuple[str, ...],
    said: str,
):
    command, *rest = flags
    with pytest.raises(SystemExit) as stopped:
        vae_jax(command, folder / run, *rest, "--out", tmp_path / "out.png")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


def test_a_classifier_tells_samples_of_one_class_from_those_of_another(folder: Path):
    """It learned from the training images; samples of wrong classes it calls wrong."""
    tell_apart = script("tell_apart").tell_apart
    with on_devices(1):
        run = load_run(folder / "conditional")
        table = tell_apart(run, per_class=25)
        plain = load_run(folder / "plain")
    accuracy = [float(cell) for cell in table.columns[2].cells]
    real, samples, *each = accuracy
    assert real > 0.8
    assert samples > 0.8
    assert np.mean(each) == pytest.approx(samples, abs=0.01)
    assert len(each) == 8
    low, high = (float(edge) for edge in list(table.columns[3].cells)[1].split(" to "))
    assert 1 / 8 < low < samples < high or samples == high == 1
    with pytest.raises(VaeJaxError, match="trained without labels"):
        tell_apart(plain)
