"""The command from data to figures, as a user of the quickstart gives it."""

import contextlib
import errno
import hashlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from running import ROOT, TINY, finish, last_step, on_devices, rows, start

from vae_jax import plots, standard_figures
from vae_jax.cli import main
from vae_jax.cli.flags import as_flags
from vae_jax.train import load_run, train_file

QUICKSTART = ROOT / "experiments" / "quickstart.py"
FLAGS = ["--epochs", 3, "--hidden", 32, "--latent-dim", 2, "--seed", 7, "--tensorboard"]
TRAIN = (
    "-c",
    "import sys; from vae_jax.cli import main; main(); "
    "sys.exit('tensorflow was imported') if 'tensorflow' in sys.modules else None",
)
FIGURES = {
    "interpolations",
    "latents",
    "learning_curves",
    "manifold",
    "rate_and_distortion",
    "reconstructions",
    "samples",
    "traversals",
}


@pytest.fixture(scope="session")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The quickstart's run folder, and what the process that trained it said."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    process = start(
        TRAIN, "train", QUICKSTART, "--workdir", folder, *FLAGS, vae_jax_data_dir=data_dir
    )
    return folder, finish(process)


@pytest.fixture
def run(trained: tuple[Path, Any], data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder, for commands in this process."""
    monkeypatch.setenv("VAE_JAX_DATA_DIR", str(data_dir))
    return trained[0]


def vae_jax(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """What a command printed."""
    with on_devices(1):
        main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_training_ends_well_without_tensorflow(trained: tuple[Path, Any]) -> None:
    assert trained[1].returncode == 0, trained[1].stderr


def test_tensorboard_has_the_metrics_and_the_figures(trained: tuple[Path, Any]) -> None:
    (file,) = trained[0].glob("tensorboard/events.*")
    content = file.read_bytes()
    assert all(f"figures/{name}".encode() in content for name in FIGURES)
    lines = map(json.loads, (trained[0] / "metrics.jsonl").read_text().splitlines())
    names = {name for line in lines for name in line} - {"step", "time"}
    assert not [name for name in names if name.encode() not in content]


def test_progress_on_a_pipe_is_plain_lines(trained: tuple[Path, Any]) -> None:
    lines = [line for line in trained[1].stderr.splitlines() if line.startswith("step ")]
    assert "\x1b" not in trained[1].stderr
    assert "\r" not in trained[1].stderr
    assert re.fullmatch(r"step 100/120, loss \d+\.\d\d nats", lines[0])
    assert re.fullmatch(r"step 120/120, [\d,]+ images/s, loss \d+\.\d\d nats, 0 s left", lines[-1])


def said_at(terminal: int) -> Iterator[bytes]:
    """What is written to a terminal until its last writer closes it."""
    with contextlib.suppress(OSError):  # which is how a terminal ends on Linux
        while chunk := os.read(terminal, 100_000):
            yield chunk


def test_progress_on_a_terminal_is_a_bar() -> None:
    ours, theirs = pty.openpty()
    progress = (
        "from vae_jax.progress import Progress\n"
        "with Progress(20, 8) as p: p.update(10, 3.25); p.say('hello'); p.update(20, 3.0)"
    )
    with subprocess.Popen([sys.executable, "-c", progress], stderr=theirs) as process:
        os.close(theirs)
        said = b"".join(said_at(ours)).decode()
    os.close(ours)
    assert process.returncode == 0
    assert "20/20" in said
    assert "hello" in said
    assert "images/s, loss 3.00 nats" in said
    assert "\x1b" in said


def test_every_figure_is_drawn_and_named(trained: tuple[Path, Any]) -> None:
    folder, done = trained
    *drawn, report = map(Path, done.stdout.splitlines())
    assert {path.stem for path in drawn} == FIGURES
    assert report == folder / "figures" / "report.html"
    assert {*drawn, report} == set((folder / "figures").iterdir())
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert np.ptp(np.asarray(picture.convert("L"))) > 50, path


@pytest.mark.slow
def test_figures_that_were_interrupted_are_drawn_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", TINY, "--workdir", tmp_path / "run", "--num-steps", 10]
    save, saved = plots.save, []

    def save_two(figure: Any, path: Path) -> Path:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        return save(figure, path)

    monkeypatch.setattr(plots, "save", save_two)
    with pytest.raises(SystemExit) as stopped:
        vae_jax(capsys, *command)
    monkeypatch.setattr(plots, "save", save)
    assert stopped.value.code == 130
    vae_jax(capsys, *command)
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} == FIGURES
    assert not [*(tmp_path / "run").glob(".partial-*")]


def test_training_lowers_the_bound(trained: tuple[Path, Any]) -> None:
    first, last = (row["neg_elbo"] for row in rows(trained[0]) if "neg_elbo" in row)
    assert last < first < 784 * np.log(2)
    assert last_step(trained[0]) == 120


def test_experiment_json_says_how_to_do_it_again(trained: tuple[Path, Any], data_dir: Path) -> None:
    record = json.loads((trained[0] / "experiment.json").read_text())
    assert record["file"] == str(QUICKSTART)
    assert record["experiment"]["arguments"] == {
        "latent_dim": 2,
        "hidden": 32,
        "epochs": 3,
        "learning_rate": 1e-3,
        "data": "mnist_5k",
    }
    assert record["seed"] == 7
    assert len(record["data"]["fingerprint"]) == 64
    assert "4,000 training" in record["data"]["description"]


def test_params_sha256_is_of_the_arrays_in_the_last_checkpoint(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["step"] == 120
    state = ocp.StandardCheckpointer().restore(run / "checkpoints" / "120")
    leaves, _ = jax.tree_util.tree_flatten_with_path(state["params"])
    arrays = {"".join(f"['{key.key}']" for key in path): np.asarray(x) for path, x in leaves}
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].tobytes())
    assert len(arrays) == 10
    assert summary["params_sha256"] == digest.hexdigest()


def test_evaluate_prints_a_table_and_records_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "evaluation.json").unlink(missing_ok=True)
    printed = vae_jax(capsys, "evaluate", run, "--num-samples", 20, "--num-images", 50)
    value = r"(\d+\.\d\d) ± (\d+\.\d\d)"
    found = {
        name: re.search(pattern, printed)
        for name, pattern in {
            "neg_elbo": rf"negative ELBO\W+{value}",
            "nll": rf"NLL.*K = 20\W+{value}",
            "rate": rf"rate, exact.*?{value}",
            "distortion": rf"distortion.*?{value}",
            "active": r"active units\W+([0-2])\b",
            "speed": r"([\d,]+) images/s|([\d,]+)\W+images/s",
            "what": r"50 images\. mnist_5k: .*",
            "bits": r"bits/dim",
            "step": r"latest, step 120",
        }.items()
    }
    assert [name for name, match in found.items() if match is None] == [], printed
    (entry,) = json.loads((run / "evaluation.json").read_text())
    for name in ("neg_elbo", "nll", "distortion"):
        match = found[name] or pytest.fail(name)
        assert match[1] == f"{entry['mean'][name]:.2f}"
        assert match[2] == f"{entry['standard_error'][name]:.2f}"
    assert entry["mean"]["nll"] < entry["mean"]["neg_elbo"]
    assert entry["num_samples"] == 20
    assert entry["num_images"] == 50
    assert {Path(line).stem for line in printed.splitlines() if line.endswith(".png")} == FIGURES


@pytest.mark.slow
def test_evaluate_prints_and_records_the_studies_too(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "evaluation.json").write_text("[1]")
    few = ("--num-samples", 2, "--num-images", 9, "--checkpoint", "best")
    more = ("--ais-temperatures", 3, "--ais-chains", 2, "--information", "--gaps")
    printed = vae_jax(capsys, "evaluate", run, *few, *more)
    first, second = json.loads((run / "evaluation.json").read_text())
    assert first == 1  # another's entry stays
    assert second["checkpoint"].startswith("best, step ")
    assert second["ais"] == {"num_temperatures": 3, "num_chains": 2, "num_leapfrog": 10}
    for name, said in {
        "nll_ais": r"annealed bound, T = 3,",
        "simulated_nll_lower": "simulated images, at least",
        "marginal_kl": r"KL\(q\(z\) \|\| p\(z\)\)",
        "amortization_gap": "amortization gap",
    }.items():
        assert re.search(rf"{said}.*{second['mean'][name]:.2f} ±", printed), printed


def test_numbers_are_shown_even_if_they_cannot_be_recorded(
    run: Path,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (run / "evaluation.json").write_text('["old"]')

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    command = ("evaluate", run, "--num-samples", 2, "--num-images", 9)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as stopped:
        vae_jax(capsys, *command)
    monkeypatch.undo()
    monkeypatch.setenv("VAE_JAX_DATA_DIR", str(data_dir))  # which is undone too
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "negative ELBO" in said.out
    assert said.err == (
        f"vae-jax: {run}/evaluation.json cannot be written (No space left on device): free some "
        "space on its disk.\n"
    )
    assert (run / "evaluation.json").read_text() == '["old"]'
    (run / "evaluation.json").write_bytes(b"\xff")
    vae_jax(capsys, *command)
    assert len(json.loads((run / "evaluation.json").read_text())) == 1
    (run / "evaluation.damaged.json").unlink()


@pytest.mark.slow
def test_figures_drawn_again_leave_what_else_is_there(run: Path) -> None:
    mine = run / "figures" / "mine.txt"
    mine.write_text("mine")
    (run / "figures" / "samples.png").write_bytes(b"old")
    with on_devices(1):
        drawn = standard_figures.plot_standard_figures(load_run(run))
    assert mine.read_text() == "mine"
    mine.unlink()
    assert set(drawn) == set((run / "figures").glob("*.png"))
    with Image.open(run / "figures" / "samples.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("command", "name", "size"),
    [
        (["sample", "--num", 6], "samples.png", None),
        (["sample", "--num", 6], "samples.jpg", None),
        (["reconstruct", "--num", 4], "reconstructions.png", None),
        (["interpolate", "--pairs", 2, "--points", 5, "--split", "valid"], "lines.png", None),
        (["traverse", "--row", 3, "--points", 5], "traversals.png", None),
        (["sample", "--num", 4, "--checkpoint", "best"], "deeper/samples.png", (56, 56)),
    ],
)
def test_pictures_are_written_and_named(
    command: list[Any],
    name: str,
    size: tuple[int, int] | None,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / name
    name_of_command, *flags = command
    assert vae_jax(capsys, name_of_command, run, "--out", out, *flags) == f"{out}\n"
    with Image.open(out) as picture:
        assert picture.format == {".png": "PNG", ".jpg": "JPEG"}[out.suffix]
        assert picture.size == (size or picture.size)
        assert np.ptp(np.asarray(picture.convert("L"))) > 50
    assert list(out.parent.iterdir()) == [out]


def test_samples_are_those_of_their_seed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        vae_jax(
            capsys, "sample", run, "--num", 2, "--seed", seed, "--out", tmp_path / f"{name}.png"
        )
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_the_folder_alone_brings_the_run_back(run: Path) -> None:
    with on_devices(1):
        loaded = load_run(run)
        assert loaded.experiment.num_steps == 120
        again = train_file(
            QUICKSTART,
            run,
            json.loads((run / "experiment.json").read_text())["experiment"]["arguments"],
            seed=7,
        )  # finished: nothing to do
    assert again.state.step == loaded.state.step == [120]


def test_data_list_and_prepare(
    data_dir: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = vae_jax(capsys, "data", "list", "--data-dir", data_dir)
    line = next(line for line in listed.splitlines() if "mnist_5k" in line)
    assert re.search(r"4,000 / 500 / 500.*28x28x1.*yes", line)
    assert re.search(r"frey_faces.*\bno\b", listed)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.npy")}
    vae_jax(capsys, "data", "prepare", "mnist_5k", "--data-dir", data_dir)  # once is enough
    assert before
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.npy")} == before


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([], ["train", "evaluate", "sample", "reconstruct", "interpolate", "traverse", "figures"]),
        (["train"], ["train FILE --help"]),
        (
            ["train", QUICKSTART],
            ["--latent-dim", "--epochs", "--workdir", "--seeds", "passes over"],
        ),
        (["evaluate"], ["--num-samples", "--checkpoint", "importance-weighted"]),
        (["sample"], ["--out", "--seed", "prior's draws"]),
        (["reconstruct"], ["--out", "--split"]),
        (["interpolate"], ["--pairs", "--points"]),
        (["traverse"], ["--row", "--num-latents"]),
        (["figures"], ["FILE"]),
        (["data"], ["list", "prepare"]),
        (["data", "list"], ["--data-dir"]),
        (["data", "prepare"], ["--data-dir", "--manual-dir"]),
    ],
)
def test_help(command: list[Any], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, command), "--help"])
    assert not stopped.value.code
    printed = capsys.readouterr().out
    assert [text for text in said if text not in printed] == []


def test_help_does_not_wait_for_jax() -> None:
    source = (
        "import sys; from vae_jax.cli import main\n"
        "try: main(['evaluate', '--help'])\n"
        "finally: sys.stderr.write(str({'jax', 'flax', 'orbax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stderr == "set()"


@pytest.mark.parametrize("wanted", [True, False])
def test_compiled_programs_are_kept_unless_told_otherwise(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX's own variables, which a new process reads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that the test's end restores it
        monkeypatch.delenv(name)
    main(["data", "list"] + ["--no-compilation-cache"] * (not wanted))
    code = "import jax; print(jax.config.jax_enable_compilation_cache)"
    code += "; print(jax.config.jax_compilation_cache_dir)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(wanted), str(tmp_path / "vae_jax")]


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("seed of sample is -1: give 0 or more.", "--seed is -1: give 0 or more."),
        ("top is 2, and there is 1: leave it out.", "--top is 2, and there is 1: leave it out."),
        ("seed is -1 and num_seeds 1: take", "--seed is -1 and --seeds 1: take"),
        (
            "r is another run (experiment.arguments.latent_dim is 4 there, 20 here).",
            "r is another run (--latent-dim is 4 there, 20 here).",
        ),
        (
            "A share is 3 images, which accumulate=2 does not divide.",
            "A share is 3 images, which --accumulate 2 does not divide.",
        ),
        ("Read it, then give --trust (in Python trust=True), or", "Read it, then give --trust, or"),
        (
            "train one (`vae-jax train x`; in Python labels=LabelEmbedding(...)).",
            "train one (`vae-jax train x`).",
        ),
        (
            "features of MLP is (0,): give one.",
            "features of MLP is (0,): give one. You gave --hidden 0.",
        ),
        ("give the model Categorical(top=3).", "give the model Categorical(top=3)."),
    ],
)
def test_sentences_are_in_the_words_of_who_typed_the_command(said: str, heard: str) -> None:
    names = ["seed", "num_seeds", "top", "latent_dim", "accumulate", "labels", "hidden"]
    assert as_flags(said, names, ["--hidden", "0"]) == heard


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sample", "RUN", "--out", "a.png", "--seed", "-1"], "--seed is -1"),
        (["sample", "RUN", "--out", "a.png", "--labels", "3"], "train folder --styles"),
        (["reconstruct", "RUN", "--out", "a.png", "--top", "2"], "--top is 2"),
        (["traverse", "RUN", "--out", "a.png", "--layer", "3"], "--layer is 3"),
        (["evaluate", "RUN", "--ais-temperatures", "0"], "--ais-temperatures is 0"),
        (["train", str(QUICKSTART), "--seed", "-1"], "--seed is -1 and --seeds 1"),
        (["train", str(QUICKSTART), "--hidden", "0"], "You gave --hidden 0"),
        (["train", str(QUICKSTART), "--workdir", "RUN"], "--latent-dim is 2 there, 20 here"),
    ],
)
def test_what_a_command_refuses_is_named_by_its_flag(
    run: Path, command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with on_devices(1), pytest.raises(SystemExit):
        main([str(run) if word == "RUN" else word for word in command])
    error = capsys.readouterr().err
    assert said in error
    assert "LabelEmbedding" not in error


def test_pictures_are_vectors_in_a_style(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A grid of samples without axes too becomes a figure there."""
    with mpl.rc_context():
        vae_jax(
            capsys,
            "sample",
            run,
            "--num",
            4,
            "--out",
            tmp_path / "a.pdf",
            "--style-sheet",
            "ggplot",
        )
        vae_jax(capsys, "reconstruct", run, "--num", 2, "--out", tmp_path / "b.svg", "--dpi", 300)
    assert (tmp_path / "a.pdf").read_bytes()[:5] == b"%PDF-"
    assert "data</text>" in (tmp_path / "b.svg").read_text().replace("\n", "")
