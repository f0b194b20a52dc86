"""Trackers: each line of metrics once, also after a crash, and figures, in the libraries' files."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from running import on_devices

from vae_jax import VaeJaxError, train
from vae_jax.cli import main
from vae_jax.run.trackers import MLflow, TensorBoard, Trackers, Values, WandB, by_name

Called = list[tuple[int, Values]]


def with_figure(folder: Path) -> Values:
    """A figure of 3 by 2 pixels, and a metric."""
    Image.fromarray(np.full((2, 3, 3), 200, np.uint8)).save(folder / "samples.png")
    return {"figures/samples": folder / "samples.png", "loss": 1.5}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    """A run of 40 steps that nothing stopped, and what its callback was called with."""
    folder, called = tmp_path_factory.mktemp("runs") / "whole", []
    with on_devices(1):
        train(tiny.experiment(), folder, callback=lambda *new: called.append(new))
    return folder, called


def test_a_callback_gets_each_line_of_metrics_as_floats(whole: tuple[Path, Called]):
    folder, called = whole
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    for (step, values), line in zip(called, lines, strict=True):
        del line["time"]
        assert {"step": step, **values} == line
        assert all(type(value) is float for value in values.values())


def test_a_callback_is_not_called_again_after_a_crash(tmp_path: Path, whole: tuple[Path, Called]):
    """From a checkpoint before the crash; what was called before it and after it is one run's."""
    called: Called = []

    def crash(step: int, values: Values) -> None:
        called.append((step, values))
        if step == 25:
            raise RuntimeError

    with on_devices(1):
        with pytest.raises(RuntimeError):
            train(tiny.experiment(), tmp_path, callback=crash)
        train(tiny.experiment(), tmp_path, callback=lambda *new: called.append(new))
    assert called == whole[1]


def test_several_seeds_have_a_mean_and_names():
    row = {"loss": np.array([1.0, 4.0], np.float32), "skipped": np.array([0, 2])}
    both = {"loss": 2.5, "loss/seed_3": 1.0, "loss/seed_4": 4.0}
    both |= {"skipped": 1.0, "skipped/seed_3": 0.0, "skipped/seed_4": 2.0}
    assert by_name(row, np.array([3, 4])) == both
    assert by_name({"loss": np.ones(1)}, np.array([3])) == {"loss": 1.0}


def events(folder: Path) -> Iterator[Any]:
    """The events in TensorBoard's files, records of a length, a checksum, bytes and a checksum."""
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    for file in sorted(folder.glob("tensorboard/events.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_tensorboard(tmp_path: Path):
    pytest.importorskip("tensorboardX")
    for steps in ((1, 2), (3,)):  # training went on
        with Trackers([TensorBoard]) as trackers:
            for step in steps:
                trackers.of(tmp_path)(step, {"loss": step / 2})
            trackers.of(tmp_path)(steps[-1], with_figure(tmp_path))
    values = [(each.step, value) for each in events(tmp_path) for value in each.summary.value]
    scalars = [(step, v.simple_value) for step, v in values if v.WhichOneof("value") != "image"]
    assert scalars == [(1, 0.5), (2, 1.0), (2, 1.5), (3, 1.5), (3, 1.5)]
    images = [v.image for _, v in values if v.WhichOneof("value") == "image"]
    assert [(image.width, image.height) for image in images] == [(3, 2), (3, 2)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library's own
def test_wandb_offline(whole: tuple[Path, Called], monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, _ = whole
    for step in (1, 2):
        with Trackers([WandB]) as trackers:
            trackers.of(folder)(step, with_figure(folder))
    wandb.teardown()  # its process writes what it still holds, as at the end of ours
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # of one run, which `wandb sync` puts together
    assert all(b"loss" in file.read_bytes() for file in files)
    pictures = folder.glob("wandb/offline-run-*/files/media/images/figures/samples_*.png")
    assert len({*pictures}) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library's own
def test_mlflow(whole: tuple[Path, Called], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "bars")
    folder, _ = whole
    for step in (1, 2):
        with Trackers([MLflow]) as trackers:
            trackers.of(folder)(step, with_figure(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://there")
    with pytest.raises(VaeJaxError, match="set MLFLOW_TRACKING_URI to a server's address"):
        MLflow(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("bars").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.5), (2, 1.5)]
    assert [each.path for each in client.list_artifacts(run.info.run_id, "figures")] == [
        "figures/samples.png"
    ]


@pytest.mark.parametrize(
    ("flag", "library"),
    [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow")],
)
def test_a_tracker_that_is_not_installed_is_named_before_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    library: str,
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(VaeJaxError, match=library):
        {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}[flag](tmp_path)
    with pytest.raises(SystemExit):
        main(["train", "quickstart", "--workdir", str(tmp_path / "run"), f"--{flag}"])
    assert f'pip install "vae_jax[{flag}]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
