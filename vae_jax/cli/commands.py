"""The commands: each a function, whose arguments are its flags and whose docstring its help."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.extras import SubcommandApp

from vae_jax.cli.flags import (
    Checkpoint,
    DataOptions,
    Folder,
    PictureOptions,
    ProcessOptions,
    StyleOptions,
    TrainOptions,
    check_counts,
    parse,
    said_in_flags,
)
from vae_jax.errors import VaeJaxError, legible
from vae_jax.progress import Waiting

PICTURES = {
    "sample": "Decoded latents from the prior, in one picture or a file for each.",
    "reconstruct": "Images of a split beside their reconstructions.",
    "restyle": "Images of one class, encoded with it and decoded with others.",
    "interpolate": "Decoded lines between the posterior means of pairs of images.",
    "traverse": "One latent at a time moved from -3 to 3, the most active first.",
}
"""The commands that make pictures, with their descriptions in `vae-jax --help`."""

app = SubcommandApp()
data_app = SubcommandApp()
experiments_app = SubcommandApp()

File = Annotated[str, tyro.conf.Positional]
SplitName = Literal["train", "valid", "test"]
Family = Literal[
    "mixture", "flow", "vae", "autoregressive", "masked", "givt", "diffusion", "flow_matching"
]
Quantity = Literal[
    "nll",
    "neg_elbo",
    "kl",
    "kl_sampled",
    "distortion",
    "approximation_gap",
    "amortization_gap",
    "bits_per_dim",
    "active_units",
]
Unprefixed = Annotated[DataOptions, tyro.conf.arg(name="")]
Together = Annotated[ProcessOptions, tyro.conf.arg(name="")]
app.command(data_app, name="data", help="The data sets: list, prepare.")
app.command(experiments_app, name="experiments", help="The package's experiments: list, copy.")


def train_file_with_flags(name: str, flags: Sequence[str]) -> None:
    """Run `vae-jax train FILE ...`, with the `flags` of the function `experiment` in `name`.

    Raises:
        VaeJaxError: flags exclude each other, cells ended too early, or as in `train`.
    """
    from vae_jax.experiment import find_file, read_module
    from vae_jax.grid import cells_of_flags, train_grid

    file = find_file(name)
    _, module = read_module(file)
    defaults = TrainOptions(workdir=Path("runs") / file.stem), ProcessOptions(), DataOptions()
    made_by, command = module.experiment, f"train {name}"
    parsed = [parse(made_by, command, each, *defaults) for each in cells_of_flags(made_by, flags)]
    (options, processes, data, _), cells = parsed[0], [each[-1] for each in parsed]
    data.use()
    options.check(len(cells), processes.distributed)
    if options.launch is not None:
        from vae_jax.cli.launch import launch_with_flags

        return launch_with_flags(name, flags, options, cells)
    from vae_jax import parallel
    from vae_jax.compute import be_deterministic
    from vae_jax.cpu import cores
    from vae_jax.report import report_on
    from vae_jax.run.trackers import MLflow, TensorBoard, Trackers, WandB
    from vae_jax.standard_figures import plot_standard_figures
    from vae_jax.train import train_file

    if options.deterministic:
        be_deterministic()
    if not processes.distributed:  # cells that differ in anything but floats rarely share a program
        axis = {tuple(v for v in cell.values() if isinstance(v, float)) for cell in cells}
        cores.give_replicas_cores(options.seeds * len(axis))
    if options.shard is not None and len(cells) > 1:
        raise VaeJaxError(
            "--shard is for a run that is trained alone, and these flags are of a grid of "
            f"{len(cells)}: give each flag one value, or leave --shard out."
        )
    how = {"num_seeds": options.seeds, "streamed": options.streamed}
    if options.dry_run:
        from vae_jax.cli.dry_run import print_needs

        return print_needs(file, options, cells)
    how["seed"] = options.seed
    wanted = {TensorBoard: options.tensorboard, WandB: options.wandb, MLflow: options.mlflow}
    with (
        said_in_flags([*signature(made_by).parameters, "seed", "num_seeds"], flags),
        Trackers([kind for kind in wanted if wanted[kind]]) as trackers,
    ):
        with processes.together():
            if len(cells) > 1:
                how |= {"callbacks": trackers.of, "only": options.cells}
                trained = train_grid(file, options.workdir, cells, **how)
                runs = list(trained.values())
            else:
                callback = trackers.of(options.workdir)
                how["shard"] = options.shard
                runs = [train_file(file, options.workdir, cells[0], callback=callback, **how)]
        for run in runs if parallel.is_main_process() else ():
            if run.folder.is_newer_than(page := run.folder.figures / "report.html"):
                drawn = plot_standard_figures(run)
                print_paths([*drawn, report_on(run, page).path])
                figures = {f"figures/{path.stem}": path for path in drawn}
                trackers.of(run.folder.path)(int(run.state.step[0]), figures)
    if missing := (len(options.cells) or len(cells)) - len(runs):
        where = f"{missing} of the {len(cells)} cells of {options.workdir}"
        raise VaeJaxError(f"{where} ended too early, for the reasons above; others are finished.")


def is_of_a_paper(name: str) -> bool:
    """Whether `name` in `table` or `figures` is an experiment, a file or a name, no run folder."""
    if name.startswith("-"):
        return False
    from vae_jax.experiment import shipped

    return name.endswith(".py") or (name in shipped() and not Path(name).exists())


def pictures_with_flags(command: str, flags: Sequence[str]) -> None:
    """Run a command of `PICTURES`, with the `flags` of its function in `generate`."""
    from vae_jax import generate, parallel
    from vae_jax.grid import runs_of
    from vae_jax.run import load_together
    from vae_jax.standard_figures import pictures_of, save_pictures

    function = getattr(generate, command)
    every = PictureOptions, StyleOptions(), ProcessOptions()
    options, look, processes, arguments = parse(function, command, flags, *every, given=["run"])
    look.use()
    counts = ("num", "pairs", "points", "num_latents")
    check_counts(**{name: value for name, value in arguments.items() if name in counts})
    with processes.together():
        for folder in runs_of(options.run):
            with Waiting(f"Drawing from {folder}"), said_in_flags(signature(function).parameters):
                run = load_together(folder, options.checkpoint, trust=options.trust)
                images, figure, columns = pictures_of(run, command, dict(arguments))
            of_cell = "" if folder == options.run else f"-{folder.name}"
            out = options.out.with_name(options.out.stem + of_cell + options.out.suffix)
            if parallel.is_main_process():
                print_paths(save_pictures(images, figure, columns, out, options.file_quality))


@app.command
def train(file: File) -> None:
    """Train an experiment (a file, or a name), or resume it; `train FILE --help`: its flags."""
    train_file_with_flags(file, [])


@app.command(name="fit-prior")
def fit_prior(
    run: Folder,
    *,
    prior: Family,
    workdir: Path | None = None,
    network: Literal["mlp", "unet", "dit"] | None = None,
    classes: bool = False,
    num_steps: int = 20_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    checkpoint: Checkpoint = "latest",
    data: Unprefixed = DataOptions(),
    trust: bool = False,
) -> None:
    """Fit a prior to the latents of a run, or resume the fit, in its own run folder.

    Args:
        run: the run folder of the first stage, whose first seed is used.
        prior: the family of the prior.
        workdir: the run folder of the second stage (None: RUN-PRIOR).
        network: the network of diffusion or flow matching (None: mlp for vectors, unet for maps).
        classes: condition the prior (any but mixture, flow and vae) on the classes of the data;
            the first stage may have been trained without them.
        num_steps: the number of optimizer steps.
        batch_size: the number of images in a batch.
        learning_rate: the largest learning rate of Adam.
        seed: the seed.
        checkpoint: the latest checkpoint of the first stage, or the best by validation.
        data: the folders of data sets.
        trust: run the code in the run folder even if another account wrote it.

    Raises:
        VaeJaxError: no prior of the family fits the latents, or as in `train`.
    """
    data.use()
    from vae_jax import networks
    from vae_jax.fitted_priors import prior_for
    from vae_jax.run import load_run
    from vae_jax.second_stage import fit_prior as fit

    made = {"mlp": networks.AdaptiveMLP, "unet": networks.UNet, "dit": networks.DiT}
    loaded = load_run(run, checkpoint, trust=trust)
    names = loaded.experiment.data.class_names
    if classes and names is None:
        raise VaeJaxError(
            f"{loaded.experiment.data.name} has no classes: leave --classes out, or take data with "
            "labels."
        )
    of_shape = prior_for(
        loaded,
        prior,
        len(names or ()) if classes else None,
        None if network is None else made[network](),
    )
    folder = run.with_name(f"{run.name}-{prior}") if workdir is None else workdir
    how = {"num_steps": num_steps, "batch_size": batch_size, "seed": seed}
    fitted = fit(loaded, of_shape, folder, learning_rate=learning_rate, **how)
    print_paths([fitted.folder.path])


@app.command
def evaluate(
    run: Folder,
    *,
    num_samples: int = 5000,
    num_images: int | None = None,
    split: SplitName = "test",
    checkpoint: Checkpoint = "latest",
    ais_temperatures: int | None = None,
    ais_chains: int = 16,
    information: bool = False,
    gaps: bool = False,
    quality_images: int | None = None,
    features: str | None = None,
    trust: bool = False,
    processes: Together = ProcessOptions(),
) -> None:
    """Likelihood bounds, rate, distortion and active units, as a table and in evaluation.json.

    Args:
        run: the run folder, or that of a grid, whose cells are evaluated one after the other.
        num_samples: the number of samples K of the importance-weighted bound on the NLL.
        num_images: the number of images, evenly spaced over the split (None: all).
        split: the split of the data.
        checkpoint: the latest checkpoint, or the best by validation.
        ais_temperatures: also bound the NLL by annealed importance sampling through this number of
            temperatures, and that of simulated images from both sides. Slow: take few images.
        ais_chains: the number of annealed chains for each image.
        information: also divide the rate into I(x; z) and KL(q(z) || p(z)).
        gaps: also divide the ELBO's distance from ln p(x) into the approximation and the
            amortization gap, with the best q(z|x) for each image. Slow: take few images.
        quality_images: also compare this number of samples with images of the split, and training
            images with these: Fréchet and kernel distances, precision and recall; and
            reconstructions with their originals: PSNR and SSIM.
        features: a further space for --quality-images: WEIGHTS.npz of Inception-v3
            (docs/quality.md), or FILE.py:FUNCTION, from uint8 images [n, H, W, C] to features
            [n, F].
        trust: run the code in the run folder even if another account wrote it.
        processes: options for several processes, of which process 0 writes the results.

    Raises:
        VaeJaxError: a flag does not fit the model or the data, or the run cannot be opened.
    """
    check_counts(num_samples=num_samples, ais_chains=ais_chains)
    if ais_temperatures is not None:
        check_counts(ais_temperatures=ais_temperatures)
    if features is not None and quality_images is None:
        raise VaeJaxError(
            "--features is a space in which pictures are compared: say how many with "
            "--quality-images too."
        )
    from vae_jax import parallel, report
    from vae_jax.evaluation.ais import AIS
    from vae_jax.evaluation.evaluate import evaluate as evaluate_run
    from vae_jax.grid import runs_of
    from vae_jax.metrics import load_features
    from vae_jax.run import load_together

    ais = None if ais_temperatures is None else AIS(ais_temperatures, ais_chains)
    with processes.together():
        spaces = None if features is None else load_features(features)
        for folder in runs_of(run):
            start = time.perf_counter()
            loaded = load_together(folder, checkpoint, trust=trust)
            evaluation = evaluate_run(
                loaded,
                split=split,
                num_samples=num_samples,
                num_images=num_images,
                ais=ais,
                information=information,
                gaps=gaps,
                quality_images=quality_images,
                features=spaces,
            )
            seconds = time.perf_counter() - start
            if not parallel.is_main_process():
                continue
            report.show(loaded, evaluation)
            print_paths(sorted(loaded.folder.figures.glob("*.png")))
            sys.stdout.flush()  # the numbers are shown even if their record cannot be written
            report.record(loaded, evaluation, seconds)


@app.command
def encode(
    run: Folder,
    *,
    images: Path,
    out: Path,
    labels: list[str] | None = None,
    num_samples: int = 100,
    seed: int = 0,
    checkpoint: Checkpoint = "latest",
    trust: bool = False,
) -> None:
    """Latents of pictures of your own, with their NLL and KL, as arrays in an .npz file.

    Args:
        run: the run folder.
        images: a folder of pictures, one picture, or an .npy file, bytes or floats from 0 to 1
            [n, H, W, C].
        out: an .npz file of z and std, the mean and the standard deviations of q(z|x) (of several
            layers z_1, std_1, ...); nll, kl (kl_sampled if it is not exact) and distortion in
            nats; and the names of the pictures.
        labels: the classes of the pictures in a conditional model, by name or number, one for all
            or one for each (None: the names of their sub-folders).
        num_samples: the number of samples K of the importance-weighted bound on the NLL.
        seed: the seed of the samples.
        checkpoint: the latest checkpoint, or the best by validation.
        trust: run the code in the run folder even if another account wrote it.

    Raises:
        VaeJaxError: there are no pictures, or they or their labels do not fit the model.
    """
    check_counts(num_samples=num_samples)
    if out.suffix != ".npz":
        raise VaeJaxError(f"--out is {out}: it must end in .npz.")
    from vae_jax.generate import encode_pictures
    from vae_jax.run import load_run
    from vae_jax.run.arrays import save_arrays

    with Waiting(f"Encoding {images}"):
        loaded = load_run(run, checkpoint, trust=trust)
        latents = encode_pictures(loaded, images, labels, num_samples, seed)
    print_paths([save_arrays(out, latents)])


@app.command
def export(
    run: Folder,
    *,
    out: Path,
    stablehlo: bool = False,
    checkpoint: Checkpoint = "latest",
    trust: bool = False,
) -> None:
    """The parameters as arrays in a file, without executing code of the run; or whole programs.

    Args:
        run: the run folder.
        out: an .npz or .safetensors file of arrays named as params/encoder/Dense_0/kernel, those of
            several seeds `[S, ...]`; with --stablehlo a new folder.
        stablehlo: write encoder, decoder and sampler of the first seed, with its parameters, as
            programs for CPUs, CUDA and TPUs, which `jax.export.deserialize` reads without vae_jax.
        checkpoint: the latest checkpoint, or the best by validation.
        trust: with --stablehlo, run the code in the run folder even if another account wrote it.
    """
    from vae_jax.run import RunFolder, load_run, save_programs

    if stablehlo:
        with Waiting(f"Exporting {run}"):
            programs = save_programs(load_run(run, checkpoint, trust=trust), out)
        print_paths(programs)
    else:
        print_paths([RunFolder(run).export(out, checkpoint)])


@app.command
def table(
    runs: Annotated[list[Path], tyro.conf.Positional],
    *,
    rows: str | None = None,
    columns: str | None = None,
    quantity: Quantity = "nll",
    out: Path | None = None,
    results: Path | None = None,
    trust: bool = False,
) -> None:
    """The last evaluations of runs in one table, runs of equal flags as their seeds; or a paper's.

    Given an experiment (a file, or a name), train and evaluate what its table lacks: `table FILE
    --help`.

    Args:
        runs: the run folders, or those of grids, each cell of which is a run.
        rows: a flag whose values are the rows, together with --columns; otherwise each run is a
            row, with the flags in which they differ and all quantities.
        columns: a flag whose values are the columns.
        quantity: the quantity in the cells of --rows and --columns.
        out: also write the table to a .md, .tex (booktabs) or .csv file.
        results: also put a row for each run, with its commands, into a document of results.
        trust: run the runs' code, which knows published numbers, even if another account wrote it.
    """
    from vae_jax import report
    from vae_jax.evaluation.table import of_folders
    from vae_jax.grid import runs_of
    from vae_jax.report.results import write_runs

    made = of_folders(runs_of(*runs), rows, columns, quantity, trust)
    report.show_numbers(made)
    if out is not None:
        print_paths([made.write(out)])
    if results is not None:
        print_paths(write_runs(results, runs_of(*runs), trust))


@app.command
def report(
    runs: Annotated[list[Path], tyro.conf.Positional],
    *,
    out: Path = Path("report.html"),
    trust: bool = False,
) -> None:
    """One page about a run, with its numbers, curves and pictures; several runs side by side.

    Args:
        runs: the run folders, or those of grids, each cell of which is a run.
        out: an .html file, which needs no other file and makes no requests.
        trust: run a run's code, to draw missing pictures, even if another account wrote it.
    """
    from vae_jax.grid import runs_of
    from vae_jax.report import report_on

    with Waiting("Reporting"):
        page = report_on(runs_of(*runs), out, trust=trust)
    print_paths([page.path])


@app.command
def compare(runs: Annotated[list[Path], tyro.conf.Positional]) -> None:
    """The differences between runs, and their numbers, side by side.

    Args:
        runs: the run folders, or those of grids, each cell of which is a run.
    """
    from vae_jax import report
    from vae_jax.grid import runs_of

    report.show_numbers(report.compared(runs_of(*runs)))


@app.command(name="list")
def list_runs(folder: Annotated[Path, tyro.conf.Positional] = Path("runs")) -> None:
    """List the runs in a folder and below it, with the progress of each.

    Args:
        folder: the folder to search.
    """
    from vae_jax import report
    from vae_jax.evaluation.table import runs_in

    report.show_numbers(runs_in(folder))


@app.command
def figures(
    runs: Annotated[list[Path], tyro.conf.Positional],
    *,
    checkpoint: Checkpoint = "latest",
    look: Annotated[StyleOptions, tyro.conf.arg(name="")] = StyleOptions(),
    trust: bool = False,
) -> None:
    """The figures that training draws at its end, in the runs' figures/ folders; or a paper's.

    Given an experiment (a file, or a name), draw its figures, training what is missing: `figures
    FILE --help`.

    Args:
        runs: the run folders, or those of grids, each cell of which is a run.
        checkpoint: the latest checkpoint, or the best by validation.
        look: the look of the figures.
        trust: run the code in the run folders even if another account wrote it.

    Raises:
        VaeJaxError: a folder is neither that of a run nor that of a grid, or cannot be opened.
    """
    from vae_jax.grid import is_run, runs_of
    from vae_jax.run import load_run
    from vae_jax.standard_figures import plot_standard_figures

    look.use()
    for folder in runs_of(*runs):
        if not is_run(folder):
            raise VaeJaxError(
                f"{folder} is neither a run folder nor that of a grid: give one that `vae-jax "
                "list` shows, or an experiment, by its file or by a name of `vae-jax experiments`."
            )
        print_paths(plot_standard_figures(load_run(folder, checkpoint, trust=trust)))


def _in_overview() -> None:
    """Stand for each command of `PICTURES`, which `main` runs, in the overview of commands."""


for _command, _help in PICTURES.items():
    app.command(name=_command, help=_help)(_in_overview)


@data_app.command(name="list")
def data_list(options: Unprefixed = DataOptions()) -> None:
    """List the data sets known by name, and which are prepared."""
    options.use()
    from vae_jax import report

    report.show_datasets()


@data_app.command(name="prepare")
def data_prepare(
    name: Annotated[str, tyro.conf.Positional],
    options: Unprefixed = DataOptions(),
    *,
    size: int | None = None,
    verify: bool = False,
) -> None:
    """Prepare a data set with TFDS, once.

    Args:
        name: the name that `vae-jax data list` prints, or tfds:NAME or tfds:NAME/CONFIG, that of
            any image data set of TFDS.
        options: the folders of data sets.
        size: the side of images of tfds:NAME, cut to squares and resized (None: 64).
        verify: if it is already prepared, check every byte, even in files that seem untouched.
    """
    options.use()
    from vae_jax.data import prepare

    prepare(name, size=size, verify=verify)


@experiments_app.command(name="list")
def experiments_list() -> None:
    """List the experiments that come with the package, each of which `train` takes by name."""
    from vae_jax.experiment import summaries

    for name, summary in summaries().items():
        print(f"{name:20}{summary}")


@experiments_app.command(name="copy")
def experiments_copy(
    name: Annotated[str, tyro.conf.Positional], folder: Annotated[Path, tyro.conf.Positional]
) -> None:
    """Copy an experiment of the package into FOLDER, to change it.

    Args:
        name: the name that `vae-jax experiments list` prints.
        folder: the folder for the copy; an existing file of its name is left as it is.
    """
    from vae_jax.experiment import copy_file

    print_paths([copy_file(name, folder)])


def print_paths(paths: Sequence[Path]) -> None:
    """Print `paths`, one on each line: legible on a terminal, unchanged in a pipe."""
    for path in paths:
        if sys.stdout.isatty() or not hasattr(sys.stdout, "buffer"):  # as in a notebook
            print(legible(path))
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(os.fsencode(path) + b"\n")
