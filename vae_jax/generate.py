"""Pictures of a run's own data: samples, reconstructions, interpolations, traversals, manifolds.

The methods of `Run` do the same for a user's own images. Images of a conditional model keep their
labels unless others are requested. `sample`, `reconstruct`, `restyle`, `interpolate` and `traverse`
are also commands of `vae-jax`: their arguments are its flags.
"""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from vae_jax.data import SplitName
from vae_jax.data.pictures import read_pictures
from vae_jax.errors import VaeJaxError
from vae_jax.fitted_priors import Quick, fitted
from vae_jax.given import Count, Index, checked
from vae_jax.interfaces import Space, latent_shape
from vae_jax.priors import StandardNormal
from vae_jax.priors.class_gaussian import ClassGaussian
from vae_jax.run import Run


@checked
def sample(
    run: Run,
    num: Count = 64,
    seed: int = 0,
    labels: Sequence[str | int] | None = None,
    prior: Quick | None = None,
    temperature: Sequence[float] | None = None,
    guidance: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """Draw z from the prior and decode it.

    Args:
        run: the trained model.
        num: the number of pictures.
        seed: the seed of the prior's draws.
        labels: classes of a conditional model, by name or number, one after the other with equal
            shares of the pictures; None takes all classes.
        prior: the family of a density to draw z from, which is fitted once to the latents of the
            training images and kept in the run folder; None draws from the model's own prior.
        temperature: the factor of the scales of a `DeepVAE`'s priors: one number, or one for each
            layer, the bottom layer first; or the temperature of a prior over codes or of GIVT; None
            keeps the prior's own.
        guidance: the weight of classifier-free guidance of a prior that `vae-jax fit-prior
            --classes` has fitted; 0 draws from p(z|y), None keeps the prior's own.
        top_k: the number of likeliest codes from which a prior over codes draws one; None keeps
            the prior's own.
        top_p: the mass of the likeliest codes from which a prior over codes draws one, above 0;
            None keeps the prior's own.

    Returns:
        Pictures `[num, H, W, C]`.

    Raises:
        VaeJaxError: there is no such class, no prior of the family fits the latents, or the model's
            prior has no such argument.
    """
    own = run if prior is None else fitted(run, prior)
    how = {"temperature": temperature, "guidance": guidance, "top_k": top_k, "top_p": top_p}
    return own.sample(num, labels=labels, seed=seed, **how)


def reconstruct_rows(
    run: Run, split: SplitName, rows: np.ndarray, top: int | None = None
) -> np.ndarray:
    """Reconstructions `[n, H, W, C]` of the images in these rows of a split.

    Args:
        run: the trained model.
        split: the split of the data.
        rows: the positions of the images in the split, `[n]`.
        top: the number of layers from the top that are encoded, as in `reconstruct`.
    """
    return run.reconstruct(run.images(split, rows), run.labels(split, rows), top=top)


@checked
def reconstruct(
    run: Run, split: SplitName = "test", num: Count = 20, top: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode images of a split, and decode their posterior means.

    Args:
        run: the trained model.
        split: the split of the data.
        num: the number of images, the first of the split, or all if there are fewer.
        top: the number of layers of a `DeepVAE` or a `SkipVAE`, from the top, that are encoded;
            those below are at the means of their priors. None encodes all.

    Returns:
        Images `[n, H, W, C]`, scaled by the protocol, and their reconstructions `[n, H, W, C]`.

    Raises:
        VaeJaxError: the split is empty, or the model has fewer layers.
    """
    run.layers_or_refuse("top", top)
    rows = np.arange(min(num, len(run.experiment.data[split])))
    if not len(rows):
        raise VaeJaxError(
            f"The {split} split of {run.experiment.data.name} has no images: choose another split."
        )
    return np.asarray(run.images(split, rows)), reconstruct_rows(run, split, rows, top)


def _carry(run: Run, z: np.ndarray, source: int, target: int) -> np.ndarray:
    """Latents moved from one class to another; unchanged if all classes share a prior."""
    model = run.experiment.model
    # The prior of a hierarchy is that of its top layer, and z belongs to the bottom one.
    if not isinstance(model.prior, ClassGaussian) or len(model.posteriors) > 1:
        return z
    params = {"params": run.seed_variables["params"]["prior"]}
    return np.asarray(model.prior.apply(params, z, source, target, method="carry"))


@checked
def restyle(
    run: Run,
    source: str | int,
    targets: Sequence[str | int] | None = None,
    split: SplitName = "test",
    num: Count = 10,
) -> tuple[np.ndarray, np.ndarray, str, list[str]]:
    """Encode images with their class and decode them with others, to separate z from y.

    If z has a Gaussian for each class, it moves from one to the other (`ClassGaussian.carry`).

    Args:
        run: a trained conditional model.
        source: the class of the images, by name or number.
        targets: the classes to decode with; None takes all.
        split: the split of the data.
        num: the number of images, the first of the class, or all if there are fewer.

    Returns:
        Images `[n, H, W, C]`, scaled by the protocol; their decodings with each of T targets,
        `[n, T, H, W, C]`; and the names of source and targets, as `plots.restyled` takes them.

    Raises:
        VaeJaxError: the model is not conditional, there is no such class, or the split has no image
            of the source.

    References:
        Kingma et al. (2014), "Semi-supervised learning with deep generative models", figure 1.
    """
    names = run.class_names
    y_source = run.find_label(source)
    y_targets = [run.find_label(target) for target in (names if targets is None else targets)]
    rows = np.flatnonzero(run.experiment.data[split].labels == y_source)[:num]
    if not len(rows):
        raise VaeJaxError(
            f"The {split} split of {run.experiment.data.name} has no image of "
            f"{names[y_source]!r}: choose another class or split."
        )
    x = run.images(split, rows)
    zs = run.posterior_means(x, y_source)
    restyled = [run.decode(tuple(_carry(run, z, y_source, y) for z in zs), y) for y in y_targets]
    return np.asarray(x), np.stack(restyled, 1), names[y_source], [names[y] for y in y_targets]


@checked
def interpolate(
    run: Run,
    split: SplitName = "test",
    pairs: Count = 6,
    points: Count = 11,
    top: int | None = None,
) -> np.ndarray:
    """Decode the shortest lines between the posterior means of pairs of images.

    Lines between real vectors are straight; those between unit vectors are great circles.

    Args:
        run: the trained model.
        split: the split that the images are from.
        pairs: the number of lines, or all if there are fewer pairs; see `pairs_of`.
        points: the number of pictures on each line.
        top: the number of layers of a `DeepVAE` or a `SkipVAE`, from the top, that the lines run
            through; those below are at the means of their priors. None takes all.

    Returns:
        Pictures `[n, points, H, W, C]`.

    Raises:
        VaeJaxError: the latents are discrete and have no lines between them, the split has no pair,
            or the model has fewer layers.
    """
    run.layers_or_refuse("top", top)
    rows = pairs_of(run, split, pairs)
    if not len(rows):
        raise VaeJaxError(
            f"The {split} split of {run.experiment.data.name} has no two images, of one class if "
            "the model has classes: interpolate in another split."
        )
    x, y = run.images(split, rows), run.labels(split, rows)
    return run.interpolate(x[::2], x[1::2], None if y is None else y[::2], points=points, top=top)


def pairs_of(run: Run, split: SplitName, pairs: int) -> np.ndarray:
    """The positions of pairs of images to interpolate between.

    Args:
        run: the trained model.
        split: the split that the images are from.
        pairs: the number of pairs, or all if there are fewer.

    Returns:
        Positions `[2 pairs]`: line i runs from entry 2i to entry 2i + 1. In a conditional model
        both images are of one class, and the classes take turns.
    """
    labels = run.experiment.data[split].labels
    if run.experiment.model.labels is None or labels is None:
        return np.arange(2 * min(pairs, len(run.experiment.data[split]) // 2))
    classes = [np.flatnonzero(labels == y) for y in np.unique(labels)]
    longest = max(map(len, classes), default=0)
    found = [
        rows[i : i + 2] for i in range(0, longest, 2) for rows in classes if len(rows) >= i + 2
    ]
    return np.concatenate([np.empty(0, int), *found[:pairs]])


def has_coordinates(run: Run) -> bool:
    """Whether the latents of a run's bottom layer are real, so that each can be moved alone."""
    return space_of(run) == "real"


def encode_pictures(
    run: Run, path: Path, labels: Sequence[str] | None, num_samples: int, seed: int
) -> dict[str, np.ndarray]:
    """The latents, bounds and names of a user's pictures.

    Args:
        run: the trained model.
        path: a folder of pictures, one of them, or an .npy file.
        labels: their classes in a conditional model; None takes their sub-folders.
        num_samples: the number of samples K of the bounds.
        seed: the seed of the samples.

    Returns:
        `z` and `std`, or `z_1`, `std_1`, ... of several layers; the values of `Run.bounds`; and
        `names` if they are not from an array.

    Raises:
        VaeJaxError: there are no pictures, or they or their labels do not fit the model.
    """
    pictures = read_pictures(path, run.experiment.data.image_shape)
    if labels is None and run.experiment.model.labels is not None:
        if not pictures.folders:
            raise VaeJaxError(
                f"{run.folder.path} is the run of a conditional model, and an array names no "
                "classes: give --labels, one for all or one for each image."
            )
        labels = pictures.folders
    q = run.encode(pictures.images, labels, seed=seed)
    bounds = run.bounds(pictures.images, labels, num_samples=num_samples, seed=seed)
    names = {"names": np.array(pictures.names)} if pictures.names else {}
    return q.named | bounds | names


def space_of(run: Run) -> Space:
    """The space of the latents of a run's bottom layer."""
    return run.experiment.model.posteriors[0].space


@checked
def traverse(
    run: Run,
    split: SplitName = "test",
    row: Index = 0,
    points: Count = 11,
    num_latents: Count = 10,
    layer: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move one latent at a time from -3 to 3, the others at the posterior mean of one image.

    Args:
        run: the trained model.
        split: the split that the image is from.
        row: the position of the image in it.
        points: the number of values of each latent.
        num_latents: the number of latents: those with the largest variance of posterior means over
            the first thousand images of the split.
        layer: the layer of a `DeepVAE` or a `SkipVAE`, counted from the bottom; None takes the top
            layer. The layers above are at the means of the image's posteriors, those below at the
            means of their priors.

    Returns:
        Pictures `[n, points, H, W, C]`, the values `[points]`, and the positions of the latents in
        the flattened z, `[n]`.

    Raises:
        VaeJaxError: the latents are not real, the split has no such row, or the model no such
            layer.
    """
    layer = run.layers_or_refuse("layer", layer)
    if not has_coordinates(run):
        raise VaeJaxError(
            f"The latents of {run.folder.path} are not real, so there is no coordinate to move "
            "along."
        )
    split_size = len(run.experiment.data[split])
    some, own = np.arange(min(1000, split_size)), np.array([row])
    means = run.posterior_means(run.images(split, some), run.labels(split, some))[layer - 1]
    dims = np.argsort(-means.var(0).ravel())[:num_latents]
    y = run.labels(split, own)
    z, *above = (each[0] for each in run.posterior_means(run.images(split, own), y)[layer - 1 :])
    values = np.linspace(-3, 3, points)
    moved = np.tile(z, (len(dims), points, *[1] * z.ndim))
    for line, position in zip(moved, dims, strict=True):
        line.reshape(points, -1)[:, position] = values
    held = (np.broadcast_to(each, (*moved.shape[:2], *each.shape)) for each in above)
    return run.decode((moved, *held), y), values, dims


def has_manifold(run: Run) -> bool:
    """Whether a run's prior is a standard normal of two latents."""
    prior = run.experiment.model.prior
    one_layer = len(run.experiment.model.posteriors) == 1
    return one_layer and isinstance(prior, StandardNormal) and latent_shape(prior.shape) == (2,)


@checked
def manifold(run: Run, n: Count, label: str | int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Decode a grid over two latents, equally spaced in prior probability.

    Args:
        run: a trained model with two latents and a standard normal prior.
        n: the number of pictures on each side.
        label: the class to decode with in a conditional model, by name or number.

    Returns:
        Pictures `[n, n, H, W, C]`, rows of ascending z_2 and columns of ascending z_1, and the
        values `[n]` of either: the inverse normal CDF of equally spaced probabilities.

    Raises:
        VaeJaxError: the prior is not a standard normal of two latents.

    References:
        Kingma & Welling (2013), "Auto-encoding variational Bayes", figure 4.
    """
    if not has_manifold(run):
        raise VaeJaxError(
            f"A manifold shows two latents with a standard normal prior, which {run.folder.path} "
            "does not have: take `traverse` or `sample`."
        )
    values = np.asarray(ndtri((jnp.arange(n) + 0.5) / n))
    z_2, z_1 = np.meshgrid(values, values, indexing="ij")
    return run.decode(np.stack([z_1, z_2], -1), label), values
