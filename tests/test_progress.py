"""What runs for long says so: on pipes, on terminals, in notebooks."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from vae_jax import progress
from vae_jax.progress import Counter, Progress, Waiting


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)


@pytest.mark.usefixtures("impatient")
def test_what_takes_long_says_for_how_long(capsys: pytest.CaptureFixture[str]):
    with Waiting("Drawing"), Waiting("Drawing more"):
        time.sleep(0.4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert set(lines) == {"Drawing, 0 s"}
    time.sleep(0.2)
    assert not capsys.readouterr().err


def test_what_is_done_soon_says_nothing(capsys: pytest.CaptureFixture[str]):
    with Waiting("Drawing"):
        pass
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("impatient")
def test_compiling_and_slow_steps_are_not_silent(capsys: pytest.CaptureFixture[str]):
    with Progress(20, 8) as display:
        time.sleep(0.3)
        assert set(capsys.readouterr().err.splitlines()) == {"Compiling, 0 s"}
        display.update(10, 3.0)
        time.sleep(0.3)
        first, *lines = capsys.readouterr().err.splitlines()
        assert first == "step 10/20, loss 3.00 nats"
        assert set(lines) == {"After step 10/20, 0 s"}


def test_a_notebook_has_one_bar_that_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """IPython's display, of which one object is shown, and then replaced."""
    bars: list[Any] = []

    def display(shown: object, display_id: bool) -> Any:
        assert display_id
        bars.append(shown)
        return SimpleNamespace(update=lambda values: bars.append(values))

    shell = SimpleNamespace(kernel=object())
    ipython = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    with Progress(2000, 8) as bar:
        bar.update(1000, 3.25)
        bar.update(2000, 3.0)
    assert not capsys.readouterr().err
    html = [each._repr_html_() for each in bars]
    assert html[0].startswith("<progress value='1000' max='2000'></progress> step 1,000 of 2,000")
    assert "loss 3.25 nats" in html[0]
    assert "value='2000'" in html[1]
    assert len(html) == 2


@pytest.mark.usefixtures("impatient")
def test_a_count_that_does_not_move_says_for_how_long(capsys: pytest.CaptureFixture[str]):
    with Counter("Preparing digits") as counter:
        time.sleep(0.3)
        first, *lines = capsys.readouterr().err.splitlines()
        assert first == "Preparing digits (once)..."
        assert set(lines) == {"Preparing digits, 0 s"}
        counter.update(1, 2)
        assert capsys.readouterr().err == "Preparing digits: 50 %\n"


@pytest.mark.usefixtures("impatient")
def test_in_a_command_silence_is_measured_over_all_its_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Two parts that are each done soon enough, and a line between others."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.4)
    monkeypatch.setattr(progress, "_silent_since", None)
    parts = "Opening", "Drawing"
    for is_command, heard in ((False, []), (True, ["Drawing, 0 s"])):
        if is_command:
            progress.begin_command()
        for part in parts:
            with Waiting(part):
                time.sleep(0.3)
        assert capsys.readouterr().err.splitlines() == heard
    progress.say("Halfway.")
    with Waiting("Writing"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "Halfway.\n"
