"""Times this codebase and its peers on the same work, and writes docs/performance.md's tables.

    make bench                                             # everything
    python scripts/benchmark.py --only "MLP, batch 128"    # one workload
    python scripts/benchmark.py --beside 344c0af           # is ours slower than it was there?

The workloads are defined in `scripts/works.py`; those in bfloat16 are for accelerators. Every
contender is a separate program, in `scripts/contenders/`, that trains without end and prints lines
of steps and times; ours is `vae-jax train` itself with its metrics.jsonl. All but the peers run in
this program's environment. The contenders of one workload are started one after the other and
paused (SIGSTOP); then, round after round and each time in another order, each is resumed alone for
a few seconds. A rate counts from the second line of a window on, and ratios are of rates in the
same round, so that a drift of the machine's speed affects both. The work of other programs during a
window is measured too, and disturbed windows are counted. The report has a CPU's tables; those of
an accelerator are only printed.
"""

import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tyro
from rich.console import Console
from works import (
    CONTENDERS,
    LEAST_OF_EARLIER,
    OF_CPUS,
    SQUARE,
    Asked,
    Contender,
    Work,
    everything,
    of_accelerators,
)

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
LINES = 3  # least lines of a window that count
DISTURBED = 0.1  # of one core, busy with other programs, on average over a window
START_LIMIT = 600


class Program:
    """A contender's process, running or paused."""

    def __init__(self, contender: Contender, peers: Path, folder: Path):
        """Start it, wait for its first lines, note what starting took, and pause it."""
        self.contender = contender
        self.output, self.errors = folder.with_suffix(".output"), folder.with_suffix(".errors")
        python = str(peers / "bin" / "python") if contender.peer else sys.executable
        program, *arguments = contender.command
        if program == "vae-jax":
            command = [python, "-P", "-c", "from vae_jax.cli import main; main()", *arguments]
        else:
            command = [python, str(CONTENDERS / program), *arguments]
        self.folder = folder if "train" in arguments else None
        if self.folder is not None:
            command += ["--workdir", str(folder)]
        environment = os.environ | {
            "JAX_LOG_COMPILES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(folder.with_suffix(".cache")),
            **contender.environment,
        }
        self.started = time.time()
        with self.output.open("w") as output, self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=errors,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )
        self.woken = self.started
        try:
            self.wait(1)
        except BaseException:  # an interruption, too: nobody else knows of it yet
            self.end()
            raise
        self.first = self.lines()[0]
        compiled = re.findall(
            r"Finished XLA compilation of .* in ([\d.e-]+) sec", self.errors.read_text()
        )
        self.compile_seconds = sum(map(float, compiled)) if compiled else None
        self.pause()

    def lines(self) -> list[dict[str, Any]]:
        """The lines since it was resumed, of a grid those of its first cell."""
        file = self.output
        if self.folder is not None:
            files = sorted(self.folder.rglob("metrics.jsonl"))
            if not files:
                return []
            file = files[0]
        whole = file.read_text().rpartition("\n")[0].splitlines()
        lines = [json.loads(line) for line in whole]
        return [line for line in lines if line.get("time", 0) >= self.woken and "step" in line]

    def wait(self, count: int, seconds: float = 0.0) -> None:
        """Wait for that many lines, and seconds, after it was resumed."""
        while len(self.lines()) < count or time.time() < self.woken + seconds:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.contender.name} ended:\n{self.errors.read_text()[-2000:]}")
            if time.time() > self.woken + START_LIMIT:
                raise SystemExit(f"{self.contender.name}: no line in {START_LIMIT} s.")
            time.sleep(0.05)

    def pause(self) -> None:
        """Pause it, by SIGSTOP."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def window(self, seconds: float) -> tuple[float, float]:
        """Images/s while it runs alone, and the fraction of one core used by other programs."""
        others = busy_seconds() - self.cpu_seconds()
        self.woken = time.time()
        os.killpg(self.process.pid, signal.SIGCONT)
        self.wait(1 + LINES, seconds)
        self.pause()
        others = busy_seconds() - self.cpu_seconds() - others
        lines = self.lines()[1:]
        steps = lines[-1]["step"] - lines[0]["step"]
        rate = steps * self.contender.images / (lines[-1]["time"] - lines[0]["time"])
        return rate, others / (time.time() - self.woken)

    def cpu_seconds(self) -> float:
        """The core seconds that it and its threads have used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def start_seconds(self, rate: float) -> float:
        """From its start to its first step: the first line's time, less its steps at this rate."""
        return self.first["time"] - self.started - self.first["step"] * self.contender.images / rate

    def peak_mebibytes(self) -> float:
        """Its peak memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def facts(self) -> dict[str, Any]:
        """What it reports besides its steps: the operations per image, and its device."""
        found: dict[str, Any] = {}
        for line in self.output.read_text().splitlines():
            if line.startswith(('{"flops"', '{"device"')):
                found |= json.loads(line)
        return found

    def end(self) -> None:
        """Kills it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def busy_seconds() -> float:
    """Core seconds that the machine has worked since it started."""
    user, nice, system, _, _, irq, soft_irq = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8]
    )
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


@dataclass
class Measured:
    """The measurements of one contender.

    Attributes:
        name: the contender's name.
        rates: images/s in each round.
        start_seconds, compile_seconds, mebibytes: see `Program`.
        facts: see `Program`.
    """

    name: str
    rates: np.ndarray
    start_seconds: float
    compile_seconds: float | None
    mebibytes: float
    facts: dict[str, Any]

    @property
    def flops(self) -> float | None:
        """The number of operations per image, or None if it does not report it."""
        return self.facts.get("flops")


def end_by_exception(number: int, _: object) -> NoReturn:
    """End this program by an exception, so that it also ends its contenders."""
    raise SystemExit(128 + number)


def check_devices(facts: dict[str, dict[str, Any]]) -> None:
    """End if a program runs on another device than `SQUARE`, as a peer's build for CPUs does."""
    device = facts[SQUARE]["device"]
    for name, its in facts.items():
        if its.get("device", device) != device:
            raise SystemExit(
                f"{name} runs on {its['device']}, the others on {device}: install its build for "
                "that device, or leave it out by --without."
            )


def measure(work: Work, peers: Path, rounds: int, seconds: float) -> tuple[list[Measured], int]:
    """Run a workload's contenders, and count disturbed windows."""
    programs: list[Program] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        try:
            for number, contender in enumerate(work.contenders):
                programs.append(Program(contender, peers, Path(root) / str(number)))
            check_devices({each.contender.name: each.facts() for each in programs})
            rates, disturbed = np.zeros((len(programs), rounds)), 0
            for this_round in range(rounds):
                for turn in range(len(programs)):
                    index = (turn + this_round) % len(programs)
                    rates[index, this_round], others = programs[index].window(seconds)
                    disturbed += others > DISTURBED
            measured = [
                Measured(
                    program.contender.name,
                    rates[index],
                    program.start_seconds(float(np.median(rates[index]))),
                    program.compile_seconds,
                    program.peak_mebibytes(),
                    program.facts(),
                )
                for index, program in enumerate(programs)
            ]
        finally:
            for program in programs:
                program.end()
    return measured, disturbed


def spread(values: np.ndarray, digits: int) -> str:
    """min / median / max."""
    return " / ".join(f"{f(values):,.{digits}f}" for f in (np.min, np.median, np.max))


def table(work: Work, measured: list[Measured], disturbed: int) -> str:
    """One workload's part of the report.

    Args:
        work: the workload.
        measured: the measurements of its contenders, ours first and `SQUARE` last.
        disturbed: the number of disturbed windows.
    """
    ours, square = measured[0], measured[-1].rates * (measured[-1].flops or 0)
    windows = len(measured) * len(ours.rates)
    lines = [
        f"### {work.title}",
        "",
        "| | images/s | ours is faster by | of the matrix rate | start to first step | "
        "of it compiling | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    counted = next((one.flops for one in measured[:-1] if one.flops), None)
    for one in measured:
        if one.name == SQUARE:
            continue
        ratio = "" if one is ours else spread(ours.rates / one.rates, 2)
        flops = counted if one.flops is None else one.flops
        share = ""
        if flops:
            share = f"{np.median(one.rates) * flops / np.median(square):.0%}"
        compiling = "" if one.compile_seconds is None else f"{one.compile_seconds:.1f} s"
        lines.append(
            f"| {one.name} | {spread(one.rates, 0)} | {ratio} | {share} | "
            f"{one.start_seconds:.1f} s | {compiling} | {one.mebibytes:,.0f} MiB |"
        )
    quiet = "all quiet" if not disturbed else f"{disturbed} of them disturbed by other programs"
    lines += [
        "",
        f"{date.today()}, {machine(measured)}; {measured[-1].facts['size']}² matrix products: "
        f"{spread(square / 1e9, 0)} GFLOP/s; {len(ours.rates)} rounds, {windows} windows, {quiet}.",
    ]
    if counted:
        lines[-1] += f" An image costs {counted / 1e6:,.2f} MFLOP, as XLA counts our plain loop's."
    if work.streams:
        lines[-1] += f" {hidden_share(*(one.rates for one in measured[:4]))}"
    by_name = {one.name: one for one in measured}
    answers = [line for one in work.asked if one.other in by_name for line in answer(one, by_name)]
    return "\n".join([*lines, "", *answers])


def answer(asked: Asked, measured: dict[str, Measured]) -> list[str]:
    """Whether ours is as fast in the median round, and needs as little memory, as required."""
    ours, other = measured[asked.ours], measured[asked.other]

    def line(limit: str, ratio: float, held: bool) -> str:
        verdict = "yes" if held else "**no**"
        return f"- {asked.ours}, {limit} {asked.other}: {verdict}, {ratio:.2f}."

    ratio = float(np.median(ours.rates / other.rates))
    lines = [line(f"at least {asked.least} times", ratio, ratio >= asked.least)]
    if asked.most_compiling and ours.compile_seconds and other.compile_seconds:
        most, ratio = asked.most_compiling, ours.compile_seconds / other.compile_seconds
        lines.append(line(f"compiling at most {most} times as long as", ratio, ratio <= most))
    if asked.most_memory:
        most, ratio = asked.most_memory, ours.mebibytes / other.mebibytes
        lines.append(line(f"memory at most {most} times that of", ratio, ratio <= most))
    return lines


def hidden_share(
    resident: np.ndarray, streamed: np.ndarray, memory: np.ndarray, disk: np.ndarray
) -> str:
    """How much of the time to read images from the disk is hidden behind a step's computation.

    Args:
        resident, streamed: images/s of training from memory and from the disk.
        memory, disk: images/s of the two inputs alone.
    """
    step = 1 / resident - 1 / memory  # without its input
    hidden = 1 - (1 / streamed - step) * disk
    return (
        f"Streaming alone takes {spread(1 / disk / step, 3)} of the time of a step without its "
        f"input, and the step hides {spread(hidden, 2)} of that."
    )


def on_cpu(measured: list[Measured]) -> bool:
    """Whether a workload ran on a CPU, by the device of `SQUARE`, its last contender."""
    return measured[-1].facts["device"] == "cpu"


def machine(measured: list[Measured]) -> str:
    """The device that a workload ran on."""
    if on_cpu(measured):
        return f"{os.cpu_count()} cores of {cpu()}"
    return measured[-1].facts["device"]


def cpu() -> str:
    """The name of this machine's CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def write(title: str, part: str, titles: list[str]) -> None:
    """Put a workload's part in the report, in place of an earlier one.

    Args:
        title: the workload's title.
        part: its part.
        titles: all titles, in order; parts with other titles are removed from the report.
    """
    before, rest = REPORT.read_text().split(BEGIN)
    generated, after = rest.split(END)
    earlier = re.split(r"^### (.*)$", generated, flags=re.MULTILINE)[1:]
    found = zip(earlier[::2], earlier[1::2], strict=True)
    parts = {name: f"### {name}{text}".rstrip() for name, text in found} | {title: part.rstrip()}
    kept = [parts[name] for name in titles if name in parts]
    REPORT.write_text("\n\n".join([before + BEGIN, *kept, END + after]))


def beside_earlier(work: Work, revision: str, tree: Path) -> Work:
    """Ours, and ours as it was at another revision, of which `tree` has the files."""
    ours, contenders = work.contenders[0], str(tree / CONTENDERS.relative_to(ROOT))
    command = [each.replace(str(CONTENDERS), contenders) for each in ours.command]
    if command[0] != "vae-jax":
        command[0] = f"{contenders}/{command[0]}"
    environment = ours.environment | {"PYTHONPATH": str(tree)}
    name = f"{ours.name}, at {revision}"
    earlier = replace(ours, name=name, command=command, environment=environment)
    asked = [Asked(LEAST_OF_EARLIER, name, ours.name)]
    return replace(work, contenders=[ours, earlier], asked=asked, streams=False)


def files_of(revision: str, tree: Path) -> None:
    """Write the files of a revision of this repository into a folder."""
    command = ["git", "-C", str(ROOT), "archive", revision]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tree, filter="data")


def on_device(work: Work, device: str) -> Work:
    """The work without contenders that are for CPUs, if the device is an accelerator."""
    kept = [one for one in work.contenders if device == "cpu" or one.environment not in OF_CPUS]
    return replace(work, contenders=kept)


def main(
    peers: Path = ROOT / ".venv-peers",
    only: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    beside: str | None = None,
    rounds: int = 5,
    seconds: float = 2.0,
) -> None:
    """Run the benchmark; each workload's table is written as soon as it is measured.

    Args:
        peers: an environment with numpyro, pythae and torch; where there is none, they are left out
            and the tables are only printed.
        only: the titles of the workloads to run; the other tables stay as they are.
        without: the names of contenders to leave out; the tables are then only printed.
        beside: a revision of this repository, at which ours takes the place of all other
            contenders; the tables are then only printed.
        rounds: the number of rounds of windows.
        seconds: the length of a window, which is longer if lines come slowly.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_by_exception)
    console, works = Console(), everything()
    titles = [work.title for work in works]
    works += of_accelerators() if only else []
    every = [work.title for work in works]
    asking = [sys.executable, "-c", "import jax; print(jax.devices()[0].device_kind)"]
    device = subprocess.run(asking, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    for unknown in set(only) - set(every):
        raise SystemExit(f"There is no workload {unknown!r}; the titles are {every}.")
    with tempfile.TemporaryDirectory() as tree:
        if beside:
            files_of(beside, Path(tree))
        for work in works:
            if only and work.title not in only:
                continue
            work = on_device(work, device)
            if beside:
                work = beside_earlier(work, beside, Path(tree))
            contenders = [one for one in work.contenders if one.name not in without]
            contenders = [one for one in contenders if peers.exists() or not one.peer]
            work.contenders = [*contenders, work.matrix_rate]
            measured, disturbed = measure(work, peers, rounds, seconds)
            part = table(work, measured, disturbed)
            console.print(part, markup=False, soft_wrap=True)
            whole = peers.exists() and not (without or beside)
            if whole and work.title in titles and on_cpu(measured):
                write(work.title, part, titles)


if __name__ == "__main__":
    tyro.cli(main)
