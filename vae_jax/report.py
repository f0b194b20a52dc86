"""Tables for the terminal, and the record of what they showed."""

import dataclasses
import datetime
import math
import shlex
import sys

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vae_jax import parallel
from vae_jax.data import list_datasets
from vae_jax.errors import legible
from vae_jax.evaluation.evaluate import Evaluation, over_seeds
from vae_jax.evaluation.table import Table as Numbers
from vae_jax.metrics import Estimate, Quality
from vae_jax.run import Run, jsonable


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def rows_of(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """The name, the value and the unit of each quantity."""
    names = {
        "neg_elbo": "negative ELBO",
        "nll": f"NLL, importance-weighted bound, K = {evaluation.num_samples}",
        "nll_ais": f"NLL, annealed bound, {evaluation.ais}",
        "simulated_nll_upper": "NLL of simulated images, at most",
        "simulated_nll_lower": "NLL of simulated images, at least",
        "ais_acceptance": "acceptance of annealed transitions",
        "kl": "rate, exact KL(q(z|x) || p(z))",
        "kl_sampled": "rate, sampled",
        "mutual_information": f"mutual information I(x; z) of {evaluation.num_images:,} images",
        "marginal_kl": "KL(q(z) || p(z)) of the aggregated posterior",
        "distortion": "distortion, -E_q[ln p(x|z)]",
        "approximation_gap": "approximation gap, ln p(x) - L[q*]",
        "amortization_gap": "amortization gap, L[q*] - L[q]",
    }
    rows = [
        (
            label,
            over_seeds(evaluation.mean[name], evaluation.standard_error[name]),
            "" if name == "ais_acceptance" else "nats",
        )
        for name, label in names.items()
        if name in evaluation.mean
    ]
    layers = [name for name in evaluation.mean if name.startswith("rate_z")]
    if layers:
        rates = " + ".join(f"{evaluation.mean[name].mean():.2f}" for name in layers)
        rows.append(("rate of each layer, z_1 first", rates, "nats"))
    if "nll" not in evaluation.mean:
        rows.append(("NLL", "none: q(z|x) has no density, or p(x|z) is not normalized", ""))
    if evaluation.bits_per_dim is not None:
        rows.append(("NLL", over_seeds(evaluation.bits_per_dim), "bits/dim"))
    active = " + ".join(map(_units, evaluation.active_units))
    return [*rows, ("active units", active, "")]


def _units(units: np.ndarray) -> str:
    if np.isnan(units).any():
        return "unknown from one sample (take --num-samples 2 or more)"
    return f"{units[0]:.0f}" if len(units) == 1 else f"{units.mean():.1f}"


def show(run: Run, evaluation: Evaluation) -> None:
    """Print an evaluation as a table."""
    title = Text(legible(f"{run.folder.path}: {evaluation.checkpoint}"))
    table = Table(title=title, title_justify="left")
    for column in ("", "mean over images", ""):
        table.add_column(column)
    for row in rows_of(evaluation):
        table.add_row(*map(Text, row))
    speed = (run.folder.read_summary() or {}).get("images_per_second")
    if isinstance(speed, int | float):
        table.add_row("training speed", f"{speed:,.0f}", "images/s")
    table.caption = Text(legible(f"{evaluation.num_images:,} images. {evaluation.data}."))
    _print(table)
    if evaluation.quality is not None:
        _print(quality_table(evaluation.quality))


def _interval(estimate: Estimate) -> str:
    """A value with its 95 % confidence interval, if it has one."""
    digits = ".3f" if abs(estimate.value) < 100 else ",.0f"
    if math.isnan(estimate.low):
        return f"{estimate.value:{digits}} [none]"
    value, low, high = (
        format(each, digits) for each in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def quality_table(quality: Quality) -> Table:
    """A table of the samples' scores beside those of training images, then the reconstructions."""
    names = {
        "frechet": "Fréchet distance",
        "kernel": "kernel distance",
        "precision": "precision",
        "recall": "recall",
        "psnr": "PSNR [dB]",
        "ssim": "SSIM",
    }
    table = Table(title="Quality of the pictures [95 % interval]", title_justify="left")
    for column in ("features", "", "model", "training images: the floor"):
        table.add_column(column)
    for score in quality.scores:
        values = _interval(score.samples), _interval(score.training)
        table.add_row(*map(Text, (score.space, names[score.name], *values)))
    for name, estimate in quality.reconstruction.items():
        table.add_row(*map(Text, ("reconstruction", names[name], _interval(estimate), "")))
    table.caption = f"{quality.num_images:,} images in each set; first seed."
    if any(math.isnan(score.samples.low) for score in quality.scores):
        table.caption += (
            " [none]: fewer images than twice the features, so the Fréchet distance is biased; "
            "take more with --quality-images, or the kernel distance, which has no bias."
        )
    return table


def record(run: Run, evaluation: Evaluation, seconds: float) -> None:
    """Add the numbers to evaluation.json, with the command that printed them."""
    run.folder.append_evaluation(
        {
            "command": shlex.join(["vae-jax", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "devices": parallel.describe_devices(),
            "data": evaluation.data,
            "checkpoint": evaluation.checkpoint,
            "num_samples": evaluation.num_samples,
            "num_images": evaluation.num_images,
            "ais": None if evaluation.ais is None else dataclasses.asdict(evaluation.ais),
            "mean": {name: jsonable(v) for name, v in evaluation.mean.items()},
            "standard_error": {name: jsonable(v) for name, v in evaluation.standard_error.items()},
            "active_units": [jsonable(units) for units in evaluation.active_units],
            "bits_per_dim": None
            if evaluation.bits_per_dim is None
            else jsonable(evaluation.bits_per_dim),
            "quality": None
            if evaluation.quality is None
            else jax.tree.map(jsonable, dataclasses.asdict(evaluation.quality)),
        }
    )


def show_numbers(numbers: Numbers) -> None:
    """Print a table of several runs."""
    table = Table(caption=numbers.caption, caption_justify="left")
    for column, cells in zip(numbers.header, zip(*numbers.rows, strict=True), strict=True):
        numeric = not any(isinstance(cell, str) and cell for cell in cells)
        table.add_column(Text(column), justify="right" if numeric else "left")
    for row in numbers.rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    _print(table)


def show_datasets() -> None:
    """Print the data sets known by name."""
    table = Table()
    for column in (
        "name",
        "train / valid / test",
        "image",
        "prepared",
        "files, if TFDS cannot load",
    ):
        table.add_column(column)
    for listing in list_datasets():
        source = listing.source
        table.add_row(
            source.name,
            " / ".join(f"{size:,}" for size in listing.sizes.values()),
            "x".join(map(str, source.image_shape)),
            "yes" if listing.prepared else "no",
            "\n".join(source.manual_files),
        )
    _print(table)
