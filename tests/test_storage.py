"""Storage: whole or not at all, no entry lost, one holder of a lock, reading takes anything."""

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import finish, start

from vae_jax import VaeJaxError, load, load_run, storage
from vae_jax.data import load_folder
from vae_jax.run import RunFolder
from vae_jax.train import train_file

# Forks, for n = 0, 1, ..., a process that dies by SIGKILL at the n-th of the moments before and
# after the system calls that change files, until one lives to the end of it. Prints the folder's
# files as they are after each death, then after the one that lived.
KILLER = """
import itertools, json, os, shutil, signal, sys
from pathlib import Path
from vae_jax import storage

CALLS = "open write fsync close replace rename unlink truncate mkdir rmdir flock".split()
folder, prepare, write = Path(sys.argv[1]), *map(eval, sys.argv[2:])

def files():
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes().decode() for p in found}

for moment in itertools.count():
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    prepare(folder)
    if not (child := os.fork()):
        passed = itertools.count()
        def kill(frame, event, called):
            name = getattr(called, "__name__", "")
            if event in ("c_call", "c_return") and name in CALLS and next(passed) == moment:
                os.kill(os.getpid(), 9)
        sys.setprofile(kill)
        write(folder)
        sys.setprofile(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    before = files()
    if status == 9:
        storage.sweep(folder, age=0)
        write(folder)  # no killed process holds a lock, or is in the way
    print(json.dumps([status, before, files()]), flush=True)
    if status != 9:
        break
"""


def deaths(folder: Path, prepare: str, write: str) -> list[tuple[int, dict, dict]]:
    """What a process that writes leaves when it is killed at any moment, and after another try."""
    command = [sys.executable, "-c", KILLER, str(folder), prepare, write]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) > 3
    assert [status for status, _, _ in found] == [signal.SIGKILL] * (len(found) - 1) + [0]
    return found


def without_litter(files: dict[str, str]) -> dict[str, str]:
    """Without temporary files, folders and locks."""
    return {
        name: text
        for name, text in files.items()
        if not storage.is_litter(Path(Path(name).parts[0])) and not name.endswith(".lock")
    }


OLD, NEW = json.dumps([1], indent=2) + "\n", json.dumps([1, 2], indent=2) + "\n"
OLD_FILE = "lambda folder: storage.write_json(folder / 'a.json', [1])"
LINE = "lambda folder: (folder / 'a.jsonl').write_text('{\"a\": 1}\\n')"
FOLDER = """lambda folder: [
    (whole := storage.whole_folder(folder / "new")),
    (made := whole.__enter__()),
    (made / "one").write_text("1"),
    (made / "two").write_text("2"),
    whole.__exit__(None, None, None),
]"""


@pytest.mark.parametrize(
    ("prepare", "write", "states"),
    [
        (
            OLD_FILE,
            "lambda folder: storage.write_json(folder / 'a.json', [1, 2])",
            [{"a.json": OLD}, {"a.json": NEW}],
        ),
        (
            OLD_FILE,
            "lambda folder: storage.append_entry(folder / 'a.json', 2)"
            " if storage.read_json(folder / 'a.json', list) == [1] else None",
            [{"a.json": OLD}, {"a.json": NEW}],
        ),
        ("lambda folder: None", FOLDER, [{}, {"new/one": "1", "new/two": "2"}]),
        (
            FOLDER,
            "lambda folder: [storage.delete_folder(p) for p in folder.glob('new')]",
            [{"new/one": "1", "new/two": "2"}, {}],
        ),
    ],
    ids=["file", "entry", "folder", "deletion"],
)
def test_a_process_killed_at_any_moment_leaves_the_old_or_the_new(
    prepare: str, write: str, states: list[Any], tmp_path: Path
) -> None:
    found = deaths(tmp_path / "folder", textwrap.dedent(prepare), textwrap.dedent(write))
    seen = [without_litter(before) for _, before, _ in found]
    assert all(state in states for state in seen)
    assert [state for state, _ in itertools.groupby(seen)] == states  # first the old, then the new
    for _, _, after in found:
        assert without_litter(after) == states[-1]
        assert [n for n in after if storage.is_litter(Path(Path(n).parts[0]))] == []


def test_a_line_killed_at_any_moment_costs_no_other(tmp_path: Path) -> None:
    write = "lambda folder: storage.append_line(folder / 'a.jsonl', {'b': 2})"
    for _, before, after in deaths(tmp_path / "folder", LINE, write):
        whole = ['{"a": 1}', '{"b": 2}']
        assert before["a.jsonl"].splitlines() in (whole[:1], whole)
        assert after["a.jsonl"].splitlines() in (whole, [*whole, whole[-1]])


def test_the_deaths_would_show_a_writer_that_is_not_whole(tmp_path: Path) -> None:
    plain = "lambda folder: (folder / 'a.json').write_text('[1, 2]')"
    found = deaths(tmp_path / "folder", OLD_FILE, plain)
    assert any(before["a.json"] not in (OLD, "[1, 2]") for _, before, _ in found)


# A loss of power: nothing gets its name before it is on the disk, and then the name goes there


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed and renamed, in order, by name."""
    found: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def note_fsync(file: int) -> None:
        fsync(file)
        found.append(("flush", Path(f"/proc/self/fd/{file}").resolve().name))

    def noted(function: Any) -> Any:
        def note(self: Path, target: Path) -> Path:
            found.append(("rename", self.name))
            return function(self, target)

        return note

    if not Path("/proc/self/fd").exists():
        pytest.skip("this system does not name open files")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", noted(replace))
    monkeypatch.setattr(Path, "rename", noted(rename))
    return found


def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(
    calls: list[tuple[str, str]], tmp_path: Path
) -> None:
    storage.write_json(tmp_path / "new" / "a.json", [1])
    (_, parent), (_, partial), renamed, folder = calls
    assert parent == tmp_path.name  # where the folder "new" came into being
    assert storage.is_litter(Path(partial))
    assert renamed == ("rename", partial)
    assert folder == ("flush", "new")


def test_a_folder_is_flushed_with_all_that_is_in_it(
    calls: list[tuple[str, str]], tmp_path: Path
) -> None:
    with storage.whole_folder(tmp_path / "new") as made:
        (made / "sub").mkdir()
        (made / "sub" / "a").write_text("a")
        calls.clear()
    *flushed, renamed, folder = calls
    assert {name for _, name in flushed} == {"sub", "a", made.name}
    assert flushed[-1] == ("flush", made.name)
    assert renamed == ("rename", made.name)
    assert folder == ("flush", tmp_path.name)


def test_a_line_is_flushed(calls: list[tuple[str, str]], tmp_path: Path) -> None:
    storage.append_line(tmp_path / "a.jsonl", {"a": 1})
    assert calls == [("flush", "a.jsonl"), ("flush", tmp_path.name)]
    storage.append_line(tmp_path / "a.jsonl", {"a": 2})
    assert calls[2:] == [("flush", "a.jsonl")]


def test_a_folder_that_cannot_be_flushed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems; a file that cannot be flushed is one."""
    fsync, refused = os.fsync, [True]

    def refuse(file: int) -> None:
        if os.fstat(file).st_mode & 0o040000 or not refused[0]:
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(file)

    monkeypatch.setattr(os, "fsync", refuse)
    storage.write_json(tmp_path / "a.json", [1])
    refused[0] = False
    with pytest.raises(VaeJaxError, match=r"a\.json cannot be written"):
        storage.write_json(tmp_path / "a.json", [2])
    assert storage.read_json(tmp_path / "a.json", list) == [1]


# Failures


FULL = """
import resource, sys
from pathlib import Path
from vae_jax import VaeJaxError, storage
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
many = list(range(2000))
def fill(folder):
    (folder / "small").write_text("a")
    (folder / "large").write_text(str(many))
def whole_folder():
    with storage.writing(folder / "new"), storage.whole_folder(folder / "new") as made:
        fill(made)
for write in (
    lambda: storage.write_json(folder / "a.json", many),
    lambda: storage.append_entry(folder / "a.json", many),
    lambda: storage.append_line(folder / "a.jsonl", {"many": many}),
    whole_folder,
):
    try:
        write()
    except VaeJaxError as error:
        print(error)
"""


def test_a_full_disk_leaves_the_old_and_a_sentence(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a.json", [1])
    storage.append_line(tmp_path / "a.jsonl", {"a": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = finish(start(("-c", FULL), tmp_path))
    sentences = done.stdout.splitlines()
    assert [line.split()[0] for line in sentences] == [
        str(tmp_path / name) for name in ("a.json", "a.json", "a.jsonl", "new")
    ], done
    for line in sentences:
        assert line.endswith("cannot be written (File too large): free some space on its disk.")
    (tmp_path / ".a.json.lock").unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_exception_leaves_the_old_and_nothing_else(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a.json", [1])

    def half_a_file() -> None:
        with storage.whole_file(tmp_path / "a.json") as partial:
            assert partial.suffix == ".json"  # by which some libraries choose the format
            partial.write_text("half")
            raise KeyboardInterrupt

    def half_a_folder() -> None:
        with storage.whole_folder(tmp_path / "new") as made:
            (made / "half").touch()
            made.with_name(made.name + ".of-another-thread").mkdir()
            raise KeyboardInterrupt

    for write in (half_a_file, half_a_folder):
        with pytest.raises(KeyboardInterrupt):
            write()
    with pytest.raises(TypeError):
        storage.write_json(tmp_path / "a.json", object())
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert storage.read_json(tmp_path / "a.json", list) == [1]


def test_what_stands_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder"):
        for write in (storage.write_json, storage.append_line):
            with pytest.raises(VaeJaxError, match=rf"{path} cannot be written \(.*\): choose"):
                write(path, {})
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder"}


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path: Path) -> None:
    with storage.whole_folder(tmp_path / "new") as made:
        (made / "ours").touch()
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "theirs"]


def test_only_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    names = [".partial-0123456789abcdef.png", ".partial-0123456789abcdef.png.tmp", ".partial-mine"]
    for name in [*names, "a.partial", "partial-0123456789abcdef"]:
        (tmp_path / name).touch()
    storage.sweep(tmp_path)  # all just touched
    assert len([*tmp_path.iterdir()]) == 5
    os.utime(tmp_path / names[0], (0, time.time() - 4000))
    os.utime(tmp_path / names[1], (0, time.time() - 4000))
    storage.sweep(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".partial-mine", "a.partial", "partial-0123456789abcdef"}


def test_a_free_name_is_that_of_nothing(tmp_path: Path) -> None:
    assert storage.free_name(tmp_path / "a.json").name == "a.json"
    (tmp_path / "a.json").touch()
    (tmp_path / "a-2.json").symlink_to("nowhere")
    assert storage.free_name(tmp_path / "a.json").name == "a-3.json"


# Several processes


APPEND = """
import sys
from pathlib import Path
from vae_jax import storage
for n in range(25):
    storage.append_entry(Path(sys.argv[1]) / "a.json", [sys.argv[2], n])
    line = {"who": sys.argv[2], "n": n, "x": "x" * 9000}
    storage.append_line(Path(sys.argv[1]) / "a.jsonl", line)
"""


def test_no_entry_of_several_processes_is_lost(tmp_path: Path) -> None:
    done = [finish(p) for p in [start(("-c", APPEND), tmp_path, who) for who in "abcd"]]
    assert [run.returncode for run in done] == [0] * 4, done
    written = [[who, n] for who in "abcd" for n in range(25)]
    assert sorted(storage.read_json(tmp_path / "a.json", list)) == written
    lines = storage.read_lines(tmp_path / "a.jsonl")
    assert sorted([line["who"], line["n"]] for line in lines) == written


HOLD = """
import sys, time
from pathlib import Path
from vae_jax import storage
with storage.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_lock_says_who_holds_it_and_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "{odd} name.lock"
    process = start(("-c", HOLD), path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    refusal = f"{path} is kept by {{holder}}: wait."
    holder = rf"process {process.pid} on {os.uname().nodename}, since 20\d\d-\S+"
    said = rf"^{re.escape(str(path))} is kept by {holder}: wait\.$"
    with pytest.raises(VaeJaxError, match=said), storage.lock(path, refusal):
        pass
    process.kill()
    finish(process)
    with (
        storage.lock(path, refusal),
        pytest.raises(VaeJaxError, match=f"process {os.getpid()} "),  # of two threads, too
        storage.lock(path, "{holder}"),
    ):
        pass
    assert path.read_bytes() == b""


def test_a_lock_that_is_waited_for_is_had_when_it_is_released(tmp_path: Path) -> None:
    program = HOLD.replace("time.sleep(100)", "time.sleep(0.3); print(time.time(), flush=True)")
    process = start(("-c", program), tmp_path / "lock")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with storage.lock(tmp_path / "lock"):
        had = time.time()
    assert had >= float(finish(process).stdout) - 0.01


def test_where_nobody_may_write_there_is_nothing_to_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run in a folder that may only be read; root's processes need a stand-in."""

    def refuse(self: Path, *_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    with storage.lock(tmp_path / "lock", "{holder}"):
        pass
    monkeypatch.undo()
    with (
        pytest.raises(VaeJaxError, match=r"nowhere/lock cannot be written"),
        storage.lock(tmp_path / "nowhere" / "lock"),
    ):
        pass


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(storage.fcntl, "flock", refuse)
    storage.append_entry(tmp_path / "a.json", 1)
    storage.append_line(tmp_path / "a.jsonl", {"a": 1})
    said = capsys.readouterr().err
    assert "a.json.lock cannot be locked (this file system has none: Function not impl" in said
    assert storage.read_json(tmp_path / "a.json", list) == [1]


# Reading


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe{",
        b"[]",
        b'"text"',
        b"3",
        b"null",
        b"true",
        b"[" * 100_000,
        b"\x00" * 9,
    ],
)
def test_what_is_no_object_is_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(storage.DamagedError, match=r"a\.json is damaged \(.*\)\.$"):
        storage.read_json(tmp_path / "a.json")


def test_what_is_no_file_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(storage.DamagedError, match=rf"{path} cannot be read \("):
            storage.read_json(path)
    assert storage.read_lines(tmp_path / "nothing") == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_editors_may_choose_the_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"ü": "科幻"}'.encode(encoding))
    assert storage.read_json(tmp_path / "a.json") == {"ü": "科幻"}


def test_lines_of_any_kind_are_skipped_but_objects(tmp_path: Path) -> None:
    others = [b"[1]", b"3", b"null", b'"text"', b"\xff\xfe", b"", b"[" * 100_000, b'{"cut": ']
    lines = itertools.chain(*((b'{"n": %d}' % n, other) for n, other in enumerate(others)))
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert [line["n"] for line in storage.read_lines(tmp_path / "a.jsonl")] == [*range(len(others))]
    storage.append_line(tmp_path / "a.jsonl", {"n": 8})  # after the one that was cut off
    assert [line["n"] for line in storage.read_lines(tmp_path / "a.jsonl")][-2:] == [7, 8]


def test_a_damaged_list_is_put_aside_and_a_new_one_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, content in enumerate((b"[1, 2", b'{"not": "a list"}')):
        (tmp_path / "a.json").write_bytes(content)
        storage.append_entry(tmp_path / "a.json", n)
        assert storage.read_json(tmp_path / "a.json", list) == [n]
        aside = tmp_path / ("a.damaged.json", "a.damaged-2.json")[n]
        assert aside.read_bytes() == content
        assert f"It is now {aside.name}." in capsys.readouterr().err


# Addresses


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("scheme", ["gs", "s3", "hdfs", "https"])
def test_an_address_is_refused_at_once_and_nothing_is_made(
    scheme: str, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Path has lost one slash by then; today's folder would be `gs:`."""
    monkeypatch.chdir(tmp_path)
    address = kind(f"{scheme}://bucket/runs")
    doors: list[Callable[[], object]] = [
        lambda: storage.make_folder(Path(address)),
        lambda: storage.from_home(address),
        lambda: storage.write_json(Path(address) / "x.json", {}),
        lambda: RunFolder(Path(address)),
        lambda: load("mnist_5k", data_dir=address),
        lambda: load("mnist_5k", data_dir=tmp_path, manual_dir=address),
        lambda: load_folder(address),
        lambda: train_file("nowhere.py", address),
        lambda: load_run(address),
    ]
    for door in doors:
        with pytest.raises(VaeJaxError, match=rf"{scheme}:/.* is an address .*: name a folder"):
            door()
    assert list(tmp_path.iterdir()) == []
    storage.check_local("C:/runs")
    storage.check_local("runs/a:b/c")
