"""Bad input: one sentence that says what is wrong and what to do, exit code 2, nothing written."""

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from running import CLI, TINY, finish, on_devices, start

from vae_jax import Data, VaeJaxError, load_run, train
from vae_jax.cli import main
from vae_jax.train import train_file


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command that has to be refused, and returns what it said in one line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert stopped.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert line.startswith("vae-jax: ")
        assert line.endswith(".")
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return line

    return run


def write_file(folder: Path, body: str) -> Path:
    """An experiment file whose function has this body, with the tiny experiment at hand."""
    file = folder / "changed.py"
    indented = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    file.write_text(f"{TINY.read_text()}\n\ntiny = experiment\n\n\ndef experiment():\n{indented}\n")
    return file


def write_changed(folder: Path, change: str) -> Path:
    """An experiment file whose Experiment differs from the tiny one in this field."""
    return write_file(
        folder,
        f"""
        import dataclasses
        from vae_jax import Data, Gaussian, load
        return dataclasses.replace(tiny(), {change})
        """,
    )


# Experiment files


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "No such file"),
        ("def experiment(:\n", "invalid syntax"),
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("from vae_jax import NoSuchPart\n", "NoSuchPart"),
        ("x = undefined\n", "name 'undefined' is not defined"),
        ("", "must define `def experiment(*, ...) -> Experiment`"),
        ("def experiment(k: int): ...\n", "keyword-only"),
        ("experiment = 3\n", "must define `def experiment(*, ...) -> Experiment`"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"x = 1\x00", "cannot be run"),
    ],
)
def test_an_experiment_file_that_cannot_be_used(
    source: str | bytes | None, said: str, refused: Any, tmp_path: Path
) -> None:
    file = tmp_path / "broken.py"
    if source is not None:
        file.write_bytes(source.encode() if isinstance(source, str) else source)
    sentence = refused("train", file)
    assert str(file) in sentence
    assert said in sentence


def test_a_folder_is_no_experiment_file(refused: Any, tmp_path: Path) -> None:
    assert "cannot be read" in refused("train", tmp_path)


def test_an_experiment_file_may_define_networks_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    source = TINY.read_text().replace("import numpy", "import flax.linen as nn\nimport numpy", 1)
    own = """
        class Own(nn.Module):
            width: int | None = None

            @nn.compact
            def __call__(self, x):
                return nn.tanh(nn.Dense(self.width)(x.reshape(len(x), -1)))
        """
    source += textwrap.dedent(own) + "\n\ntiny = model\n\n\n"
    source += "def model(hidden: int = 8) -> VAE:\n    return tiny().clone(encoder=Own(hidden))\n"
    file.write_text("from __future__ import annotations\n" + source)
    with on_devices(1):
        train_file(file, tmp_path / "run", {"num_steps": 10})
        run = load_run(tmp_path / "run")  # from the source in the run folder
    assert type(run.experiment.model.encoder).__name__ == "Own"


# Flags: tyro's own message, and exit code 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", TINY, "--no-such-flag", "3"],
        ["train", TINY, "--num-steps", "many"],
        ["train", TINY, "--num-steps"],
        ["train"],
        ["no-such-command"],
        ["evaluate", "run", "--checkpoint", "second"],
        ["evaluate", "run", "--num-samples", "1.5"],
    ],
)
def test_a_wrong_flag_or_value(
    arguments: list[Any], tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    said = capfd.readouterr()
    assert said.out == ""
    wrong = str(arguments[-1] if len(arguments) < 3 else arguments[-2]).removeprefix("--")
    assert wrong.split("/")[-1] in said.err or "required" in said.err
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


# What the experiment says


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--checkpoint-every", 7],
            "checkpoint_every of Experiment is 7, no multiple of log_every, 5",
        ),
        (["--checkpoint-every", 0], "checkpoint_every of Experiment is 0: give a whole number of"),
        (["--num-steps", 0], "do not suit"),  # the schedule's own complaint
        (["--num-steps", -5], "do not suit"),
        (["--log-every", -5], "log_every of Experiment is -5"),
        (["--batch-size", 0], "batch_size of Experiment is 0"),
        (["--batch-size", 12], "12 does not divide over 8 devices: choose a multiple of 8"),
        (["--seed", -1], "all from 0 to 2^32 - 1"),
        (["--seeds", 0], "take at least one seed"),
    ],
)
def test_numbers_that_make_no_sense(flags: list[Any], said: str, refused: Any) -> None:
    assert said in refused("train", TINY, *flags)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model=model().clone(image_shape=(5, 4, 1))", "images of shape (5, 4, 1), bars has (4, 4"),
        (
            "data=data('grey')",
            "Bernoulli gives no probability to uint8 images (protocol grey of bars): take the "
            "protocol dynamic or fixed or threshold; or of likelihoods, these do: CategoricalPi",
        ),
        ("model=model().clone(likelihood=Gaussian())", "these do: Bernoulli"),
        ("ema_decay=1.5", "ema_decay"),
        ("data=load('no_such_data')", "no data set 'no_such_data': choose one of mnist"),
        ("data=load('mnist', 'no_such_protocol')", "no protocol 'no_such_protocol'"),
        ("data=data('no_such_protocol')", "no protocol 'no_such_protocol'"),
        ("data=Data.from_arrays('x', images(9, 0) / 255, protocol='grey')", "are float64: give ui"),
        (
            "data=Data.from_arrays('x', np.where(images(9, 0) > 99, np.nan, 0), protocol='grey')",
            "hold a NaN, the first at index",
        ),
        ("data=Data.from_arrays('x', images(9, 0)[..., 0], protocol='grey')", "[N, H, W, C]"),
        ("data=Data.from_arrays('x', images(0, 0), protocol='dynamic')", "training image"),
    ],
)
def test_an_experiment_that_does_not_fit_together(
    change: str, said: str, refused: Any, tmp_path: Path
) -> None:
    assert said in refused("train", write_changed(tmp_path, change))


def test_an_experiment_function_that_returns_nothing(refused: Any, tmp_path: Path) -> None:
    sentence = refused("train", write_file(tmp_path, "tiny()"))
    assert "returned None: let it return an Experiment" in sentence


# Folders


def test_a_workdir_below_a_file_cannot_be_written(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"{workdir} cannot be written" in refused("train", TINY, "--workdir", workdir)


def test_a_workdir_in_use(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("")
    sentence = refused("train", TINY, "--workdir", tmp_path)
    assert "not empty and not a run folder: choose another --workdir." in sentence


COMMANDS = {
    "evaluate": [],
    "sample": ["--out", "x.png"],
    "reconstruct": ["--out", "x.png"],
    "interpolate": ["--out", "x.png"],
    "traverse": ["--out", "x.png"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("folder", ["missing", "empty", "file", "damaged"])
def test_what_is_no_run_folder(command: str, folder: str, refused: Any, tmp_path: Path) -> None:
    path = tmp_path / folder
    if folder == "file":
        path.write_text("")
    elif folder != "missing":
        path.mkdir()
    if folder == "damaged":
        (path / "experiment.json").write_bytes(b"\xff{")
    said = "is damaged" if folder == "damaged" else f"{path} is no run folder"
    assert said in refused(command, path, *COMMANDS[command])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny file."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with on_devices(1):
        train_file(TINY, folder, {"num_steps": 10})
    return folder


def test_a_run_without_a_checkpoint(trained: Path, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(trained / "experiment.json", tmp_path / "run")
    assert "has no latest checkpoint yet" in refused("evaluate", tmp_path / "run")


def test_a_run_whose_data_changed(trained: Path, refused: Any, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    record = json.loads((trained / "experiment.json").read_text())
    record["data"]["fingerprint"] = "another"
    (tmp_path / "run" / "experiment.json").write_text(json.dumps(record))
    assert "trained on other data than bars has now" in refused("evaluate", tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "--num-images", 22], "has 21 images"),
        (["evaluate", "--num-images", 0], "has 21 images"),
        (["evaluate", "--num-samples", 0], "--num-samples is 0: it must be at least 1"),
        (["sample", "--out", "x.gif"], "must end in .png"),
        (["sample", "--out", "x.png", "--num", 0], "--num is 0: it must be at least 1"),
        (["reconstruct", "--out", "x.eps"], "must end in .png"),
        (["evaluate", "--features", "x.py:f"], "say how many with --quality-images too"),
        (["evaluate", "--quality-images", 22], "bars has 21: leave --quality-images out"),
        (["traverse", "--out", "x.png", "--row", 21], "has 21 images"),
        (["traverse", "--out", "x.png", "--num-latents", -1], "--num-latents is -1"),
        (["sample", "--out", "file/x.png"], "file/x.png cannot be written (File exists)"),
    ],
)
def test_more_than_a_run_has(
    arguments: list[Any], said: str, trained: Path, refused: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    command, *flags = arguments
    with on_devices(1):
        assert said in refused(command, trained, *flags)


def test_the_same_errors_are_exceptions_in_python(tmp_path: Path) -> None:
    with pytest.raises(VaeJaxError, match="12 does not divide over 8 devices"):
        train(tiny.experiment(batch_size=12), tmp_path / "run")
    with pytest.raises(VaeJaxError, match="are float32"):
        Data.from_arrays("x", np.zeros((3, 4, 4, 1), np.float32), protocol="grey")
    assert not (tmp_path / "run").exists()


def test_a_process_says_one_line_and_ends_with_2(tmp_path: Path) -> None:
    done = finish(start(CLI, "train", TINY, "--batch-size", 12, devices=8, cwd=tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "vae-jax: A batch of 12 does not divide over 8 devices: choose a multiple of 8, such as "
        "16.\n"
    )
    assert list(tmp_path.iterdir()) == []
