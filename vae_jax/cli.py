"""The command `vae-jax`.


Whatever needs JAX is imported where it is used, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
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

from vae_jax.errors import Interrupted, VaeJaxError

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


@dataclass(frozen=True)
class Output:
    """Where a picture goes."""

    out: Path
    """A .png, .jpg or .webp file; {} in its name numbers files of one picture each."""
    quality: int | None = None
    """1 to 100, of a .jpg (None: 95) or .webp (None: lossless)."""

    def __post_init__(self):
        from vae_jax import plots

        plots.options_for(self.out, self.quality)

    def write(self, pictures: Any, draw: Callable[[Path, int | None], Path]) -> None:
        """Each of `[..., H, W, C]` to a file of its own, or what is drawn of them to one."""
        from vae_jax import plots

        if "{}" in self.out.name:
            single = pictures.reshape(-1, *pictures.shape[-3:])
            print_paths(plots.save_each(single, self.out, self.quality))
        else:
            print_paths([draw(self.out, self.quality)])


Unprefixed = Annotated[DataOptions, tyro.conf.arg(name="")]
To = Annotated[Output, tyro.conf.arg(name="")]
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
    from vae_jax.processes import together
    from vae_jax.standard_figures import draw
    from vae_jax.train import train_file

    if options.distributed:
        parallel.start_processes()
    else:
        parallel.give_replicas_cores(options.seeds)
    with together() if options.distributed else contextlib.nullcontext():
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
    quality: int | None = None,
    features: str | None = None,
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
        quality: also compare so many samples with as many images of the split, and training images
            with these: Fréchet and kernel distances, precision and recall; and reconstructions
            with their originals: PSNR and SSIM.
        features: a further space for --quality: WEIGHTS.npz of Inception-v3 (docs/quality.md), or
            FILE.py:FUNCTION, from uint8 images [n, H, W, C] to features [n, F].
    """
    check_counts(num_samples=num_samples)
    if features is not None and quality is None:
        raise VaeJaxError("--features says where --quality is measured: give --quality too.")
    from vae_jax import report
    from vae_jax.evaluation.ais import AIS
    from vae_jax.evaluation.evaluate import evaluate as evaluate_run
    from vae_jax.metrics import load_features
    from vae_jax.train import load_run

    start = time.perf_counter()
    spaces = None if features is None else load_features(features)
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
        quality=quality,
        features=spaces,
    )
    seconds = time.perf_counter() - start
    report.show(loaded, evaluation)
    print_paths(sorted(loaded.folder.figures.glob("*.png")))
    sys.stdout.flush()  # the numbers are seen, whatever becomes of their record
    report.record(loaded, evaluation, seconds)


@app.command
def sample(
    run: Folder,
    *,
    to: To,
    num: int = 64,
    seed: int = 0,
    label: str | None = None,
    prior: Prior = "model",
    checkpoint: Checkpoint = "latest",
) -> None:
    """Means of p(x|z) with z from the prior, as one picture or a file for each.

    Args:
        run: the run folder.
        to: where.
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
        from vae_jax.fitted_priors import fitted

        loaded = fitted(loaded, prior)
    labels = columns = None
    if label is not None:
        labels = [generate.find_label(loaded, label)]
    elif loaded.experiment.model.labels is not None:
        columns = max(1, num // len(loaded.class_names))
        num = columns * len(loaded.class_names)
    images = generate.sample(loaded, num, seed, labels)
    to.write(images, lambda out, quality: plots.save_images(images, out, columns, quality=quality))


@app.command
def reconstruct(
    run: Folder,
    *,
    to: To,
    num: int = 20,
    split: Split = "test",
    checkpoint: Checkpoint = "latest",
) -> None:
    """Images of a split beside the decoder's means at their posterior means, as a figure.

    Args:
        run: the run folder.
        to: where.
        num: how many, or all if there are fewer.
        split: of the data.
        checkpoint: the latest, or the best by validation.
    """
    check_counts(num=num)
    from vae_jax import generate, plots
    from vae_jax.train import load_run

    loaded = load_run(run, checkpoint)
    originals, means = generate.reconstruct(loaded, split, num)
    to.write(means, functools.partial(plots.save, plots.reconstructions(originals, means)))


@app.command
def restyle(
    run: Folder,
    *,
    source: Annotated[str, tyro.conf.arg(name="from")],
    target: Annotated[str | None, tyro.conf.arg(name="to")] = None,
    to: To,
    num: int = 10,
    split: Split = "test",
    checkpoint: Checkpoint = "latest",
) -> None:
    """Images of one class, encoded with it and decoded with another, as a figure.

    Args:
        run: the run folder of a conditional model.
        source: the images' class, by its name or number.
        target: the class to decode with; None draws all.
        to: where; files of one picture each are of the pictures decoded.
        num: how many images, or all if there are fewer.
        split: of the data.
        checkpoint: the latest, or the best by validation.
    """
    check_counts(num=num)
    from vae_jax import generate, plots
    from vae_jax.train import load_run

    loaded = load_run(run, checkpoint)
    start = generate.find_label(loaded, source)
    targets = range(len(loaded.class_names))
    if target is not None:
        targets = [start, generate.find_label(loaded, target)]
    originals, pictures = generate.restyle(loaded, split, start, targets, num)
    names = loaded.class_names
    figure = plots.restyled(originals, pictures, names[start], [names[y] for y in targets])
    to.write(pictures, functools.partial(plots.save, figure))


@app.command
def interpolate(
    run: Folder,
    *,
    to: To,
    pairs: int = 6,
    steps: int = 11,
    split: Split = "test",
    checkpoint: Checkpoint = "latest",
) -> None:
    """Decoded straight lines between the posterior means of pairs of images, as a figure.

    Args:
        run: the run folder.
        to: where.
        pairs: how many lines, or all if there are fewer.
        steps: pictures on each.
        split: where the pairs come from.
        checkpoint: the latest, or the best by validation.
    """
    check_counts(pairs=pairs, steps=steps)
    from vae_jax import generate, plots
    from vae_jax.train import load_run

    loaded = load_run(run, checkpoint)
    images = generate.interpolate(loaded, split, pairs, steps)
    to.write(images, functools.partial(plots.save, plots.interpolations(images)))


@app.command
def traverse(
    run: Folder,
    *,
    to: To,
    row: int = 0,
    steps: int = 11,
    latents: int = 10,
    split: Split = "test",
    checkpoint: Checkpoint = "latest",
) -> None:
    """One latent at a time moved from -3 to 3, the most used first, as a figure.

    Args:
        run: the run folder.
        to: where.
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
    to.write(images, functools.partial(plots.save, figure))


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
