"""The figures of a run: the standard ones, plotted when training ends, and those of commands."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vae_jax import generate, plots, storage
from vae_jax.progress import Waiting
from vae_jax.run import Run
from vae_jax.vae import has_bound

SHOWN_CLASSES = 20


def metric_curves(run: Run, names: dict[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curves of logged metrics, by label: steps `[T]` and values `[T, S]`.

    Args:
        run: the run.
        names: the names of metrics by the labels that a figure gives them.
    """
    found = {label: run.metric(name) for label, name in names.items()}
    return {label: curve for label, curve in found.items() if len(curve[0])}


def bound_curves(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A run's negative ELBO in training and validation, or distortion if there is no bound."""
    quantity = "neg_elbo" if has_bound(run.experiment.model) else "distortion"
    return metric_curves(run, {"train": quantity, "valid": f"valid_{quantity}"})


def samples(run: Run) -> Figure:
    """A hundred samples of a run; for a conditional model a row of ten for each named class."""
    title = "pictures of p(x|z), z from the prior"
    if run.experiment.model.labels is None:
        return plots.image_grid(generate.sample(run, 100), columns=10, title=title)
    names = run.class_names[:SHOWN_CLASSES]
    images = generate.sample(run, 10 * len(names), labels=range(len(names)))
    return plots.named_rows(images.reshape(-1, 10, *images.shape[1:]), names, title)


def pictures_of(
    run: Run, command: str, arguments: dict[str, Any]
) -> tuple[np.ndarray, Figure | None, int | None]:
    """The pictures of a command that makes pictures.

    Args:
        run: the run.
        command: the name of the command, a function of `generate`.
        arguments: the arguments of that function.

    Returns:
        Pictures `[..., H, W, C]`, and a figure of them, or the columns of their grid (None: any).
    """
    match command:
        case "reconstruct":
            originals, images = generate.reconstruct(run, **arguments)
            return images, plots.reconstructions(originals, images), None
        case "restyle":
            originals, images, source, targets = generate.restyle(run, **arguments)
            return images, plots.restyled(originals, images, source, targets), None
        case "interpolate":
            images = generate.interpolate(run, **arguments)
            return images, plots.interpolations(images), None
        case "traverse":
            images, values, latents = generate.traverse(run, **arguments)
            return images, plots.traversals(images, values, latents), None
    if run.experiment.model.labels is None:
        return generate.sample(run, **arguments), None, None
    classes = len(arguments["labels"] or run.class_names)
    columns = max(1, arguments["num"] // classes)  # a row for each class
    arguments["num"] = columns * classes
    images = generate.sample(run, **arguments)
    return images, None, columns if classes > 1 else None


def standard_figures(run: Run) -> dict[str, Callable[[], Figure]]:
    """The figures that a run's model allows, by file name; none shows test images."""
    data = run.experiment.data
    split = "valid" if len(data.valid) else "train"
    name = plots.plain(f"{data.name}, {split} split")
    quantity = "negative ELBO" if has_bound(run.experiment.model) else "distortion"
    curves = bound_curves(run)
    if not curves:  # an objective may report nothing but its loss
        quantity, curves = "loss", metric_curves(run, {"train": "loss"})
    parts = {"distortion": "distortion", "rate": "kl_sampled"}
    panels = {part: metric_curves(run, {"train": name}) for part, name in parts.items()}
    figures: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: plots.learning_curves(
            curves, ylabel=f"{quantity} [nats per image]"
        )
    }
    if all(panels.values()):
        figures["rate_and_distortion"] = lambda: plots.learning_panels(panels)
    figures["samples"] = lambda: samples(run)
    if not len(data[split]):  # the run is open without its data
        return figures
    figures["reconstructions"] = lambda: plots.reconstructions(
        *generate.reconstruct(run, split), title=name
    )
    labels = data[split].labels
    if run.experiment.model.labels is not None and labels is not None:
        source, targets = int(labels[0]), run.class_names[:SHOWN_CLASSES]
        figures["restyled"] = lambda: plots.restyled(*generate.restyle(run, source, targets, split))
    if generate.space_of(run) in ("real", "sphere") and len(generate.pairs_of(run, split, 1)):
        figures["interpolations"] = lambda: plots.interpolations(generate.interpolate(run, split))
    if generate.has_coordinates(run):
        figures["traversals"] = lambda: plots.traversals(*generate.traverse(run, split))
    rows = np.arange(min(5000, len(data[split])))
    x, y = run.images(split, rows), run.labels(split, rows)
    z = run.posterior_means(x, y)[0]
    if generate.has_coordinates(run) and z.shape[1:] == (2,):
        classes = None if labels is None else labels[rows]
        figures["latents"] = lambda: plots.latent_scatter(z, classes, data.class_names)
    if generate.has_manifold(run):
        label = None if y is None else 0
        figures["manifold"] = lambda: plots.manifold(*generate.manifold(run, 20, label))
    return figures


def plot_standard_figures(run: Run) -> list[Path]:
    """Plot the standard figures of a run into its folder.

    A new folder appears when all are plotted; in an old one each replaces its predecessor.

    Returns:
        The paths of the figures.
    """
    figures = standard_figures(run)
    folder = run.folder.figures
    whole = nullcontext(folder) if folder.exists() else storage.whole_folder(folder)
    with storage.writing(folder), whole as made, Waiting(f"Drawing figures of {run.folder.path}"):
        for name, draw in figures.items():
            plots.save(draw(), made / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def save_pictures(
    images: np.ndarray,
    figure: Figure | None,
    columns: int | None,
    out: Path,
    file_quality: int | None,
) -> list[Path]:
    """Save the result of `pictures_of`.

    Args:
        images: the pictures `[..., H, W, C]`.
        figure: the figure of them, or None for a plain grid.
        columns: the number of columns of the grid (None: any).
        out: the file; {} in its name numbers files of one picture each.
        file_quality: the quality of a .jpg or .webp, or None.

    Returns:
        The paths of the files.
    """
    if "{}" in out.name:
        return plots.save_each(images.reshape(-1, *images.shape[-3:]), out, file_quality)
    if figure is None and out.suffix.lower() in plots.VECTOR:
        figure = plots.image_grid(images, columns)
    if figure is None:
        return [plots.save_images(images, out, columns, file_quality)]
    return [plots.save(figure, out, file_quality)]
