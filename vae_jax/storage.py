# pyright: strict
"""Files that matter: written whole or not at all, by one writer at a time, and checked when read.

A file or folder is written under a temporary name beside its target, flushed to the disk and
renamed, so that a reader finds the old one or the new one, whatever was killed, full or unplugged
meanwhile. A lock ends with the process that holds it. Functions that yield or take a path to fill
raise the disk's OSError; those that write themselves raise a VaeJaxError.
"""

import contextlib
import datetime
import errno
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from vae_jax.errors import VaeJaxError
from vae_jax.progress import say

if sys.platform != "win32":
    import fcntl

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MANIFEST = "manifest.json"
STAMP = ".verified.json"
_PARTIAL = re.compile(r"\.partial-[0-9a-f]{16}")
# At least two letters, since Windows has drives; a Path keeps only one of the slashes.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
# The errors of file systems that have no locks, or cannot flush a folder.
_NOT_OFFERED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF, errno.EACCES)


class DamagedError(VaeJaxError):
    """The content of a file differs from the content written to it."""


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn a failure to write to `path` into a sentence.

    Raises:
        VaeJaxError: `path` cannot be written: no permission, no space, not a folder.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        way_out = "free some space on its disk" if error.errno in DISK_FULL else "choose another"
        raise VaeJaxError(f"{path} cannot be written ({reason}): {way_out}.") from error


# Whole files and folders


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Replace the file at `path` once its content is complete and on the disk.

    Yields:
        A temporary path beside it, with its suffix, to write to. An exception deletes it, and the
        old file stays.
    """
    make_folder(path.parent)
    partial = _partial_beside(path)
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    finally:
        delete_partial(partial)


@contextlib.contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """Make a folder at `path` that appears once its content is complete and on the disk.

    Yields:
        A temporary folder beside it to fill, which an exception deletes.
    """
    partial = _partial_beside(path)
    try:
        make_folder(partial)
        yield partial
        publish(partial, path)
    finally:
        delete_partial(partial)


def publish(folder: Path, target: Path) -> None:
    """Flush a folder to the disk and rename it to `target`; a folder already there stays."""
    for path in [*folder.rglob("*"), folder]:
        _flush(path)
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    _flush(target.parent)


def set_aside(path: Path, target: Path) -> None:
    """Rename a file or folder to `target`, or a free name like it, and flush the renaming."""
    make_folder(target.parent)
    path.rename(free_name(target))
    for folder in {path.parent, target.parent}:
        _flush(folder)


def make_folder(path: Path) -> None:
    """Make the folder at `path` and its parents, and flush them to the disk."""
    check_local(path)
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _flush(each.parent)


def delete_partial(partial: Path) -> None:
    """Delete a temporary file or folder, and everything whose name begins with its name."""
    for path in list(partial.parent.glob(f"{partial.name}*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def delete_folder(path: Path) -> None:
    """Delete the folder at `path`, which a reader finds whole or not at all."""
    delete_partial(path.rename(_partial_beside(path)))


def sweep(folder: Path, age: float = 3600.0) -> None:
    """Delete the temporary files and folders of writers that were killed.

    Args:
        folder: the folder that they wrote to.
        age: seconds for which they have not been touched; 0 if no one else can be writing.
    """
    for path in list(folder.glob(".partial-*")):
        with contextlib.suppress(OSError):
            if _PARTIAL.match(path.name) and time.time() - path.lstat().st_mtime >= age:
                delete_partial(path)


def from_home(path: str | Path) -> Path:
    """The absolute path of `path`; one that begins with ~ is in this account's home.

    Raises:
        VaeJaxError: the account has no home, or the path is an address.
    """
    check_local(path)
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise VaeJaxError(
            f"{path} is in a home folder, and this account has none: set HOME, or name another "
            "folder."
        ) from None


def check_local(path: str | Path) -> None:
    """Refuse an address such as gs://bucket/runs, from which Python would make a folder `gs:`.

    Raises:
        VaeJaxError: `path` is an address, or a name that no file can have.
    """
    try:
        os.lstat(path)
    except ValueError as error:
        reason = "it has a zero byte" if "\0" in str(path) else error
        raise VaeJaxError(
            f"{str(path)!r} is not a valid file name ({reason}): choose another."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise VaeJaxError(
                f"{path} is not a valid file name ({error.strerror}): choose another."
            ) from error
    if found := _ADDRESS.match(str(path)):
        raise VaeJaxError(
            f"{path} is an address ({found[1]}:), and files are mapped, locked and renamed, which "
            "needs a file system: name a folder, such as one where that storage is mounted."
        )


def check_kinds(folders: Iterable[Path], files: Iterable[Path]) -> None:
    """Refuse obstacles to a run's `folders` and `files`, before the run takes any time.

    Raises:
        VaeJaxError: the path of a file is that of a folder, or the path of a folder is that of a
            file or of a link to nothing.
    """
    for path in folders:
        if os.path.lexists(path) and not path.is_dir():
            kind = "a file" if path.exists() else "a link to a folder that is not there"
            raise VaeJaxError(
                f"{path} is {kind}, and a run has a folder of that name: bring that folder back, "
                "such as by mounting its disk, or move what is there away."
            )
    for path in files:
        if path.is_dir():
            raise VaeJaxError(
                f"{path} is a folder, and a run has a file of that name: move it away."
            )


def free_name(path: Path) -> Path:
    """The path itself or, if it exists, the first free one of name-2, name-3, ..."""
    numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not os.path.lexists(each))


def shared_partial(path: Path) -> Path:
    """A temporary path beside `path`, the same in all processes that write to it together."""
    token = hashlib.sha256(path.name.encode()).hexdigest()[:16]
    return path.with_name(f".partial-{token}{path.suffix}")


def _partial_beside(path: Path) -> Path:
    return path.with_name(f".partial-{secrets.token_hex(8)}{path.suffix}")


def _flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NOT_OFFERED:
            raise


# JSON


def write_json(path: Path, content: object) -> None:
    """Write `content` to a JSON file at `path`, whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    with writing(path), whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path, kind: type = dict) -> Any:
    """The content of the JSON file at `path`, of the type `kind`.

    Raises:
        DamagedError: the file cannot be read, is not JSON, or holds another type.
    """
    try:
        content: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}).") from error
    if not isinstance(content, kind):
        found, wanted = type(content).__name__, kind.__name__
        raise DamagedError(f"{path} is damaged (it holds a {found} where a {wanted} belongs).")
    return content


def append_entry(path: Path, entry: object) -> None:
    """Add `entry` to a JSON file that holds a list; the entries of all processes are kept.

    A damaged file at `path` is renamed, and a new list begun.
    """
    with lock(path.with_name(f".{path.name}.lock")):
        entries: list[Any] = []
        if path.exists():
            try:
                entries = read_json(path, list)
            except DamagedError as error:
                aside = free_name(path.with_name(f"{path.stem}.damaged{path.suffix}"))
                with writing(path):
                    path.rename(aside)
                say(f"{error} It is now {aside.name}.")
        write_json(path, [*entries, entry])


def append_line(path: Path, content: object) -> None:
    """Add `content` to a JSON Lines file, whole or not at all; return when it is on the disk."""
    line = json.dumps(content).encode() + b"\n"
    with writing(path), path.open("a+b", buffering=0) as file:
        _lock_file(file.fileno(), wait=True)
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):  # keep a truncated line from merging with the next
            line = b"\n" + line
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
        if end == 0:
            _flush(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; other lines, such as those cut by a crash, are skipped."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                content: Any = json.loads(line)
                if isinstance(content, dict):
                    found.append(cast(dict[str, Any], content))
    return found


# Locks


@contextlib.contextmanager
def lock(path: Path, refusal: str | None = None) -> Generator[None]:
    """Hold a lock, which the operating system releases when this process ends, however it ends.

    In a read-only folder there is nothing to guard; if the file system has no locks, a sentence on
    standard error says so.

    Args:
        path: the lock file, which names its holder; it stays, empty, when there is none.
        refusal: the error if another process holds it, in which "{holder}" stands for that process;
            None waits for it.

    Raises:
        VaeJaxError: another process holds it, or the file cannot be written.
    """
    try:
        with writing(path):
            file = path.open("a+b", buffering=0)
    except VaeJaxError as error:
        if getattr(error.__cause__, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        yield
        return
    with file:
        try:
            missing = _lock_file(file.fileno(), wait=refusal is None)
        except BlockingIOError:
            raise VaeJaxError((refusal or "").replace("{holder}", _holder(path))) from None
        if missing is not None:
            say(f"{path} cannot be locked ({missing}): let one process at a time write there.")
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with contextlib.suppress(OSError):  # a full disk
            file.truncate(0)
            file.write(json.dumps(note).encode() + b"\n")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def _lock_file(file: int, wait: bool) -> str | None:
    """Lock an open file until it is closed.

    Returns:
        The reason why the file cannot be locked here, or None.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    if sys.platform == "win32":
        return "Windows has no flock"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        return f"this file system has none: {error.strerror}"


def _holder(path: Path) -> str:
    """The holder of a lock, read again for as long as it may be about to write its name."""
    for _ in range(20):
        with contextlib.suppress(DamagedError):
            note = read_json(path)
            return f"process {note.get('pid')} on {note.get('host')}, since {note.get('since')}"
        time.sleep(0.05)
    return "another process"


# Manifests


class Entry(TypedDict):
    """A file's entry in a manifest."""

    bytes: int
    sha256: str


def is_litter(path: Path) -> bool:
    """Whether an operating system, a file manager or a killed writer left this path behind."""
    name = path.name.lower()
    foreign = name in (".ds_store", "thumbs.db", "desktop.ini") or name.startswith(("._", ".nfs"))
    return foreign or _PARTIAL.match(name) is not None


def manifest_of(folder: Path) -> dict[str, Entry]:
    """The size and SHA-256 of a folder's files, by relative path, without manifest and litter."""
    return {name: _entry(folder / name) for name in sorted(_names(folder))}


def damage(folder: Path, manifest: Mapping[str, Any], hashed: float = math.inf) -> str | None:
    """The first fault in the files of a manifest, in a few words; None if they are intact.

    Files that it does not name do not matter.

    Args:
        folder: the folder of the files.
        manifest: the result of `manifest_of`.
        hashed: the bytes of the largest file that is read; larger ones need only have their size.
    """
    for name, entry in manifest.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != entry["bytes"] or (size <= hashed and _entry(path) != entry):
                return f"{name} is not the file that was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        except (TypeError, KeyError):
            return f"{MANIFEST} is unreadable"
    return None


def damage_since(folder: Path, manifest: Mapping[str, Any], wholly: bool = False) -> str | None:
    """Like `damage`, but hashes the files only if one has changed since the last full check.

    A stamp beside them records for which manifest all were hashed, and the size and time of each
    then. If several processes come at once, one hashes, and the others wait for its stamp.

    Args:
        folder: the folder of the files.
        manifest: the result of `manifest_of`.
        wholly: whether all are hashed, regardless of the stamp.
    """
    if not wholly and _is_stamped(folder, manifest):
        return None
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(VaeJaxError):  # nothing can be written, as on a full disk
            stack.enter_context(lock(folder / f"{STAMP}.lock"))
        if not wholly and _is_stamped(folder, manifest):
            return None
        stamp = _stamp_of(folder, manifest)  # taken before reading, so that later changes show
        found = damage(folder, manifest)
        if found is None and stamp is not None:
            with contextlib.suppress(VaeJaxError):
                write_json(folder / STAMP, stamp)
        return found


def write_stamp(folder: Path, manifest: Mapping[str, Entry]) -> None:
    """Record that `manifest_of` has just hashed the files of a folder, for `damage_since`."""
    with contextlib.suppress(VaeJaxError):  # then they are hashed again
        write_json(folder / STAMP, _stamp_of(folder, manifest))


def _stamp_of(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """A hash of the manifest, and the size and time of its files; None if one is missing."""
    try:
        states = [(folder / name).stat() for name in manifest]
    except OSError:
        return None
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    files = {n: [s.st_size, s.st_mtime_ns] for n, s in zip(manifest, states, strict=True)}
    return {"manifest": digest, "files": files}


def _is_stamped(folder: Path, manifest: Mapping[str, Any]) -> bool:
    with contextlib.suppress(DamagedError):
        return read_json(folder / STAMP) == _stamp_of(folder, manifest)
    return False


def strangers(folder: Path, manifest: Mapping[str, Any]) -> set[str]:
    """The files in a folder that its manifest does not name, without litter."""
    return _names(folder) - manifest.keys()


def _names(folder: Path) -> set[str]:
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    names = {path.relative_to(folder).as_posix() for path in files if not is_litter(path)}
    return names - {MANIFEST, STAMP, f"{STAMP}.lock"}


def _entry(path: Path) -> Entry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
