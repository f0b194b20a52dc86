"""Run folders of other people: whose code is run, what is read without, and names as they are."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from running import on_devices
from unlucky import COMMANDS, RUN, changed, claim, some_slow

from vae_jax import VaeJaxError, plots, train
from vae_jax.cli import main
from vae_jax.errors import legible
from vae_jax.progress import Counter, Progress
from vae_jax.run import RunFolder
from vae_jax.train import load_run

pytestmark = pytest.mark.hostile


@pytest.fixture(autouse=True)
def one_device() -> Iterator[None]:
    with on_devices(1):
        yield


# Code from elsewhere


class Owner(NamedTuple):
    """Who wrote a folder, as a change to a copy that this account wrote."""

    change: Callable[[Path, pytest.MonkeyPatch], object]
    sentence: str


def as_another_account(folder: Path, patch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    patch.setattr(os, "geteuid", lambda: mine + 1)


def owned_by_another(*names: str) -> Callable[[Path, pytest.MonkeyPatch], object]:
    def change(folder: Path, patch: pytest.MonkeyPatch) -> None:
        look = Path.stat

        def other(self: Path, **options: Any) -> Any:
            found = look(self, **options)
            if self.name not in names:
                return found
            return os.stat_result((*found[:4], found.st_uid + 1, *found[5:10]))

        patch.setattr(Path, "stat", other)

    return change


def for_all(name: str) -> Callable[[Path, pytest.MonkeyPatch], object]:
    return lambda folder, patch: (folder / name).chmod(0o666)


OWNERS = {
    "another account": Owner(as_another_account, r"belongs to another account \(number \d+\)"),
    "another's folder": Owner(owned_by_another("run"), r"run belongs to another account"),
    "another's record": Owner(owned_by_another("experiment.json"), r"experiment\.json belongs to"),
    "another's copy": Owner(owned_by_another(".experiment.json"), r"\.experiment\.json belongs to"),
    "everybody's record": Owner(for_all("experiment.json"), "can be written by every account"),
    "everybody's copy": Owner(for_all(".experiment.json"), "can be written by every account"),
}


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("origin", ["from_python", "from_file"])
def test_code_of_another_account_is_not_run(
    owner: str,
    origin: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(request.getfixturevalue(origin), tmp_path / "run")
    trace = tmp_path / "trace"
    monkeypatch.setenv("TRACE", str(trace))
    OWNERS[owner].change(tmp_path / "run", monkeypatch)
    with pytest.raises(VaeJaxError, match=OWNERS[owner].sentence) as raised:
        load_run(tmp_path / "run")
    assert "--trust (in Python trust=True)" in str(raised.value)
    assert "vae-jax export" in str(raised.value)
    assert not trace.exists()
    RunFolder(tmp_path / "run").export(tmp_path / "model.npz")  # needs no trust
    assert not trace.exists()
    load_run(tmp_path / "run", trust=True)
    assert trace.exists() == (origin == "from_file")


@pytest.mark.parametrize("command", some_slow(COMMANDS, quick=["sample"]))
def test_every_command_asks_for_trust(
    command: str,
    from_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    as_another_account(from_file, monkeypatch)
    arguments = [str(each) for each in (command, from_file, *COMMANDS[command])]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "belongs to another account" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    main([*arguments, "--trust"])
    assert (tmp_path / "trace").exists()


EXPORTED: dict[str, Callable[[Path], object]] = {
    "as it is": lambda run: None,
    "code that fails": lambda run: rewrite(run, source="raise SystemExit('run')"),
    "no code": lambda run: rewrite(run, source=None, file=None, experiment=None),
    "a record that is damaged": lambda run: (run / "experiment.json").write_bytes(b"\xff"),
    "no record": lambda run: [(run / f"{dot}experiment.json").unlink() for dot in ("", ".")],
}


def rewrite(run: Path, **entries: Any) -> None:
    for name in ("experiment.json", ".experiment.json"):
        record = json.loads((run / name).read_text()) | entries
        (run / name).write_text(json.dumps(record))


@pytest.mark.parametrize("situation", EXPORTED)
def test_parameters_are_read_without_code(
    situation: str, from_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    shutil.copytree(from_file, tmp_path / "run")
    EXPORTED[situation](tmp_path / "run")
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "new" / "model.npz")])
    assert not (tmp_path / "trace").exists()
    variables = load_run(from_file).seed_variables
    with np.load(tmp_path / "new" / "model.npz", allow_pickle=False) as arrays:
        assert len(arrays) == len(jax.tree.leaves(variables))
        for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            np.testing.assert_array_equal(arrays[name], leaf)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "model.pkl"], "must end in .npz"),
        (["--out", "file/model.npz"], "cannot be written"),
        (["--out", "model.npz", "--checkpoint", "best"], ""),
    ],
)
def test_an_export_that_is_not_possible(
    arguments: list[str],
    said: str,
    from_python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) if said else contextlib.nullcontext():
        main(["export", str(from_python), *arguments])
    assert (tmp_path / "model.npz").exists() == (not said)


def test_an_export_of_an_empty_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VaeJaxError, match="has no latest checkpoint"):
        RunFolder(tmp_path).export(tmp_path / "model.npz")


def test_seeds_and_no_average_are_exported(tmp_path: Path) -> None:
    run = train(changed(ema_decay=None, num_steps=10), tmp_path / "run", num_seeds=2)
    with np.load(run.folder.export(tmp_path / "model.npz")) as arrays:
        kernel = arrays["params/encoder/Dense_0/kernel"]
    np.testing.assert_array_equal(kernel, run.state.params["encoder"]["Dense_0"]["kernel"])


def test_a_repository_is_asked_for_its_commit_without_its_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git = functools.partial(subprocess.run, check=True, capture_output=True)
    git(["git", "init", "."])
    (tmp_path / "program").write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\n")
    (tmp_path / "program").chmod(0o755)
    git(["git", "add", "program"])
    git(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "one"])
    git(["git", "config", "core.fsmonitor", str(tmp_path / "program")])
    claim(tmp_path / "run", RUN)
    assert not (tmp_path / "trace").exists()
    record = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert len(record["git_commit"].removesuffix("+changes")) == 40


# Names


NAMES = [
    "$a$",
    "$5 and $6",
    "a_{b$",
    "[red]x[/red]",
    "[/]",
    "\udc80\udcff",
    "科幻小说",
    "_hidden",
    "two\nlines",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\r over",
    "\u202ereversed",
    r"\frac{1}",
    "100 %",
    "🙂",
    "العربية",
    "{}",
    "{pid}",
]


def obeyed(text: str) -> list[str]:
    """What a terminal would do rather than print."""
    return [each for each in text if not each.isprintable() and each != "\n"]


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_spells_what_a_terminal_obeys(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", f"no/{name}"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not obeyed(said)
    assert said == f"vae-jax: no/{legible(name)} is no run folder: it has no experiment.json.\n"


@pytest.mark.parametrize("name", NAMES)
def test_progress_spells_it_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Counter(f"Preparing {name}"):
        pass
    with Progress(1, 1) as progress:
        progress.say(f"Going on with {name}.")
    said = capsys.readouterr().err
    assert said == f"Preparing {legible(name)} (once)...\nGoing on with {legible(name)}.\n"


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """And warnings are errors here."""
    images = np.zeros((len(NAMES), 2, 4, 4, 1))
    z, labels = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % len(NAMES)
    rows, scatter = plots.named_rows(images, NAMES), plots.latent_scatter(z, labels, NAMES)
    title = plots.reconstructions(images[:, 0], images[:, 1], title=plots.plain("".join(NAMES)))
    for number, figure in enumerate((rows, scatter, title)):
        plots.save(figure, tmp_path / f"{number}.png")
    shown = [text.get_text() for text in scatter.legends[0].get_texts()]
    assert shown == [plots.plain(name) for name in NAMES]


@pytest.mark.parametrize("name", ["[red]bars[/red]", "$a$", "\x1b[31mbars", "科幻", "[/]"])
def test_a_table_shows_names_as_they_are(
    name: str, tmp_path: Path, from_python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / name
    shutil.copytree(from_python, run)
    main(["evaluate", str(run), "--num-samples", "2", "--num-images", "5"])
    said = capsys.readouterr().out
    assert legible(name) in "".join(said.split())  # the path may be broken anywhere
    assert not obeyed(said)


@pytest.mark.parametrize("name", ["a\udc80.npz", "科幻.npz", "[x].npz", "$a$.npz"])
def test_a_path_for_a_pipe_is_the_path(
    name: str, from_python: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    main(["export", str(from_python), "--out", str(tmp_path / name)])
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == os.fsencode(tmp_path / name) + b"\n"
