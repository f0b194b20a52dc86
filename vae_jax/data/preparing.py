"""Starts the process that prepares a data set, and shows how far it is."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from vae_jax.errors import VaeJaxError
from vae_jax.progress import Counter


def run(module: str, arguments: Sequence[str], what: str) -> None:
    """Runs `python -m MODULE ARGUMENTS...`, away from this process's memory and main module.

    The module prints `progress DONE ALL` on its stdout. What else it or its libraries print is not
    shown; where it exits with 1, its last line is the error.

    Args:
        module: to run.
        arguments: of it.
        what: is prepared, and where, for the messages.

    Raises:
        VaeJaxError: it failed.
    """
    settings = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUTF8": "1"}
    last = ""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        Counter(f"Preparing {what}") as counter,
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            match line.split():
                case ["progress", done, total]:
                    counter.update(int(done), int(total))
                case [_, *_]:
                    last = line.strip()
        code = child.wait()
        errors.seek(0)
        said = (errors.read().strip() or "no message").splitlines()[-1]
    if code == 1 and last:
        raise VaeJaxError(last)
    if code:
        raise VaeJaxError(
            f"Preparing {what} broke off with exit code {code} ({said}): run it again, and it goes "
            "on from there."
        )
