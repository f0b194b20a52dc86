"""Starting runs, in this process and in others, with compiled programs shared between them."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest

from vae_jax.run import RunFolder

ROOT = Path(__file__).parent.parent
TINY = Path(__file__).with_name("tiny.py")
CLI = ("-c", "from vae_jax.cli import main; main()")
# The same, of whose figures one is enough: it runs the model.
BRIEF = (
    "-c",
    "from vae_jax import cli, standard_figures as drawn; "
    "drawn.standard_figures = lambda run: {'samples': lambda: drawn.samples(run)}; cli.main()",
)
# A run without figures: file, folder, arguments in JSON.
BARE = (
    "-c",
    "import sys, json; from vae_jax.train import train_file; "
    "train_file(*sys.argv[1:3], json.loads(sys.argv[3]))",
)

# Seconds: longer than anything takes, even on a busy machine.
DEADLINE = 300

_every_device, _pmap = jax.devices, jax.pmap
_cache = tempfile.TemporaryDirectory(prefix="vae_jax_compiled_")
_SETTINGS = {
    "jax_compilation_cache_dir": _cache.name,
    "jax_persistent_cache_min_compile_time_secs": 0.3,  # below, it costs as much as it saves
    "jax_traceback_in_locations_limit": 0,  # nobody reads them, and writing them takes time
}
for _name, _value in _SETTINGS.items():
    jax.config.update(_name, _value)


def script(name: str) -> Any:
    """A file of `scripts` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def on_devices(count: int) -> Iterator[None]:
    """This process as it would be with that many devices."""
    devices = _every_device()[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: devices)
        patch.setattr(jax, "local_devices", lambda: devices)
        patch.setattr(jax, "device_count", lambda: count)
        patch.setattr(jax, "local_device_count", lambda: count)
        patch.setattr(jax, "pmap", partial(_pmap, devices=devices))
        yield


@contextlib.contextmanager
def interrupted_after(step: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """A signal reaches this process when the training metrics of this step are first written."""
    append, ahead = RunFolder.append_metrics, [number]

    def append_and_raise(self: RunFolder, line: dict[str, Any]) -> None:
        append(self, line)
        if line["step"] == step and "loss" in line and ahead:
            signal.raise_signal(ahead.pop())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", append_and_raise)
        yield


def start(
    program: tuple[str, ...], *arguments: Any, devices: int = 1, cwd: Path = ROOT, **env: Any
) -> subprocess.Popen[str]:
    """A Python process with pipes, with this one's compiler options and that many devices."""
    settings = {name.upper(): str(value) for name, value in (_SETTINGS | env).items()}
    settings["XLA_FLAGS"] = re.sub(r"(?<=count=)\d+", str(devices), os.environ["XLA_FLAGS"])
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        env=os.environ | settings,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """A process's exit status and output, once it has ended; killed after `DEADLINE`."""
    try:
        out, err = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    """Waits until the condition holds; fails where the process ends before that."""
    latest = time.monotonic() + DEADLINE
    try:
        while not _holds(condition):
            assert process is None or process.poll() is None, process.communicate()
            assert time.monotonic() < latest, f"the condition did not hold within {DEADLINE} s"
            time.sleep(0.001)
    except BaseException:
        if process is not None:
            process.kill()
            process.communicate()
        raise


def _holds(condition: Callable[[], Any]) -> bool:
    """Whether a condition holds; a file that vanishes while it is read counts as not yet."""
    try:
        return bool(condition())
    except (FileNotFoundError, ProcessLookupError):
        return False


def has_ended(pid: str) -> bool:
    """Whether a process, anybody's child, is gone or only waits for its parent to notice."""
    try:
        return "(zombie)" in (Path("/proc") / pid / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def last_step(folder: Path) -> int:
    """The last step in metrics.jsonl, which may be growing; 0 where there is none."""
    lines = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
    whole = lines[: lines.rfind("\n") + 1].splitlines()
    return json.loads(whole[-1])["step"] if whole else 0


def summary(folder: Path) -> dict[str, Any]:
    """summary.json without its speed."""
    content = json.loads((folder / "summary.json").read_text())
    del content["images_per_second"]
    return content


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of a run's checkpoints; anything else in their folder is an error."""
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
