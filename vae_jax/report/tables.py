"""Tables for the terminal, the record of their numbers, and the meaning of each."""

import dataclasses
import datetime
import math
import shlex
import sys
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vae_jax import parallel, storage
from vae_jax.data import list_datasets
from vae_jax.errors import VaeJaxError, legible
from vae_jax.evaluation.ais import AIS
from vae_jax.evaluation.evaluate import Evaluation, over_seeds
from vae_jax.evaluation.table import Table as Numbers
from vae_jax.metrics import Estimate, Quality, Score
from vae_jax.run import Record, Run, RunFolder, jsonable


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 110).print(table)


MEANINGS = {
    "neg_elbo": "An upper bound on -ln p(x), the nats that an image costs: rate + distortion.",
    "nll": "A tighter upper bound on -ln p(x), from K samples of q(z|x); tighter as K grows.",
    "nll_ais": "An upper bound on -ln p(x), from samples annealed from the prior to p(z|x).",
    "simulated_nll_upper": "An upper bound on -ln p(x) of images that the model drew itself.",
    "simulated_nll_lower": "A lower bound for the same images: the truth lies between the two.",
    "ais_acceptance": "The share of annealed moves that were accepted; about 0.65 is best.",
    "kl": "What the latents of an image carry: the nats by which q(z|x) departs from the prior.",
    "kl_sampled": "The same, estimated from samples of q(z|x).",
    "mutual_information": "The part of the rate that tells images apart.",
    "marginal_kl": "The rest: how far the latents of all images together are from the prior.",
    "distortion": "The cost of an image given its latents.",
    "approximation_gap": "What the ELBO loses because the family of q(z|x) is too small.",
    "amortization_gap": "What it loses because the encoder misses the best q(z|x) of an image.",
    "rates": "The rate of each layer of latents.",
    "none": "Nothing bounds the likelihood of this model: compare the distortion.",
    "bits_per_dim": "The NLL over the number of values in an image, in bits.",
    "active_units": "Latents whose posterior mean varies over images, by a variance above 0.01.",
    "codebook_use": "The share of all codes that occur in some image.",
    "codebook_perplexity": "The number of codes, all used alike, that would have the same entropy.",
    "frechet": "The distance between Gaussians fitted to the features; smaller is better.",
    "kernel": "A distance between the features' distributions, unbiased; smaller is better.",
    "precision": "The share of samples that lie among the real images.",
    "recall": "The share of real images that lie among the samples.",
    "rfrechet": "The Fréchet distance of reconstructions from their originals; smaller is better.",
    "psnr": "How close reconstructions are, pixel by pixel; larger is better.",
    "ssim": "How alike reconstructions look in light, contrast and structure; 1 is the same.",
}
"""The meaning of each quantity of an evaluation, in a sentence."""

QUALITIES = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "rfrechet": "Fréchet distance, learned",
    "psnr": "PSNR [dB]",
    "ssim": "SSIM",
}


class Row(NamedTuple):
    """A measured quantity in words.

    Attributes:
        label: its name.
        value: its value, with its error.
        unit: its unit; empty if it has none.
        meaning: its meaning, in a sentence.
    """

    label: str
    value: str
    unit: str
    meaning: str


def rows_of(evaluation: Evaluation) -> list[Row]:
    """The quantities of an evaluation in words."""
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
    rows: list[Row] = []

    def add(name: str, label: str, value: str, unit: str) -> None:
        rows.append(Row(label, value, unit, MEANINGS[name]))

    for name, label in names.items():
        if name in evaluation.mean:
            value = over_seeds(evaluation.mean[name], evaluation.standard_error[name])
            add(name, label, value, "" if name == "ais_acceptance" else "nats")
    if layers := rates_of(evaluation):
        rates = " + ".join(f"{rate:.2f}" for rate in layers)
        add("rates", "rate of each layer, z_1 first", rates, "nats")
    if "nll" not in evaluation.mean:
        add("none", "NLL", "none: q(z|x) has no density, or p(x|z) is not normalized", "")
    if evaluation.bits_per_dim is not None:
        add("bits_per_dim", "NLL", over_seeds(evaluation.bits_per_dim), "bits/dim")
    active = " + ".join(map(_units, evaluation.active_units))
    add("active_units", "active units", active, "")
    for name, label in {
        "use": "codes in use, a share",
        "perplexity": "perplexity of codes",
    }.items():
        if (values := evaluation.codebook.get(f"codebook_{name}")) is not None:
            add(f"codebook_{name}", label, over_seeds(values), "")
    return rows


def rates_of(evaluation: Evaluation) -> list[float]:
    """The rate of each of several layers, the bottom layer first, the mean over seeds, in nats."""
    layers = sum(name.startswith("rate_z") for name in evaluation.mean)
    return [float(evaluation.mean[f"rate_z{layer + 1}"].mean()) for layer in range(layers)]


def _units(units: np.ndarray) -> str:
    if np.isnan(units).any():
        return "unknown from one sample (take --num-samples 2 or more)"
    return f"{units[0]:.0f}" if len(units) == 1 else f"{units.mean():.1f}"


def show(run: Run, evaluation: Evaluation) -> None:
    """Print an evaluation of a run as a table."""
    title = Text(legible(f"{run.folder.path}: {evaluation.checkpoint}"))
    table = Table(title=title, title_justify="left")
    for column in ("", "mean over images", ""):
        table.add_column(column)
    for row in rows_of(evaluation):
        table.add_row(*map(Text, row[:3]))
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
    table = Table(title="Quality of the pictures [95 % interval]", title_justify="left")
    for column in ("features", "", "model", "training images: the floor"):
        table.add_column(column)
    for score in quality.scores:
        values = _interval(score.samples), _interval(score.training)
        table.add_row(*map(Text, (score.space, QUALITIES[score.name], *values)))
    for name, estimate in quality.reconstruction.items():
        table.add_row(*map(Text, ("reconstruction", QUALITIES[name], _interval(estimate), "")))
    table.caption = f"{quality.num_images:,} images in each set; first seed."
    if any(math.isnan(score.samples.low) for score in quality.scores):
        table.caption += (
            " [none]: fewer images than twice the features, so the Fréchet distance is biased; "
            "take more with --quality-images, or the kernel distance, which has no bias."
        )
    return table


def quality_rows(quality: Quality) -> list[Row]:
    """The scores in words, each with that of training images, the floor."""
    rows = [
        Row(
            f"{QUALITIES[score.name]}, {score.space}",
            f"{_interval(score.samples)}; training images {_interval(score.training)}",
            "",
            MEANINGS[score.name],
        )
        for score in quality.scores
    ]
    return rows + [
        Row(f"{QUALITIES[name]} of reconstructions", _interval(estimate), "", MEANINGS[name])
        for name, estimate in quality.reconstruction.items()
    ]


def record(run: Run, evaluation: Evaluation, seconds: float) -> None:
    """Add the numbers to evaluation.json, with the command that printed them.

    Args:
        run: the run.
        evaluation: the results.
        seconds: the duration of the evaluation.
    """
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
            "codebook": {name: jsonable(v) for name, v in evaluation.codebook.items()},
            "bits_per_dim": None
            if evaluation.bits_per_dim is None
            else jsonable(evaluation.bits_per_dim),
            "quality": None
            if evaluation.quality is None
            else jax.tree.map(jsonable, dataclasses.asdict(evaluation.quality)),
        }
    )


def recorded(folder: RunFolder) -> list[Evaluation]:
    """The evaluations that `record` added to evaluation.json of a folder, the oldest first.

    Raises:
        VaeJaxError: the file is damaged.
    """
    if not folder.evaluation.exists():
        return []
    try:
        return [_evaluation_of(entry) for entry in storage.read_json(folder.evaluation, list)]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise VaeJaxError(
            f"{folder.evaluation} is damaged ({error!r}): evaluate the run again."
        ) from error


def _evaluation_of(entry: Record) -> Evaluation:
    """The evaluation in an entry of `record`, with nan for null."""

    def arrays(values: Record) -> dict[str, np.ndarray]:
        return {name: np.atleast_1d(np.array(value, float)) for name, value in values.items()}

    ais, quality = entry.get("ais"), entry.get("quality")
    bits = entry["bits_per_dim"]
    return Evaluation(
        data=str(entry["data"]),
        checkpoint=str(entry.get("checkpoint", "latest")),
        num_samples=int(entry["num_samples"]),
        num_images=int(entry["num_images"]),
        ais=None if ais is None else AIS(**ais),
        mean=arrays(entry["mean"]),
        standard_error=arrays(entry["standard_error"]),
        active_units=[np.atleast_1d(np.array(each, float)) for each in entry["active_units"]],
        codebook=arrays(entry.get("codebook", {})),
        bits_per_dim=None if bits is None else np.atleast_1d(np.array(bits, float)),
        quality=None if quality is None else _quality_of(quality),
    )


def _quality_of(entry: Record) -> Quality:
    def estimate(values: Record) -> Estimate:
        return Estimate(**{name: float(np.array(value, float)) for name, value in values.items()})

    return Quality(
        num_images=int(entry["num_images"]),
        scores=[
            Score(
                str(score["space"]),
                str(score["name"]),
                estimate(score["samples"]),
                estimate(score["training"]),
            )
            for score in entry["scores"]
        ],
        reconstruction={name: estimate(values) for name, values in entry["reconstruction"].items()},
    )


def show_numbers(numbers: Numbers) -> None:
    """Print the table `numbers` of several runs."""
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
