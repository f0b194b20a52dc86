"""The command `vae-jax`.


Whatever needs JAX is imported where it is used, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.extras import SubcommandApp

from vae_jax.errors import VaeJaxError
from vae_jax.interruption import Interrupted

DESCRIPTION = (
    "Variational autoencoders for images: train, evaluate, draw; resume exactly. Any command takes "
    "--no-compilation-cache, which neither uses nor keeps compiled programs on the disk."
)

app = SubcommandApp()
data_app = SubcommandApp()

File = Annotated[Path, tyro.conf.Positional]
Folder = Annotated[Path, tyro.conf.Positional]
Checkpoint = Literal["latest", "best"]
Split = Literal["train", "valid", "test"]
Prior = Literal["model", "mixture", "flow", "vae", "autoregressive"]


@dataclass(frozen=True)
class TrainOptions:
    """What `train` takes beside the experiment's own arguments."""

    workdir: Path
    """The run folder."""
    seed: int = 0
    """Seed of the first replica."""
    seeds: int = 1
    """Replicas with consecutive seeds, trained in one program."""
    streamed: bool | None = None
    """Read training images from the disk batch by batch (None: where a device cannot hold them)."""
    distributed: bool = False
    """This is one of several processes that train together."""


@dataclass(frozen=True)
class DataOptions:
    """Where data sets are."""

    data_dir: Path | None = None
    """Prepared data sets (None: $VAE_JAX_DATA_DIR, $TFDS_DATA_DIR or ~/tensorflow_datasets)."""
    manual_dir: Path | None = None
    """Files that you downloaded yourself (None: $VAE_JAX_MANUAL_DIR)."""

    def use(self) -> None:
        """Makes them this process's."""
        for name, folder in dataclasses.asdict(self).items():
            if folder is not None:
                os.environ[f"VAE_JAX_{name.upper()}"] = str(folder)


Unprefixed = Annotated[DataOptions, tyro.conf.arg(name="")]
app.command(data_app, name="data", help="The data sets: list, prepare.")


def parse(
    function: Callable[..., Any], command: str, flags: Sequence[str], *options: Any
) -> list[Any]:
    """Parses the flags of a command whose flags are options and the arguments of a function.

    Returns:
        The options as the flags set them, then the function's arguments as a dictionary.
    """

    @functools.wraps(function)
    def arguments(**values: Any) -> dict[str, Any]:
        return values

    fields: list[tuple[str, Any, Any]] = [
        (
            type(default).__name__,
            Annotated[type(default), tyro.conf.arg(name="")],
            dataclasses.field(default=default),
        )
        for default in options
    ]
    collect = tyro.conf.arg(name="", constructor=arguments)
    fields.append(("arguments", Annotated[dict, collect], dataclasses.field()))
    parsed = tyro.cli(
        dataclasses.make_dataclass("Command", fields, kw_only=True),
        prog=f"vae-jax {command}",
        description=(function.__doc__ or "").split("\n")[0],
        args=list(flags),
    )
    return [getattr(parsed, name) for name, _, _ in fields]


def train_file_with_flags(file: Path, flags: Sequence[str]) -> None:
    """`vae-jax train FILE ...`: the flags are those of the file's `experiment` function."""
    from vae_jax.experiment import read_module

    _, module = read_module(file)
    defaults = TrainOptions(workdir=Path("runs") / file.stem), DataOptions()
    options, data, arguments = parse(module.experiment, f"train {file}", flags, *defaults)
    data.use()
    from vae_jax import parallel
    from vae_jax.figures import draw
    from vae_jax.train import train_file

    if options.distributed:
        parallel.start_processes()
    else:
        parallel.give_replicas_cores(options.seeds)
    run = train_file(
        file,
        options.workdir,
        arguments,
        seed=options.seed,
        num_seeds=options.seeds,
        streamed=options.streamed,
    )
    if parallel.is_main_process() and not run.folder.figures.exists():
        print_paths(draw(run))


def draw_file_with_flags(file: Path, flags: Sequence[str]) -> None:
    """`vae-jax figures FILE ...`: the flags are those of the file's `figures` function."""
    from vae_jax.experiment import read_module

    _, module = read_module(file)
    if not hasattr(module, "figures"):
        raise VaeJaxError(f"{file} has no function `figures(*, ...) -> list[Path]` to draw with.")
    data, arguments = parse(module.figures, f"figures {file}", flags, DataOptions())
    data.use()
    print_paths(module.figures(**arguments))


@app.command
def train(file: File) -> None:
    """Trains the experiment of FILE, or goes on with it; `train FILE --help` lists its flags."""
    train_file_with_flags(file, [])


@app.command
def evaluate(
    run: Folder,
    *,
    num_samples: int = 5000,
    num_images: int | None = None,
    split: Split = "test",
    checkpoint: Checkpoint = "latest",
    ais_temperatures: int | None = None,
    ais_chains: int = 16,
    information: bool = False,
    gaps: bool = False,
) -> None:
    """Likelihood bounds, rate, distortion and active units, as a table and in evaluation.json.

    Args:
        run: the run folder.
        num_samples: K of the importance-weighted bound on the NLL.
        num_images: evenly spaced over the split; None takes all.
        split: of the data.
        checkpoint: the latest, or the best by validation.
        ais_temperatures: also bound the NLL by annealed importance sampling through so many
            temperatures, and on as many simulated images from both sides. Slow: take few images.
        ais_chains: of it, for each image.
        information: also divide the rate into I(x; z) and KL(q(z) || p(z)).
        gaps: also divide what the ELBO loses into the approximation gap and the amortization gap,
            with the best q(z|x) for each image. Slow: take few images.
    """
    check_counts(num_samples=num_samples)
    from vae_jax import report
    from vae_jax.ais import AIS
    from vae_jax.evaluate import evaluate as evaluate_run
    from vae_jax.train import load_run

    start = time.perf_counter()
    loaded = load_run(run, checkpoint)
    ais = None if ais_temperatures is None else AIS(ais_temperatures, ais_chains)
    evaluation = evaluate_run(
        loaded,
        split=split,
        num_samples=num_samples,
        num_images=num_images,
        ais=ais,
        information=information,
        gaps=gaps,
    )
    report.record(loaded, evaluation, time.perf_counter() - start)
    report.show(loaded, evaluation)
    print_paths(sorted(loaded.folder.figures.glob("*.png")))


@app.command
def sample(
    run: Folder,
    *,
    out: Path,
    num: int = 64,
    seed: int = 0,
    label: str | None = None,
    prior: Prior = "model",
    checkpoint: Checkpoint = "latest",
) -> None:
    """Means of p(x|z) with z from the prior, as one picture.

    Args:
        run: the run folder.
        out: a .png, .jpg or .webp file.
        num: how many; of a conditional model without --label, num // classes of each, in rows.
        seed: of the prior's draws.
        label: the class to draw of a conditional model, by its name or number.
        prior: the model's own, or a density fitted to the latents of the training images: a
            mixture of Gaussians, a flow, a second VAE, or for codes an autoregressive model. It is
            fitted once and kept in the run folder.
        checkpoint: the latest, or the best by validation.
    """
    check_counts(num=num)
    from vae_jax import generate, plots
    from vae_jax.train import load_run

    loaded = load_run(run, checkpoint)
    if prior != "model":
        from vae_jax.posthoc import fitted

        loaded = fitted(loaded, prior)
    labels = columns = None
    if label is not None:
        labels = [generate.find_label(loaded, label)]
    elif loaded.experiment.model.labels is not None:
        columns = max(1, num // len(generate.class_names(loaded)))
        num = columns * len(generate.class_names(loaded))
    images = generate.sample(loaded, num, seed, labels)
    print_paths([plots.save_images(images, out, columns)])


@app.command
def reconstruct(
    run: Folder,
    *,
    out: Path,
    num: int = 20,
    split: Split = "test",
    checkpoint: Checkpoint = "latest",
) -> None:
    """Images of a split beside the decoder's means at their posterior means, as a figure.

    Args:
        run: the run folder.
        out: a .png file.
        num: how many.
        split: of the data.
        checkpoint: the latest, or the best by validation.
    """
    check_counts(num=num)
    from vae_jax import generate, plots
    from vae_jax.train import load_run

    loaded = load_run(run, checkpoint)
    figure = plots.reconstructions(*generate.reconstruct(loaded, split, num))
    print_paths([plots.save(figure, out)])


@app.command
def restyle(
    run: Folder,
    *,
    source: Annotated[str, tyro.conf.arg(name="from")],
    to: str | None = None,
    out: Path,
    num: int = 10,
    split: Split = "test",
    checkpoint: Checkpoint = "latest",
) -> None:
    """Images of one class, encoded with it and decoded with another, as a figure.

    Args:
        run: the run folder of a conditional model.
        source: the images' class, by its name or number.
        to: the class to decode with; None draws all.
        out: a .png file.
        num: how many images.
        split: of the data.
        checkpoint: the latest, or the best by validation.
    """
    check_counts(num=num)
    from vae_jax import generate, plots
    from vae_jax.figures import restyled
    from vae_jax.train import load_run

    loaded = load_run(run, checkpoint)
    start = generate.find_label(loaded, source)
    every = range(len(generate.class_names(loaded)))
    targets = every if to is None else [start, generate.find_label(loaded, to)]
    print_paths([plots.save(restyled(loaded, split, start, targets, num), out)])


@app.command
def interpolate(
    run: Folder,
    *,
    out: Path,
    pairs: int = 6,
    steps: int = 11,
    split: Split = "test",
    checkpoint: Checkpoint = "latest",
) -> None:
    """Decoded straight lines between the posterior means of pairs of images, as a figure.

    Args:
        run: the run folder.
        out: a .png file.
        pairs: how many lines.
        steps: pictures on each.
        split: where the pairs come from.
        checkpoint: the latest, or the best by validation.
    """
    check_counts(pairs=pairs, steps=steps)
    from vae_jax import generate, plots
    from vae_jax.train import load_run

    loaded = load_run(run, checkpoint)
    figure = plots.interpolations(generate.interpolate(loaded, split, pairs, steps))
    print_paths([plots.save(figure, out)])


@app.command
def traverse(
    run: Folder,
    *,
    out: Path,
    row: int = 0,
    steps: int = 11,
    latents: int = 10,
    split: Split = "test",
    checkpoint: Checkpoint = "latest",
) -> None:
    """One latent at a time moved from -3 to 3, the most used first, as a figure.

    Args:
        run: the run folder.
        out: a .png file.
        row: the image whose other latents stay, by its place in the split.
        steps: values of each latent.
        latents: how many latents.
        split: where the image comes from.
        checkpoint: the latest, or the best by validation.
    """
    check_counts(steps=steps, latents=latents)
    from vae_jax import generate, plots
    from vae_jax.train import load_run

    loaded = load_run(run, checkpoint)
    images, values, dims = generate.traverse(loaded, split, row, steps, latents)
    figure = plots.traversals(images, values, [f"$z_{{{d + 1}}}$" for d in dims])
    print_paths([plots.save(figure, out)])


@app.command
def figures(file: File) -> None:
    """Draws the paper's figures of FILE; `figures FILE --help` lists its flags."""
    draw_file_with_flags(file, [])


@data_app.command(name="list")
def data_list(options: Unprefixed = DataOptions()) -> None:
    """The data sets known by name, and which are prepared."""
    options.use()
    from vae_jax import report

    report.show_datasets()


@data_app.command(name="prepare")
def data_prepare(
    name: Annotated[str, tyro.conf.Positional], options: Unprefixed = DataOptions()
) -> None:
    """Prepares a data set with TFDS, once.

    Args:
        name: as `vae-jax data list` has it.
        options: where.
    """
    options.use()
    from vae_jax.data import prepare

    prepare(name)


def check_counts(**counts: int) -> None:
    """Refuses to count to nothing.

    Raises:
        VaeJaxError: one of them is below 1.
    """
    for name, count in counts.items():
        if count < 1:
            raise VaeJaxError(f"--{name.replace('_', '-')} is {count}: it must be at least 1.")


def print_paths(paths: Sequence[Path]) -> None:
    """One path a line, for a person or a pipe."""
    for path in paths:
        print(path)


def use_compilation_cache(wanted: bool) -> None:
    """Lets JAX, before it is imported, keep compiled programs; its own variables prevail."""
    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "vae_jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; ends with 2 after bad input, 128 + the signal's number after a signal."""
    given = sys.argv[1:] if arguments is None else arguments
    arguments = [argument for argument in given if argument != "--no-compilation-cache"]
    use_compilation_cache(arguments == list(given))
    try:
        match arguments:
            case ["train", file, *flags] if not file.startswith("-"):
                train_file_with_flags(Path(file), flags)
            case ["figures", file, *flags] if not file.startswith("-"):
                draw_file_with_flags(Path(file), flags)
            case _:
                app.cli(prog="vae-jax", args=arguments, description=DESCRIPTION)
    except VaeJaxError as error:
        print(f"vae-jax: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"vae-jax: A file cannot be read or written ({reason}).", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(128 + error.signal_number)
    except KeyboardInterrupt:  # while training did not run
        sys.exit(128 + signal.SIGINT)
