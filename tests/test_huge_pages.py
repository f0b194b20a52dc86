"""Processes that begin again with other settings of malloc, once and as they were."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vae_jax.cli import main
from vae_jax.cpu import huge_pages

ROOT = Path(__file__).parent.parent
PROGRAM = """
import os, sys
from pathlib import Path
from vae_jax.cpu import huge_pages

print("began", os.getpid(), sys.argv[1:], sys.flags.dont_write_bytecode, flush=True)
huge_pages.ENABLED = Path(sys.argv[1])
huge_pages.restart()
print(os.environ.get("GLIBC_TUNABLES"), sys.stdin.read())
"""
ASKED = "always [madvise] never"


@pytest.fixture
def begun(tmp_path: Path):
    def begun(
        enabled: str, program: tuple[str, ...] = ("-c", PROGRAM), text: str = "text", **own: str
    ) -> list[str]:
        """The lines of a process, with a file of the system's setting and its own variables."""
        (tmp_path / "a file").write_text(f"{enabled}\n")
        plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        done = subprocess.run(
            [sys.executable, "-B", *program, str(tmp_path / "a file"), "--flag", "*"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            env=plain | {"PYTHONPATH": str(ROOT)} | own,
        )
        return done.stdout.splitlines()

    return begun


@pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in os.confstr_names
    or tuple(map(int, (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1].split("."))) < (2, 35),
    reason="glibc cannot ask",
)
def test_a_process_begins_again_as_it_was(begun, tmp_path: Path) -> None:
    """The same number, arguments, flags of Python, and standard input."""
    first, second, last = begun(ASKED)
    assert first == second
    assert first.endswith(f"['{tmp_path}/a file', '--flag', '*'] 1")
    assert last == "glibc.malloc.hugetlb=1 text"


def test_a_process_goes_on_where_nothing_would_change(begun) -> None:
    for enabled in ("[always] madvise never", "always madvise [never]"):
        assert begun(enabled)[1:] == ["None text"]
    assert begun(ASKED, GLIBC_TUNABLES="glibc.malloc.check=0")[1:] == ["glibc.malloc.check=0 text"]
    assert begun(ASKED, ("-",), PROGRAM)[1:] == ["None "]


def test_a_process_that_was_given_other_arguments_goes_on(begun) -> None:
    """As a notebook, in which a command runs."""
    program = PROGRAM.replace(
        "huge_pages.restart()", "sys.argv[1:] = ['train']; huge_pages.restart()"
    )
    assert begun(ASKED, ("-c", program))[1:] == ["None text"]


@pytest.mark.parametrize("flags", [[], ["--no-compilation-cache"]])
def test_a_command_that_computes_asks_for_huge_pages(
    flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only if it is the process's own."""
    asked = []
    monkeypatch.setattr(huge_pages, "restart", lambda: asked.append("restart"))
    for command, times in (("train", 1), ("list", 1), ("table", 2)):
        monkeypatch.setattr(sys, "argv", ["vae-jax", *flags, command, "--help"])
        with pytest.raises(SystemExit):
            main()
        assert len(asked) == times, command
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert len(asked) == 2


def test_a_system_without_the_setting(begun, tmp_path: Path) -> None:
    program = PROGRAM.replace("Path(sys.argv[1])", "Path(sys.argv[1]) / 'nothing'")
    assert begun(ASKED, ("-c", program))[1:] == ["None text"]
