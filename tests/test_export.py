"""What leaves a run: latents of a user's pictures, parameters as arrays, programs as StableHLO."""

import dataclasses
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from running import on_devices
from test_use import MODELS, run_of

import vae_jax as vj
from vae_jax import progress
from vae_jax.cli import main
from vae_jax.run import Run, RunFolder, load_variables, save_programs
from vae_jax.run.arrays import flattened, save_arrays
from vae_jax.train import load_run, train, train_file


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    with on_devices(1):
        yield


def read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as content:
        return dict(content)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of two seeds."""
    experiment = tiny.experiment(num_steps=2, log_every=1, checkpoint_every=2)
    return train(experiment, tmp_path_factory.mktemp("runs") / "bars", num_seeds=2)


@pytest.mark.others_slow
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_parameters_leave_and_come_back(suffix: str, run: Run, tmp_path: Path) -> None:
    """Of all seeds and, after `replica`, of one; a damaged file and another model are sentences."""
    out = tmp_path / f"model.{suffix}"
    main(["export", str(run.folder.path), "--out", str(out)])
    variables = load_variables(out)
    assert flattened(variables).keys() == flattened(run.variables).keys()
    for name, array in flattened(run.variables).items():
        np.testing.assert_array_equal(flattened(variables)[name], array)
    zero = jax.tree.map(np.zeros_like, run.variables)
    emptied, x = run.with_variables(zero), tiny.images(3, 0)
    assert not np.any(emptied.encode(x).mean)
    back = emptied.with_variables(variables)
    np.testing.assert_array_equal(back.encode(x).mean, run.encode(x).mean)
    single = save_arrays(out, flattened(run.replica(1).seed_variables))
    one = run.with_variables(load_variables(single))
    np.testing.assert_array_equal(one.encode(x).mean, run.replica(1).encode(x).mean)
    with pytest.raises(vj.VaeJaxError, match="of the given variables is"):
        run_of(tiny.model(hidden=5)).with_variables(load_variables(single))
    out.write_bytes(out.read_bytes()[:100])
    with pytest.raises(vj.VaeJaxError, match="is damaged"):
        load_variables(out)


def test_files_of_other_kinds_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(vj.VaeJaxError, match=r"must end in \.npz or \.safetensors"):
        run.folder.export(tmp_path / "model.pt")
    with pytest.raises(vj.VaeJaxError, match="There is no file"):
        load_variables(tmp_path / "model.npz")


def test_without_the_package_safetensors_a_sentence_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(vj.VaeJaxError, match="pip install safetensors"):
        run.folder.export(tmp_path / "model.safetensors")


def test_a_folder_of_pictures_is_encoded(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the same bytes in a file of NumPy are; what is no picture is named and left out."""
    images = tiny.images(4, 0)
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    np.save(tmp_path / "mine.npy", images)
    found = []
    for source in ("mine", "mine.npy"):
        out = tmp_path / f"{source}.npz"
        flags = ["--images", str(tmp_path / source), "--out", str(out), "--num-samples", "3"]
        main(["encode", str(run.folder.path), *flags])
        found.append(read(out))
    assert "notes.txt (not a JPEG" in capsys.readouterr().err
    of_folder, of_array = found
    assert list(of_folder["names"]) == ["0.png", "1.png", "2.png", "3.png"]
    q, bounds = run.encode(images), run.bounds(images, num_samples=3)
    for each in found:
        np.testing.assert_allclose(each["z"], q.mean, atol=1e-6)
        np.testing.assert_allclose(each["std"], q.std, rtol=1e-5)
        np.testing.assert_allclose(each["nll"], bounds["nll"], rtol=1e-5)
        np.testing.assert_allclose(each["kl"], bounds["kl"], rtol=1e-4)
    assert "names" not in of_array


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--images", "nowhere", "--out", "z.npz"], "does not exist"),
        (["--images", ".", "--out", "z.npz"], "no picture that can be used"),
        (["--images", ".", "--out", "z.csv"], "must end in .npz"),
        (["--images", "flat.npy", "--out", "z.npz"], "give x.reshape"),
        (["--images", "text.npy", "--out", "z.npz"], "is no array"),
    ],
)
def test_what_cannot_be_encoded_is_a_sentence(
    flags: list[str],
    said: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("flat.npy", tiny.images(4, 0).reshape(4, -1))
    Path("text.npy").write_text("text")
    with pytest.raises(SystemExit, match="2"):
        main(["encode", str(run.folder.path), *flags])
    assert said in capsys.readouterr().err
    assert not Path("z.npz").exists()


def test_a_conditional_model_takes_classes_from_folders_or_flags(tmp_path: Path) -> None:
    run = run_of(MODELS["classes"])
    images = tiny.images(3, 0)
    for number, image in enumerate(images):
        folder = tmp_path / "mine" / str(number + 2)
        folder.mkdir(parents=True)
        Image.fromarray(image[..., 0]).save(folder / "bar.png")
    found = vj.generate.encode_pictures(run, tmp_path / "mine", None, 2, 0)
    np.testing.assert_allclose(found["z"], run.encode(images, [2, 3, 4]).mean, atol=1e-6)
    found = vj.generate.encode_pictures(run, tmp_path / "mine", ["1"], 2, 0)
    np.testing.assert_allclose(found["z"], run.encode(images, 1).mean, atol=1e-6)
    np.save(tmp_path / "mine.npy", images)
    with pytest.raises(vj.VaeJaxError, match="give --labels"):
        vj.generate.encode_pictures(run, tmp_path / "mine.npy", None, 2, 0)


ELSEWHERE = """
import json, sys
from pathlib import Path
import numpy as np
from jax import export
folder = Path(sys.argv[1])
given = np.load(folder / "given.npz")
programs = {n: export.deserialize((folder / "programs" / f"{n}.jax").read_bytes())
            for n in ("encoder", "decoder", "sampler")}
assert all(set(p.platforms) == {"cpu", "cuda", "tpu"} for p in programs.values())
y = (given["y"],) if "y" in given else ()
mean, std = programs["encoder"].call(given["x"], *y)
decoded = programs["decoder"].call(*(given[f"z{i}"] for i in range(int(given["layers"]))), *y)
drawn = programs["sampler"].call(np.uint32(3), np.arange(5, dtype=np.int32), *y)
np.savez(folder / "found.npz", mean=mean[0], std=std[0], decoded=decoded, drawn=drawn)
assert not [name for name in sys.modules if name.startswith(("vae_jax", "flax"))]
"""


@pytest.mark.others_slow
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "classes",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ladder", "deep", "codes", "sphere", "flow", "convolutions")
        ),
    ],
)
def test_programs_run_where_this_package_is_not(name: str, tmp_path: Path) -> None:
    """Encoder, decoder and sampler give what the run's own methods give."""
    models = MODELS | {
        "plain": tiny.model(),
        "convolutions": tiny.model().clone(
            encoder=vj.ConvEncoder((3, 4), 5), decoder=vj.ConvDecoder((4, 3), 5)
        ),
    }
    run = run_of(models[name])
    save_programs(run, tmp_path / "programs")
    x = np.asarray(run.observed(tiny.images(5, 0)))
    y = {"y": np.arange(5, dtype=np.int32)} if name == "classes" else {}
    zs = run.posterior_means(x, y.get("y"))
    given: Any = {f"z{layer}": z for layer, z in enumerate(zs)} | y
    np.savez(tmp_path / "given.npz", x=x, layers=len(zs), **given)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "found.npz")
    q = run.encode(x, y.get("y"))
    mean, std = (each[0] if isinstance(each, tuple) else each for each in (q.mean, q.std))
    if name not in ("sphere", "flow"):  # of which moments are estimated from other draws
        np.testing.assert_allclose(found["mean"], mean, atol=1e-4)
        np.testing.assert_allclose(found["std"], std, rtol=1e-3)
    np.testing.assert_allclose(found["decoded"], run.decode(zs, y.get("y")), atol=1e-4)
    labels = None if not y else [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found["drawn"], run.sample(5, labels=labels, seed=3), atol=1e-3)


def test_a_folder_that_is_there_is_not_written_over(run: Run, tmp_path: Path) -> None:
    with pytest.raises(vj.VaeJaxError, match="is there already"):
        save_programs(run, tmp_path)


def shared(run: Run, folder: Path) -> Path:
    """The run as it arrives elsewhere: a tar of its folder, unpacked, without its data."""
    with tarfile.open(folder / "run.tar", "w") as tar:
        tar.add(run.folder.path, "bars")
    with tarfile.open(folder / "run.tar") as tar:
        tar.extractall(folder / "there", filter="data")
    return folder / "there" / "bars"


def test_a_finished_run_needs_no_data(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One from Python whose arrays are not in its folder; it cannot be evaluated, and says why."""
    folder, x = shared(run, tmp_path), tiny.images(3, 0)
    shutil.rmtree(folder / "data")
    found = load_run(folder)
    assert "is open without its data, bars (given as arrays)" in capsys.readouterr().err
    np.testing.assert_array_equal(found.encode(x).mean, run.encode(x).mean)
    np.testing.assert_array_equal(found.sample(4), run.sample(4))
    np.testing.assert_array_equal(found.log_prob(x, num_samples=2), run.log_prob(x, num_samples=2))
    assert found.experiment.data.class_names == run.experiment.data.class_names
    with pytest.raises(vj.VaeJaxError, match="has 0 images"):
        vj.evaluate(found, num_samples=2)
    with pytest.raises(vj.VaeJaxError, match="has no images"):
        vj.generate.reconstruct(found)


FILE = """
from pathlib import Path
import numpy as np
import optax
import vae_jax as vj

class Wide(vj.DiagonalGaussian):
    pass

def experiment(*, images: str = "bars.npy") -> vj.Experiment:
    data = vj.Data.from_arrays("bars", np.load(images), protocol="dynamic")
    model = vj.VAE(encoder=vj.MLP((4,)), posterior=Wide(2), prior=vj.StandardNormal(2),
                   decoder=vj.MLP((4,)), likelihood=vj.Bernoulli())
    return vj.Experiment(data=data, model=model, objective=vj.ELBO(), optimizer=optax.adam(1e-2),
                         num_steps=2, batch_size=8, log_every=1, checkpoint_every=2)
"""


@pytest.mark.slow
def test_a_run_of_a_file_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does it where the file makes parts of its own."""
    bars = tmp_path / "bars.npy"
    np.save(bars, tiny.images(20, 0))
    (tmp_path / "mine.py").write_text(FILE)
    run = train_file(tmp_path / "mine.py", tmp_path / "run", {"images": str(bars)})
    with_data = load_run(tmp_path / "run").sample(3)
    capsys.readouterr()
    bars.unlink()
    found = load_run(tmp_path / "run")
    assert "No such file" in capsys.readouterr().err
    np.testing.assert_array_equal(found.sample(3), with_data)
    np.testing.assert_array_equal(with_data, run.sample(3))


def test_opening_a_run_for_long_is_not_silent(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    restore = RunFolder.restore

    def slowly(folder: RunFolder, *arguments: Any) -> Any:
        time.sleep(0.3)
        return restore(folder, *arguments)

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
    monkeypatch.setattr(RunFolder, "restore", slowly)
    load_run(run.folder.path)
    assert f"Opening {run.folder.path}, 0 s" in capsys.readouterr().err.splitlines()


def test_objects_say_what_a_person_asks_and_never_arrays(run: Run) -> None:
    """In a few lines, and in a notebook as a table; also where names have tags in them."""
    evaluation = vj.evaluate(run, num_samples=3)
    q = run.encode(tiny.images(3, 0))
    said: list[tuple[Any, list[str]]] = [
        (run, ["2 of 2 steps, 2 seeds", "VAE, ", "DiagonalGaussian 2", "Bernoulli", "neg_elbo"]),
        (
            run.experiment.data,
            ["bars", "90 training, 21 validation, 21 test", "4 x 4 x 1", "dynamic"],
        ),
        (evaluation, ["NLL, K = 3", "nats", "21 images", "sd of 2 seeds", "active units"]),
        (q, ["z_1 [3, 2]"]),
    ]
    for thing, words in said:
        for text in (str(thing), repr(thing)):
            assert all(word in text for word in words), text
            assert "array" not in text
            assert len(text.splitlines()) <= 10
            assert len(text) < 1500
    count = sum(leaf[0].size for leaf in jax.tree.leaves(run.variables["params"]))
    assert f"{count:,} parameters" in str(run)
    assert f"{evaluation.mean['nll'].mean():.2f}" in str(evaluation)
    odd = dataclasses.replace(run.experiment.data, name="<b>bars\x1b[1m")
    html = odd._repr_html_()
    assert "&lt;b&gt;bars\\x1b" in html
    assert html.startswith("<table>")
    for thing in (run, evaluation):
        assert thing._repr_html_().count("<tr>") == len(thing.shown)
