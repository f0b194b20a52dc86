"""Options of commands besides the arguments of their functions, and the parsing of flags."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from vae_jax.errors import VaeJaxError, legible

Folder = Annotated[Path, tyro.conf.Positional]
Checkpoint = Literal["latest", "best"]
FLAGS_OF = {"num_seeds": "seeds"}
"""Flags that have other names than the parameters."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train` besides the experiment's own arguments."""

    workdir: Path
    """The run folder; if a flag has several values, the folder of the cells' run folders."""
    seed: int = 0
    """The seed of the first replica."""
    seeds: int = 1
    """The number of replicas, trained in one program with consecutive seeds."""
    streamed: bool | None = None
    """Read training images from the disk batch by batch (None: if a device cannot hold them)."""
    shard: Literal["optimizer"] | None = None
    """Leave each device a share of the optimizer's state and of the running average (ZeRO)."""
    dry_run: bool = False
    """Print the memory that training needs, on each device and on the host, and do not train."""
    deterministic: bool = False
    """Compute the same bytes in each run, even on GPUs of one kind, but more slowly."""
    cells: tuple[str, ...] = ()
    """The cells of a grid to train, by the names of their folders; others are left as they are."""
    launch: Literal["local", "slurm"] | None = None
    """Train the programs of a grid in separate processes: here, or as jobs of Slurm."""
    jobs: int | None = None
    """The number of programs at once (None: one per GPU, or one; under Slurm as it allows)."""
    slurm: tuple[str, ...] = ()
    """Parameters of submitit's SlurmExecutor, such as time=240 (minutes) gpus_per_node=1."""
    tensorboard: bool = False
    """Also write metrics and figures as event files, for `tensorboard --logdir`."""
    wandb: bool = False
    """Also log metrics and figures to Weights & Biases (WANDB_PROJECT, WANDB_MODE=offline, ...)."""
    mlflow: bool = False
    """Also log metrics and figures to MLflow (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME)."""

    def check(self, cells: int, distributed: bool) -> None:
        """Check that flags for grids come with a grid, and flags for a launch with --launch.

        Args:
            cells: the number of cells.
            distributed: whether several processes train together.

        Raises:
            VaeJaxError: a flag for grids comes with a single cell, a flag for a launch without
                --launch, or --launch with several processes that train together.
        """
        if cells < 2 and (self.launch or self.cells):
            what = "--launch starts" if self.launch else "--cells chooses among"
            raise VaeJaxError(
                f"{what} the programs of a grid, and this is a single run: give a flag several "
                "values, or leave it out."
            )
        if self.launch and distributed:
            raise VaeJaxError(
                "--launch starts processes that each train alone: leave out --distributed, or "
                "--launch."
            )
        if self.dry_run and (self.launch or distributed):
            what = "--distributed" if distributed else "--launch"
            raise VaeJaxError(
                f"--dry-run computes the memory in one process: leave out {what}, and for several "
                "devices set XLA_FLAGS=--xla_force_host_platform_device_count=N."
            )
        if self.slurm and self.launch != "slurm":
            raise VaeJaxError("--slurm is for jobs of Slurm: add --launch slurm, or leave it out.")
        if self.jobs is not None:
            if self.launch is None:
                raise VaeJaxError(
                    "--jobs is the number of processes that --launch starts at once: add --launch "
                    "local, or leave it out."
                )
            check_counts(jobs=self.jobs)


@dataclass(frozen=True)
class ProcessOptions:
    """Options for several processes."""

    distributed: bool = False
    """Work together with other processes, which are given the same command."""
    start_timeout: float = 300
    """Seconds to wait for all processes."""
    heartbeat_timeout: int = 100
    """Seconds without a sign of life after which a process is taken for dead."""
    shutdown_timeout: int = 300
    """Seconds to wait for JAX to shut down once all processes have finished."""

    def together(self) -> contextlib.AbstractContextManager[None]:
        """A context in which this process works with the others, if there are any."""
        if not self.distributed:
            return contextlib.nullcontext()
        from vae_jax.processes import together
        from vae_jax.run import versions

        timeouts = dataclasses.asdict(self)
        del timeouts["distributed"]
        check_counts(**timeouts)
        return together(versions(), **timeouts)


@dataclass(frozen=True)
class DataOptions:
    """Folders of data sets."""

    data_dir: Path | None = None
    """Prepared data sets (None: $VAE_JAX_DATA_DIR, $TFDS_DATA_DIR or ~/tensorflow_datasets)."""
    manual_dir: Path | None = None
    """Files that you downloaded yourself (None: $VAE_JAX_MANUAL_DIR)."""

    def use(self) -> None:
        """Set the environment variables that the loaders of data read."""
        for name, folder in dataclasses.asdict(self).items():
            if folder is not None:
                os.environ[f"VAE_JAX_{name.upper()}"] = str(folder)


@dataclass(frozen=True)
class StyleOptions:
    """Options for the look of figures."""

    style_sheet: str | None = None
    """A style sheet for Matplotlib: an .mplstyle file, or the name of a built-in one."""
    dpi: float | None = None
    """Dots per inch of a figure (None: 150, or the style sheet's)."""

    def use(self) -> None:
        """Set this style in Matplotlib."""
        from vae_jax import plots

        plots.use_style(self.style_sheet, self.dpi)


@dataclass(frozen=True)
class FigureOptions(StyleOptions):
    """Options for a paper's figures: their look, their files, and the training of missing runs."""

    format: Literal["png", "jpg", "webp", "pdf", "svg"] = "png"
    """The format of the files; in pdf and svg text stays text."""
    budget: str | None = None
    """The limit of training for now: 40epochs of each run, or 1.5h in all (None: no limit)."""

    def use(self) -> None:
        """Set this style and format in Matplotlib."""
        from vae_jax import plots

        plots.use_style(self.style_sheet, self.dpi, self.format)


@dataclass(frozen=True)
class PictureOptions:
    """Options of a command that makes pictures besides the arguments of its function."""

    run: Folder
    """The run folder, or that of a grid; the names of its cells are added to the names of files."""
    out: Path
    """A .png, .jpg, .webp, .pdf or .svg file; {} in its name numbers files of one picture each."""
    file_quality: int | None = None
    """The quality, 1 to 100, of a .jpg (None: 95) or a .webp (None: lossless)."""
    checkpoint: Checkpoint = "latest"
    """The latest checkpoint, or the best by validation."""
    trust: bool = False
    """Run the code in the run folder even if another account wrote it."""

    def __post_init__(self):
        from vae_jax import plots

        plots.options_for(self.out, self.file_quality, of_figure="{}" not in self.out.name)


def parse(
    function: Callable[..., object],
    command: str,
    flags: Sequence[str],
    *options: object,
    given: Sequence[str] = (),
    instead: Mapping[str, object] | None = None,
) -> list[Any]:
    """Parse the flags of a command: its options, and the arguments of a function.

    Args:
        function: a function with type hints.
        command: the command as the user types it, for its help.
        flags: the user's words after it.
        options: dataclasses, or instances of them with the defaults.
        given: parameters of the function that are not flags.
        instead: other defaults of its parameters.

    Returns:
        The options as the flags set them, then the function's arguments as a dictionary.
    """

    def arguments(**values: object) -> dict[str, object]:
        return values

    doc, signature = inspect.getdoc(function) or "", inspect.signature(function)
    own = [
        parameter.replace(default=(instead or {}).get(name, parameter.default))
        for name, parameter in signature.parameters.items()
        if name not in given
    ]
    arguments.__doc__ = re.sub(r"\n {8}", " ", doc)  # tyro keeps the breaks of an argument's lines
    arguments.__annotations__ = get_type_hints(function, include_extras=True)
    vars(arguments)["__signature__"] = signature.replace(parameters=own)
    fields: list[tuple[str, Any, Any]] = []
    for option in options:
        kind = option if isinstance(option, type) else type(option)
        default = dataclasses.MISSING if kind is option else option
        unprefixed = Annotated[kind, tyro.conf.arg(name="")]
        fields.append((kind.__name__, unprefixed, dataclasses.field(default=default)))
    collect = tyro.conf.arg(name="", constructor=arguments)
    fields.append(("arguments", Annotated[dict, collect], dataclasses.field()))
    parsed = tyro.cli(
        dataclasses.make_dataclass("Command", fields, kw_only=True),
        prog=legible(f"vae-jax {command}"),
        description=doc.split("\n")[0],
        args=list(flags),
    )
    return [getattr(parsed, name) for name, _, _ in fields]


def check_counts(**counts: float) -> None:
    """Check that counts are at least 1.

    Raises:
        VaeJaxError: one of them is below 1.
    """
    for name, count in counts.items():
        if count < 1:
            raise VaeJaxError(f"--{name.replace('_', '-')} is {count}: it must be at least 1.")


def as_flags(sentence: str, names: Iterable[str], typed: Sequence[str] = ()) -> str:
    """A sentence for a user who typed a command: `--num-samples 0`, not `num_samples=0`.

    Args:
        sentence: the package's sentence for callers from Python.
        names: the parameters that are flags of the command.
        typed: the user's words, for sentences on a number in a constructor.
    """
    sentence = re.sub(r" \(in Python [^()]*\)|; in Python [^()]*\([^()]*\)", "", sentence)
    for name in sorted(names, key=len, reverse=True):
        flag = f"--{FLAGS_OF.get(name, name).replace('_', '-')}"
        sentence = re.sub(rf"^{name}( of [a-z_]+)? is ", f"{flag} is ", sentence)
        sentence = re.sub(rf"\bexperiment\.arguments\.{name}\b", flag, sentence)
        sentence = re.sub(rf"(?<![\w(]){name}=(?=[\w.-])", f"{flag} ", sentence)
        sentence = re.sub(rf"\band {name} (?=\d)", f"and {flag} ", sentence)
    if typed and re.match(r"\w+ of [A-Z]\w+ is ", sentence):
        sentence += f" You gave {legible(' '.join(typed))}."
    return sentence


@contextlib.contextmanager
def said_in_flags(names: Iterable[str], typed: Sequence[str] = ()) -> Iterator[None]:
    """Rewrite errors raised inside by `as_flags(sentence, names, typed)`.

    Raises:
        VaeJaxError: one was raised inside.
    """
    try:
        yield
    except VaeJaxError as error:
        raise VaeJaxError(as_flags(str(error), names, typed)) from error
