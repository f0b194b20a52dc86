"""The standard figures of a run, drawn when its training ends."""

import shutil
from pathlib import Path

import numpy as np

from vae_jax import generate, plots
from vae_jax.compatibility import has_bound
from vae_jax.run import Run


def curves(run: Run, names: dict[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label -> (steps `[T]`, values `[T, S]`) of the metrics that go by those names."""
    found = {}
    for label, name in names.items():
        lines = [line for line in run.folder.read_metrics() if name in line]
        if lines:
            # null, where nothing was finite, becomes nan
            values = np.array([line[name] for line in lines], dtype=float)
            found[label] = np.array([line["step"] for line in lines]), values
    return found


def bound_curves(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The negative ELBO in training and validation; without one, the distortion."""
    quantity = "neg_elbo" if has_bound(run.experiment.model) else "distortion"
    return curves(run, {"train": quantity, "valid": f"valid_{quantity}"})


def draw(run: Run) -> list[Path]:
    """Draws what the model allows into the run's folder; shows validation images, never test ones.

    Returns:
        Paths of the figures.
    """
    data = run.experiment.data
    split = "valid" if len(data.valid) else "train"
    shown = len(getattr(data, split))
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
        "samples": plots.image_grid(
            generate.sample(run, 100), columns=10, title="p(x|z) means, z from the prior"
        ),
        "reconstructions": plots.reconstructions(
            *generate.reconstruct(run, split, min(20, shown)), title=name
        ),
    }
    if generate.space_of(run) in ("real", "sphere"):
        pairs = min(6, shown // 2)
        drawn["interpolations"] = plots.interpolations(generate.interpolate(run, split, pairs, 11))
    if generate.has_coordinates(run):
        images, values, dims = generate.traverse(run, split, 0, 11, 10)
        drawn["traversals"] = plots.traversals(images, values, [f"$z_{{{d + 1}}}$" for d in dims])
    rows = np.arange(min(5000, shown))
    z = np.asarray(generate.posterior_means(run, generate.images_of(run, split, rows)))
    if generate.has_coordinates(run) and z.shape[1:] == (2,):
        labels = getattr(data, split).labels
        drawn["latents"] = plots.latent_scatter(z, None if labels is None else labels[rows])
        drawn["manifold"] = plots.manifold(*generate.manifold(run, 20))
    partial = run.folder.figures.with_name("figures.partial")
    for name, figure in drawn.items():
        plots.save(figure, partial / f"{name}.png")
    shutil.rmtree(run.folder.figures, ignore_errors=True)
    partial.rename(run.folder.figures)
    return [run.folder.figures / f"{name}.png" for name in drawn]
