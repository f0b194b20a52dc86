"""Checkpoints: what is kept, what comes back, and what happens to damaged ones."""

import contextlib
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from running import (
    checkpoint_steps,
    finish,
    interrupted_after,
    on_devices,
    script,
    start,
    summary,
)

from vae_jax import VaeJaxError, checkpoint, load_run, parallel, train
from vae_jax.checkpoint import Checkpoints, fingerprint
from vae_jax.errors import Interrupted
from vae_jax.run import Run
from vae_jax.step import TrainState


def state_at(step: int) -> dict[str, Any]:
    """Stands for a training state; every leaf tells its step."""
    generator = np.random.default_rng(step)
    return {
        "step": np.asarray(step, np.int32),
        "params": {"kernel": generator.normal(size=(40, 30)).astype(np.float32)},
        "opt_state": ({"count": np.asarray([step], np.uint32)}, ()),
        "ema_params": None,
    }


def write(folder: Path, validations: list[float | None], keep: int = 2) -> None:
    """Checkpoints of steps 10, 20, ... with these validations."""
    with Checkpoints(folder, keep) as checkpoints:
        for i, validation in enumerate(validations, start=1):
            checkpoints.save(10 * i, state_at(10 * i), validation)
        checkpoints.wait()


def steps(folder: Path) -> list[int]:
    return checkpoint_steps(folder.parent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def test_a_state_comes_back_to_the_bit(folder: Path) -> None:
    write(folder, [None])
    with Checkpoints(folder) as checkpoints:
        restored, warnings = checkpoints.restore(state_at(0)) or pytest.fail("nothing restored")
    assert fingerprint(restored) == fingerprint(state_at(10))
    assert restored["opt_state"][1] == ()
    assert restored["ema_params"] is None
    assert warnings == []


def test_an_empty_folder_has_no_checkpoint(folder: Path) -> None:
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(state_at(0)) is None
        assert checkpoints.restore(state_at(0), "best") is None


def test_a_fingerprint_is_of_names_types_shapes_and_bytes() -> None:
    a = np.arange(4, dtype=np.float32)
    trees = [{"a": a}, {"b": a}, {"a": a.reshape(2, 2)}, {"a": a.view(np.int32)}, {"a": -a}]
    assert len({fingerprint(tree) for tree in trees}) == len(trees)
    assert fingerprint({"a": a, "b": -a}) == fingerprint({"b": -a, "a": a.copy()})


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"params": {"kernel": np.zeros((40, 31), np.float32)}}, "here it is float32[40, 31]"),
        ({"params": {"kernel": np.zeros((40, 30), np.float16)}}, "here it is float16[40, 30]"),
        ({"params": {}}, "here it is None"),
        ({"ema_params": np.zeros(3, np.float32)}, "its ['ema_params'] is None"),
    ],
)
def test_the_state_of_another_model_is_refused(
    other: dict[str, Any], difference: str, folder: Path
) -> None:
    write(folder, [None])
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(VaeJaxError, match="another model or optimizer.*" + re.escape(difference)),
    ):
        checkpoints.restore(state_at(0) | other)


def test_the_latest_and_the_best_are_kept(folder: Path) -> None:
    write(folder, [3.0, 1.0, 2.0, 5.0, 4.0])
    assert steps(folder) == [20, 40, 50]


@pytest.mark.parametrize(
    ("validations", "best"),
    [
        ([3.0, 1.0, 2.0, 5.0], 20),
        ([3.0, 2.0, 2.0], 30),  # the later one of equals
        ([3.0, math.nan, 5.0, math.inf], 10),
        ([4.0, None, 5.0, None], 10),  # not measured, as after a signal
    ],
)
def test_the_best_is_that_of_the_lowest_validation(
    validations: list[float | None], best: int, folder: Path
) -> None:
    write(folder, validations)
    with Checkpoints(folder) as checkpoints:  # as another process finds them
        restored, _ = checkpoints.restore(state_at(0), "best") or pytest.fail("nothing restored")
    # Parameters, optimizer and step all are that step's.
    assert fingerprint(restored) == fingerprint(state_at(best))


def test_the_best_survives_going_on_in_another_process(folder: Path) -> None:
    write(folder, [1.0, 2.0, 3.0])
    with Checkpoints(folder, 2) as checkpoints:
        for step in (40, 50):
            checkpoints.save(step, state_at(step), 4.0)
    assert steps(folder) == [10, 40, 50]


def test_going_on_deletes_what_a_killed_process_was_writing(folder: Path) -> None:
    write(folder, [1.0])
    shutil.copytree(folder / "10", folder / f".partial-{7:016x}.orbax-checkpoint-tmp")
    with Checkpoints(folder) as checkpoints:
        checkpoints.clean_up(10)
    assert steps(folder) == [10]


def test_nothing_of_the_users_is_deleted(folder: Path) -> None:
    """Beside the checkpoints or in one, in a run that goes on and when it is cleaned up."""
    write(folder, [4.0, 3.0])
    shutil.copytree(folder / "20", folder / "20.bak")
    (folder / "notes.txt").write_text("mine")
    (folder / "007").mkdir()
    (folder / "70").write_text("mine")
    (folder / "10" / "why.txt").write_text("mine")
    with Checkpoints(folder, 1) as checkpoints:
        checkpoints.clean_up(20)
        checkpoints.save(30, state_at(30), 1.0)
        checkpoints.wait()
        assert checkpoints.steps() == [30]
        assert (checkpoints.restore(state_at(0)) or pytest.fail("nothing"))[1] == []
    assert {path.name for path in folder.iterdir()} == {
        *("30", "20.bak", "notes.txt", "007", "70", "10.kept"),
    }
    assert (folder / "10.kept" / "why.txt").read_text() == "mine"


def test_what_file_managers_leave_in_a_checkpoint_is_no_damage(folder: Path) -> None:
    write(folder, [2.0])
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._d"):
        (folder / "10" / name).write_text("left")
    with Checkpoints(folder, 1) as checkpoints:
        assert (checkpoints.restore(state_at(0)) or pytest.fail("nothing"))[1] == []
        checkpoints.save(20, state_at(20), 1.0)
    assert steps(folder) == [20]  # and it does not keep an old one either


@pytest.mark.parametrize(
    "manifest",
    [
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"files": []}',
        b'{"validation": "1", "arrays": {}, "files": {}}',
        b'{"validation": 1, "arrays": {}, "files": {"a": 3}}',
    ],
)
def test_a_manifest_of_any_content_is_passed_over(manifest: bytes, folder: Path) -> None:
    write(folder, [2.0, 1.0])
    (folder / "20" / "manifest.json").write_bytes(manifest)
    for which in ("latest", "best"):
        with Checkpoints(folder) as checkpoints:
            found, warnings = checkpoints.restore(state_at(0), which) or pytest.fail("nothing")
        assert fingerprint(found) == fingerprint(state_at(10))
        assert "step 20" in warnings[0]


def test_damaged_checkpoints_are_kept_aside_however_often(folder: Path) -> None:
    aside = folder.with_name("damaged_checkpoints")
    for _ in range(2):
        write(folder, [2.0, 1.0])
        flip(folder / "20" / "manifest.json")
        with Checkpoints(folder) as checkpoints:
            checkpoints.clean_up(10)
        assert steps(folder) == [10]
    flip(folder / "10" / "manifest.json")
    write(folder, [1.0])  # over a damaged one
    assert steps(folder) == [10]
    assert {path.name for path in aside.iterdir()} == {"20", "20-2", "10"}


def test_one_step_is_read_or_is_not_there(folder: Path) -> None:
    with Checkpoints(folder, 2) as checkpoints:
        assert checkpoints.read(10, state_at(0)) is None
        assert not folder.exists()  # reading makes nothing
    write(folder, [2.0, 1.0])
    with Checkpoints(folder) as checkpoints:
        assert fingerprint(checkpoints.read(10, state_at(0))) == fingerprint(state_at(10))
        flip_data(folder / "10")
        assert checkpoints.read(10, state_at(0)) is None


def test_a_whole_checkpoint_is_not_written_again(folder: Path) -> None:
    write(folder, [2.0])
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(10, state_at(99), 1.0)
        checkpoints.wait()
        assert fingerprint(checkpoints.read(10, state_at(0))) == fingerprint(state_at(10))
    assert steps(folder) == [10]


# Orbax closes its loop at the first file that has gone, and TensorStore calls for the others there.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_reading_beside_a_process_that_replaces_checkpoints(folder: Path) -> None:
    """Whatever is being replaced, a whole state comes back, without a word of damage."""
    write(folder, [1.0], keep=1)

    def go_on() -> None:
        with Checkpoints(folder, 1) as checkpoints:
            for step in range(20, 420, 10):
                checkpoints.save(step, state_at(step), 1.0 / step)
            checkpoints.wait()

    writer, found = Thread(target=go_on), []
    writer.start()
    with Checkpoints(folder) as checkpoints:
        while writer.is_alive():
            state, warnings = checkpoints.restore(state_at(0)) or pytest.fail("nothing")
            assert warnings == []
            assert fingerprint(state) == fingerprint(state_at(int(state["step"])))
            found.append(int(state["step"]))
    writer.join()
    assert len(set(found)) > 3
    assert steps(folder) == [410]


def test_a_list_made_while_one_checkpoint_took_over_from_another_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one had gone when the list came to it, and the new one had not been there."""
    write(folder, [1.0])
    with Checkpoints(folder) as checkpoints:
        lists, steps_of = [[], []], checkpoints.steps
        monkeypatch.setattr(checkpoints, "steps", lambda *w: lists.pop() if lists else steps_of(*w))
        state, warnings = checkpoints.restore(state_at(0)) or pytest.fail("nothing")
    assert (int(state["step"]), warnings, lists) == (10, [], [])


def test_a_checkpoint_that_goes_while_it_is_read_is_looked_for_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, [1.0])
    with Checkpoints(folder) as checkpoints:
        read = checkpoints._orbax.restore

        def replaced_meanwhile(path: Path, **arguments: Any) -> Any:
            monkeypatch.undo()
            with Checkpoints(folder, 1) as other:
                other.save(20, state_at(20), 0.5)
                other.wait()
            return read(path, **arguments)

        monkeypatch.setattr(checkpoints._orbax, "restore", replaced_meanwhile)
        state, warnings = checkpoints.restore(state_at(0)) or pytest.fail("nothing")
        assert int(state["step"]) == 20
        assert warnings == []
        monkeypatch.setattr(checkpoints, "steps", lambda *_: [30])  # gone whenever it is read
        with pytest.raises(VaeJaxError, match="replaced faster than they can be read"):
            checkpoints.restore(state_at(0))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for i in range(0, len(content), 16):
        content[i] ^= 0x55
    path.write_bytes(content)


@pytest.mark.parametrize("which", ["latest", "best"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_no_damage_to_any_file_of_the_newest_goes_unnoticed(
    damage: Callable[[Path], Any], which: Any, folder: Path
) -> None:
    write(folder, [2.0, 1.0])
    shutil.copytree(folder, kept := folder.with_name("kept"))
    for file in [path.relative_to(folder) for path in (folder / "20").rglob("*") if path.is_file()]:
        damage(folder / file)
        with Checkpoints(folder) as checkpoints:
            found, warnings = checkpoints.restore(state_at(0), which) or pytest.fail(str(file))
        assert fingerprint(found) == fingerprint(state_at(10)), file
        (warning,) = warnings
        assert f"The checkpoint of step 20 in {folder} is damaged" in warning
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)


def large_state(step: int) -> dict[str, Any]:
    """One of 8 MiB, whose files are too large to be read twice."""
    generator = np.random.default_rng(step)
    shape = (2, 2**9, 2**8)
    return {f"{i}": generator.standard_normal(shape, np.float32) for i in range(8)}


def flip_one(path: Path) -> None:
    """One bit in the middle, which is an array's."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("digest", ["of arrays", "of sums", None])
@pytest.mark.parametrize("damage", [truncate, flip, flip_one])
def test_damage_to_a_large_file_is_found_when_it_has_been_read(
    damage: Callable[[Path], Any], digest: str | None, folder: Path
) -> None:
    """By the arrays' digest, of sums for shares; older checkpoints have hashes of files alone."""
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2):
            if digest == "of sums":
                shares = jax.tree.map(jnp.asarray, large_state(step))
                checkpoints.save_shares(step, shares, None, finite=True)
            else:
                checkpoints.save(step, large_state(step), None)
        checkpoints.wait()
        path = folder / "2" / "manifest.json"
        manifest = json.loads(path.read_text())
        assert manifest["digest"].startswith("sums ") == (digest == "of sums")
        if digest is None:
            path.write_text(json.dumps(manifest | {"digest": None}))
        for like in (large_state(0), None):
            found, warnings = checkpoints.restore(like) or pytest.fail("nothing restored")
            assert fingerprint(found) == fingerprint(large_state(2))
            assert warnings == []
        damage(max((folder / "2").rglob("*"), key=lambda path: path.stat().st_size))
        for like in (large_state(0), None):
            found, (warning,) = checkpoints.restore(like) or pytest.fail("nothing restored")
            assert fingerprint(found) == fingerprint(large_state(1))
            assert f"The checkpoint of step 2 in {folder} is damaged" in warning


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float32", "uint32", "complex64"])
@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (3, 2, 5)])
def test_sums_of_words_are_the_same_everywhere(
    dtype: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On devices, compiled or not, and on the host in pieces; the first by whole numbers."""
    monkeypatch.setattr(checkpoint, "_WORDS_AT_ONCE", 4)
    random = np.random.default_rng(0)
    array = np.asarray(random.integers(0, 900, shape) / 7).astype(jnp.dtype(dtype))
    data, size = array.tobytes(), min(array.dtype.itemsize, 4)
    words = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
    expected = checkpoint.sums_on_host(array)
    assert expected[0] == sum(words) % 2**32
    for sums in (checkpoint.sums, jax.jit(checkpoint.sums)):
        np.testing.assert_array_equal(sums(jnp.asarray(array)), expected)


def test_sums_change_with_any_word_and_with_positions() -> None:
    """Signs, shares and single words, at distances that are powers of two."""
    array = np.random.default_rng(0).normal(size=2**11).astype(np.float32)
    array[:2], array[512:514] = (1, 1), (0, 0)
    begun = checkpoint.sums_on_host(array)
    for distance in (1, 2, 512, 2**10):
        one, other = array.copy(), array.copy()
        one[0], one[distance] = array[distance], array[0]
        other[[0, distance]] *= -1
        halves = np.roll(array.reshape(-1, distance), 1, axis=0)
        for changed in (one, other, halves):
            if not np.array_equal(changed.reshape(-1), array):
                assert checkpoint.sums_on_host(changed).tolist() != begun.tolist()
    array[5] += 1
    assert checkpoint.sums_on_host(array)[0] != begun[0]


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def flip_data(folder: Path) -> None:
    flip(max(folder.rglob("*/d/*"), key=lambda path: path.stat().st_size))


@pytest.fixture(autouse=True)
def one_device() -> Iterator[None]:
    with on_devices(1):
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run never interrupted."""
    with on_devices(1):
        return train(tiny.experiment(), tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.others_slow
@pytest.mark.parametrize("damage", [empty, flip_data])
def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(
    damage: Callable[[Path], Any],
    straight: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted), interrupted_after(15):
        train(tiny.experiment(), run)
    assert checkpoint_steps(run) == [10, 20]
    damage(run / "checkpoints" / "20")
    train(tiny.experiment(), run)
    said = capsys.readouterr().err
    assert f"The checkpoint of step 20 in {run / 'checkpoints'} is damaged" in said
    assert f"Going on from step 10 of {run}." in said
    assert summary(run) == summary(straight.folder.path)
    assert checkpoint_steps(run) == checkpoint_steps(straight.folder.path)


def test_a_finished_run_with_a_damaged_end_is_finished_again(
    straight: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight.folder.path, run)
    flip_data(run / "checkpoints" / "40")
    train(tiny.experiment(), run)
    assert "Going on from step 30" in capsys.readouterr().err
    assert fingerprint(load_run(run, experiment=tiny.experiment()).state) == fingerprint(
        straight.state
    )


def test_where_every_checkpoint_is_damaged_one_sentence_says_so(
    straight: Run, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight.folder.path, run)
    for step in (30, 40):
        flip_data(run / "checkpoints" / str(step))
    for function in (train, load_run_of_tiny):
        with pytest.raises(
            VaeJaxError, match=r"Every latest checkpoint in .* is damaged: put a good copy back"
        ) as raised:
            function(tiny.experiment(), run)
        assert "delete" not in str(raised.value)
    assert checkpoint_steps(run) == [30, 40]  # nothing is thrown away


def load_run_of_tiny(experiment: Any, folder: Path) -> Run:
    return load_run(folder, experiment=experiment)


def test_a_checkpoint_that_cannot_be_written_is_a_sentence(folder: Path) -> None:
    with Checkpoints(folder) as checkpoints:
        folder.write_text("not a folder")
        checkpoints.save(10, state_at(10), None)
        with pytest.raises(VaeJaxError, match=r"could not be written .* free some space"):
            checkpoints.wait()


def test_what_still_writes_after_a_failure_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax's other threads do, for a while, into folders that are deleted meanwhile."""
    threads = []

    def write_on(temporary: Path) -> None:
        for i in range(40):
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # deleted meanwhile
                temporary.mkdir(exist_ok=True)
                (temporary / str(i)).touch()
            time.sleep(0.005)

    def fail(partial: Path, **_: Any) -> None:
        temporary = partial.with_suffix(".tmp")
        temporary.mkdir()
        threads.append(Thread(target=write_on, args=(temporary,)))
        threads[0].start()
        raise OSError("No space left on device")

    with Checkpoints(folder, 2) as checkpoints:
        monkeypatch.setattr(checkpoints._orbax, "save", fail)
        checkpoints.save(10, state_at(10), None)
        with pytest.raises(VaeJaxError, match="No space left on device"):
            checkpoints.wait()
    threads[0].join()
    assert list(folder.iterdir()) == []


# What moves, and what it takes


@contextlib.contextmanager
def moved() -> Iterator[tuple[list[int], list[int]]]:
    """The bytes of states copied to the host, and of floats put on devices, each in its list."""
    down, up, to_host, put = [], [], parallel.to_host, parallel.put

    def copied(tree: Any) -> Any:
        if isinstance(tree, TrainState):
            down.append(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        return to_host(tree)

    def placed(leaf: Any) -> Any:
        if np.asarray(leaf).dtype == np.float32:
            up.append(np.asarray(leaf).nbytes)
        return put(leaf)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "to_host", copied)
        patch.setattr(parallel, "put", placed)
        yield down, up


def test_a_checkpoint_moves_each_byte_of_a_state_once(tmp_path: Path) -> None:
    """From one of eight devices; a validation moves none, and going on puts a state on each."""
    experiment = tiny.experiment(num_steps=20)
    with on_devices(8):
        with moved() as (down, up), pytest.raises(Interrupted), interrupted_after(5):
            train(experiment, tmp_path / "run")
        assert checkpoint_steps(tmp_path / "run") == [10]
        with moved() as (down_again, up_again):
            state = train(experiment, tmp_path / "run").state
    leaves = jax.tree.leaves(state)
    assert down == down_again == [sum(leaf.nbytes for leaf in leaves)]
    floats = 8 * sum(leaf.nbytes for leaf in leaves if leaf.dtype == np.float32)
    assert sum(up) == sum(up_again) == floats


def test_a_process_that_does_not_write_copies_no_state_but_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "is_main_process", lambda: False)
    with moved() as (down, _):
        train(tiny.experiment(num_steps=20), tmp_path / "run")
    assert len(down) == 1
    assert not (tmp_path / "run").exists()


def test_a_save_returns_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints(folder) as checkpoints:
        save, saved = checkpoints._orbax.save, Event()

        def when_allowed(*args: Any, **kwargs: Any) -> None:
            assert saved.wait(60)
            save(*args, **kwargs)

        monkeypatch.setattr(checkpoints._orbax, "save", when_allowed)
        checkpoints.save(10, state_at(10), None)
        written = [path for path in folder.rglob("*") if path.is_file()]
        saved.set()
        checkpoints.wait()
    assert written == []
    assert steps(folder) == [10]


def bytes_read() -> int:
    """Those that this process has read from files, by the kernel's count."""
    line = Path("/proc/self/io").read_text().splitlines()[0]
    return int(line.removeprefix("rchar: "))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel does not count")
def test_a_checkpoint_is_read_once(folder: Path) -> None:
    """What is hashed is what is restored: each byte comes from the disk, or its cache, once."""
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, large_state(1), None)
        checkpoints.wait()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        before = bytes_read()
        assert checkpoints.restore(large_state(0)) is not None
        assert 8 * 2**20 <= bytes_read() - before < 1.05 * size


MEMORY = """
import resource, sys
from pathlib import Path
import jax
import numpy as np
from vae_jax.checkpoint import Checkpoints

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

generator = np.random.default_rng(0)
state = [generator.standard_normal((1, 2**10, 1, 2**10), np.float32) for _ in range(24)]
like = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in state]
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.save(1, {"first": state[0]}, None)  # whose threads have their memory
    checkpoints.wait()
    before = peak()
    checkpoints.save(2, state, None)
    checkpoints.wait()
    saved = peak()
    del state
    checkpoints.restore(like)
print((saved - before) / 24 / 2**22, (peak() - before) / 24 / 2**22)
"""


def test_a_checkpoint_is_written_and_read_within_half_a_state_more(folder: Path) -> None:
    """The peak of a process that holds a state of 96 MiB, then reads it in its place."""
    done = finish(start(("-c", MEMORY), folder))
    assert done.returncode == 0, done
    saving, restoring = map(float, done.stdout.split())
    assert saving < 0.5
    assert restoring < 0.5


@pytest.mark.slow
def test_a_run_of_many_parameters_needs_one_more_state_for_its_checkpoints() -> None:
    """The kernel's peak, of a run and of one that goes on (`scripts/checkpoint_memory.py`)."""
    done = finish(start((script("checkpoint_memory").__file__,), "--millions", 25))
    assert done.returncode == 0, done
    for line in done.stdout.splitlines():
        found = json.loads(line.partition(":")[2].replace("'", '"'))
        assert found["parameters"] > 10e6
        assert found["checkpoint_states"] < 1.5
