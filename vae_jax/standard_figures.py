"""The standard figures of a run, drawn when its training ends."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vae_jax import generate, plots, storage
from vae_jax.interfaces import has_bound
from vae_jax.run import Run

SHOWN_CLASSES = 20


def curves(run: Run, names: dict[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label -> (steps `[T]`, values `[T, S]`) of the metrics with those names that were logged."""
    found = {label: run.metric(name) for label, name in names.items()}
    return {label: curve for label, curve in found.items() if len(curve[0])}


def bound_curves(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The negative ELBO in training and validation; without one, the distortion."""
    quantity = "neg_elbo" if has_bound(run.experiment.model) else "distortion"
    return curves(run, {"train": quantity, "valid": f"valid_{quantity}"})


def samples(run: Run) -> Figure:
    """A hundred samples; of a conditional model ten of each class, in a row with its name."""
    title = "p(x|z) means, z from the prior"
    if run.experiment.model.labels is None:
        return plots.image_grid(generate.sample(run, 100), columns=10, title=title)
    names = run.class_names[:SHOWN_CLASSES]
    labels = np.repeat(np.arange(len(names)), 10)
    images = generate.sample(run, len(labels), labels=labels)
    return plots.named_rows(images.reshape(-1, 10, *images.shape[1:]), names, title)


def draw(run: Run) -> list[Path]:
    """Draws what the model allows into the run's folder; shows validation images, never test ones.

    A new folder appears when all are drawn; in an old one each takes the place of its predecessor.

    Returns:
        Paths of the figures.
    """
    data = run.experiment.data
    split = "valid" if len(data.valid) else "train"
    name = f"{data.name}, {split} split"
    quantity = "negative ELBO" if has_bound(run.experiment.model) else "distortion"
    drawn = {
        "learning_curves": plots.learning_curves(
            bound_curves(run), ylabel=f"{quantity} [nats per image]"
        ),
        "rate_and_distortion": plots.learning_curves(
            curves(run, {"train distortion": "distortion", "train rate": "kl_sampled"}),
            ylabel="nats per image",
        ),
        "samples": samples(run),
        "reconstructions": plots.reconstructions(*generate.reconstruct(run, split, 20), title=name),
    }
    if run.experiment.model.labels is not None:
        names = run.class_names
        source, targets = int(getattr(data, split).labels[0]), range(len(names))[:SHOWN_CLASSES]
        images = generate.restyle(run, split, source, targets, 10)
        drawn["restyled"] = plots.restyled(*images, names[source], names[:SHOWN_CLASSES])
    if generate.space_of(run) in ("real", "sphere") and len(generate.pairs_of(run, split, 1)):
        drawn["interpolations"] = plots.interpolations(generate.interpolate(run, split, 6, 11))
    if generate.has_coordinates(run):
        images, values, dims = generate.traverse(run, split, 0, 11, 10)
        drawn["traversals"] = plots.traversals(images, values, [f"$z_{{{d + 1}}}$" for d in dims])
    rows = np.arange(min(5000, len(getattr(data, split))))
    x, y = run.images(split, rows), run.labels(split, rows)
    z = np.asarray(generate.posterior_means(run, x, y))
    if generate.has_coordinates(run) and z.shape[1:] == (2,):
        labels = getattr(data, split).labels
        drawn["latents"] = plots.latent_scatter(
            z, None if labels is None else labels[rows], data.class_names
        )
        drawn["manifold"] = plots.manifold(*generate.manifold(run, 20, None if y is None else 0))
    folder = run.folder.figures
    whole = nullcontext(folder) if folder.exists() else storage.whole_folder(folder)
    with storage.writing(folder), whole as made:
        for name, figure in drawn.items():
            plots.save(figure, made / f"{name}.png")
    return [folder / f"{name}.png" for name in drawn]
