"""The programs of a grid in separate processes: here, or as a job array under Slurm.

Each is the same command for some of the cells, so it resumes unfinished cells and leaves finished
ones. It is started by an executor, Python's or submitit's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from vae_jax.errors import VaeJaxError
from vae_jax.progress import say

if TYPE_CHECKING:
    import submitit

    from vae_jax.cli.flags import TrainOptions

POLL = 0.2  # seconds


class Program:
    """A command that saves its state when it is told to stop, and resumes when it is given again.

    Attributes:
        process: the running process, None before the call.
    """

    process: subprocess.Popen[bytes] | None = None

    def __call__(
        self, command: Sequence[str], log: Path | None = None, gpu: str | None = None
    ) -> None:
        """Run the command.

        Args:
            command: its words.
            log: a file for its output; None shares the output of this process.
            gpu: the only GPU that it sees; None for all that this process sees.

        Raises:
            VaeJaxError: the command ended with an error.
        """
        own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        with contextlib.ExitStack() as stack:
            out = None if log is None else stack.enter_context(log.open("ab"))
            self.process = subprocess.Popen(
                command, env=os.environ | own, stdout=out, stderr=None if out is None else out
            )
            self.wait()
        if self.process.returncode:
            raise VaeJaxError(
                f"A program of the grid ended with {self.process.returncode}"
                f"{'' if log is None else f'; {log} says why'}: give the same command again."
            )

    def wait(self) -> None:
        """Wait for the process to end; a signal's handler may do so while another call waits."""
        while self.process is not None and self.process.poll() is None:
            time.sleep(POLL)

    def stop(self) -> None:
        """Tell the process to save its state and to end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def checkpoint(self, *arguments: object) -> submitit.helpers.DelayedSubmission:
        """The program with its `arguments` for submitit to requeue when a job is cut short."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        self.wait()
        return DelayedSubmission(Program(), *arguments)


def launch_with_flags(
    name: str, flags: Sequence[str], options: TrainOptions, cells: Sequence[dict[str, object]]
) -> None:
    """Run `vae-jax train FILE ... --launch ...`: a process for each program of the grid.

    Args:
        name: the experiment's file, or its name.
        flags: the user's words after it.
        options: the options among them.
        cells: the arguments of each cell.

    Raises:
        VaeJaxError: the logs cannot be written, or as in `launch_here`, `slurm_executor` and
            `submit`.
    """
    from vae_jax import parallel, storage
    from vae_jax.experiment import find_file
    from vae_jax.grid import unfinished_programs

    parallel.leave_to_others()  # the launched programs take the accelerators
    workdir, seeds = options.workdir, (options.seed, options.seeds)
    programs = unfinished_programs(find_file(name), workdir, cells, *seeds, options.cells)
    to_run = "1 program has" if len(programs) == 1 else f"{len(programs)} programs have"
    say(f"{to_run} to be run for the {len(options.cells) or len(cells)} cells of {workdir}.")
    if not programs:
        return
    started = commands(name, flags, programs)
    logs = workdir / "logs"
    with storage.writing(logs):
        storage.make_folder(logs)
    if options.launch == "local":
        files = [logs / f"{program[0]}.log" for program in programs]
        launch_here(started, files, options.jobs)
    else:
        jobs = submit(slurm_executor(logs), started, options.jobs, options.slurm)
        say(f"Submitted: {', '.join(job.job_id for job in jobs)}; `vae-jax list {workdir}`.")


def commands(name: str, flags: Sequence[str], programs: Sequence[Sequence[str]]) -> list[list[str]]:
    """The command for each program, with the names of its cells.

    Args:
        name: the experiment's file, or its name.
        flags: the user's words after it.
        programs: the names of the cells of each program.

    Returns:
        The words of each command.
    """
    train = [sys.executable, "-m", "vae_jax.cli", "train", name, *flags]
    # Of a repeated flag the last value counts.
    alone = ["--launch", "None", "--jobs", "None", "--slurm"]
    return [[*train, *alone, "--cells", *cells] for cells in programs]


def launch_here(programs: Sequence[Sequence[str]], logs: Sequence[Path], jobs: int | None) -> None:
    """Run commands, by default one at a time per GPU, or one at a time without GPUs.

    Args:
        programs: the commands.
        logs: a file for the output of each.
        jobs: the number of commands that run at once; None for the default.

    Raises:
        VaeJaxError: one of them failed; the others ran to their end.
        SystemExit: a signal told this process, and thus each of them, to stop.
    """
    from vae_jax.processes import stop_signals, visible_gpus

    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = visible_gpus(os.environ)
    gpus = [names[n] if len(names) == count and names[n] else str(n) for n in range(count)]
    jobs = jobs or max(1, count)
    free: SimpleQueue[str | None] = SimpleQueue()
    for n in range(jobs):
        free.put(gpus[n % count] if gpus else None)
    running = [Program() for _ in programs]

    def run(program: Program, command: Sequence[str], log: Path) -> None:
        gpu = free.get()
        try:
            program(command, log, gpu)
        finally:
            free.put(gpu)

    with stop_signals() as received, ThreadPoolExecutor(jobs) as pool:
        each = zip(running, programs, logs, strict=True)
        futures = [pool.submit(run, program, command, log) for program, command, log in each]
        while wait(futures, POLL).not_done and not received:
            pass
        for future in futures if received else ():
            future.cancel()
        for program in running if received else ():
            program.stop()
    if received:
        say("Stopped; what was begun is saved. Run the same command to continue.")
        sys.exit(128 + received[0])
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        say(error)
    if errors:
        raise VaeJaxError(
            f"{len(errors)} of the {len(programs)} programs ended too early, for the reasons "
            "above; others are finished."
        )


def slurm_executor(folder: Path) -> submitit.SlurmExecutor:
    """submitit's executor for Slurm.

    Args:
        folder: the folder for its submissions, and for the logs.

    Raises:
        VaeJaxError: submitit is not installed, or there is no Slurm.
    """
    try:
        import submitit
    except ImportError as error:
        raise VaeJaxError("--launch slurm needs submitit: pip install 'vae_jax[slurm]'.") from error
    try:
        return submitit.SlurmExecutor(folder, max_num_timeout=1000)
    except RuntimeError as error:
        raise VaeJaxError(
            f"--launch slurm finds no Slurm here ({error}): give the command where sbatch is, or "
            "--launch local."
        ) from error


def submit(
    executor: submitit.Executor,
    programs: Sequence[Sequence[str]],
    jobs: int | None,
    settings: Sequence[str],
) -> list[submitit.Job[None]]:
    """Submit commands as an array of jobs, which requeue themselves before their time is over.

    Args:
        executor: submitit's executor.
        programs: the commands.
        jobs: the number of commands that run at once; None for all.
        settings: parameters of the executor, `name=value` each.

    Returns:
        The jobs, one for each command.

    Raises:
        VaeJaxError: there is no such parameter.
    """
    parameters: dict[str, str | int] = {} if jobs is None else {"array_parallelism": jobs}
    for setting in settings:
        name, is_one, value = setting.partition("=")
        if not is_one:
            raise VaeJaxError(f"--slurm has {setting!r}: give settings as name=value.")
        parameters[name] = int(value) if value.isdecimal() else value
    try:
        executor.update_parameters(**parameters)
    except (ValueError, TypeError, NameError) as error:
        what = str(error).partition("\n")[0].rstrip(".")
        raise VaeJaxError(
            f"--slurm {' '.join(settings)} does not suit submitit ({what}): give parameters of its "
            "SlurmExecutor, such as time=240 (minutes) gpus_per_node=1."
        ) from error
    return executor.map_array(Program(), list(programs))
