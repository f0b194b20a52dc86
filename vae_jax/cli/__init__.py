"""The command `vae-jax`.

The flags of a command are the arguments of a function: for `train FILE`, `table FILE` and `figures
FILE` one in the file, for the commands that make pictures one in `vae_jax.generate`, for all others
one in `vae_jax.cli.commands`. Modules that need JAX are imported inside functions, so that `vae-jax
--help` answers at once.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from vae_jax.cli import commands, paper
from vae_jax.cli.flags import said_in_flags
from vae_jax.errors import Interrupted, VaeJaxError
from vae_jax.progress import begin_command, open_streams, say

DESCRIPTION = (
    "Variational autoencoders for images: train, evaluate, sample; resume exactly. Every command "
    "takes --no-compilation-cache, which neither uses nor keeps compiled programs on the disk."
)


def use_compilation_cache(wanted: bool) -> None:
    """Let JAX keep compiled programs if `wanted`, before it is imported; its variables prevail."""
    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    with contextlib.suppress(RuntimeError):  # without a home folder nothing is kept
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "vae_jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command in `arguments` (None: those of the process).

    It exits with 2 after bad input, and with 128 + the signal's number after a signal.
    """
    open_streams()
    if arguments is None:
        begin_command()
    given = sys.argv[1:] if arguments is None else arguments
    arguments = [argument for argument in given if argument != "--no-compilation-cache"]
    use_compilation_cache(arguments == list(given))
    try:
        match arguments:
            case ["train", file, *flags] if not file.startswith("-"):
                commands.train_file_with_flags(file, flags)
            case ["figures", file, *flags] if commands.is_of_a_paper(file):
                paper.figures_of_file_with_flags(file, flags)
            case ["table", file, *flags] if commands.is_of_a_paper(file):
                paper.table_of_file_with_flags(file, flags)
            case ["experiments"]:
                commands.experiments_list()
            case ["--version"]:
                print(importlib.metadata.version("vae_jax"))
            case [command, *flags] if command in commands.PICTURES:
                commands.pictures_with_flags(command, flags)
            case [command, *_] if inspect.isfunction(getattr(commands, command, None)):
                with said_in_flags(inspect.signature(getattr(commands, command)).parameters):
                    commands.app.cli(prog="vae-jax", args=arguments, description=DESCRIPTION)
            case _:
                commands.app.cli(prog="vae-jax", args=arguments, description=DESCRIPTION)
    except VaeJaxError as error:
        say(f"vae-jax: {error}")
        sys.exit(2)
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        say(f"vae-jax: A file cannot be read or written ({reason}).")
        sys.exit(2)
    except Interrupted as error:
        say(error)
        if error.computing:
            sys.stdout.flush()
            os._exit(128 + error.signal_number)
        sys.exit(128 + error.signal_number)
    except KeyboardInterrupt:  # outside training
        sys.exit(128 + signal.SIGINT)
