"""Pictures from a trained model: samples, reconstructions, interpolations, traversals, manifolds.

Every function shows the first seed of a `Run` and returns means of p(x|z), floats in [0, 1]; where
pixels depend on each other, draws from p(x|z) instead. Images of a conditional model keep their
labels unless others are asked for. `vae-jax` makes a command of `sample`, `reconstruct`, `restyle`,
`interpolate` and `traverse`: their arguments are its flags.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri
from numpy.typing import ArrayLike

from vae_jax import parallel, random
from vae_jax.conditional import ClassGaussian
from vae_jax.data import SplitName
from vae_jax.deep import DeepVAE
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.fitted_priors import Family, fitted
from vae_jax.given import Count, Index, checked
from vae_jax.interfaces import Layers, Space
from vae_jax.run import Run

PICTURES_AT_ONCE = 500


def _apply(run: Run, method: str, *arguments: object) -> Any:
    """A method of the model, compiled, with the variables of the run's first seed."""
    model, variables = run.experiment.model, run.seed_variables
    model.admit(variables, method, arguments, {})  # values, which a compiled program cannot look at
    return parallel.jit(partial(model.apply, method=method))(variables, *arguments)


_draw_pixels = parallel.jit(lambda px, keys: px.sample(keys))


def _pictures(px: Distribution, seed: int = 0, first: int = 0) -> np.ndarray:
    if px.mean_is_picture:
        values = px.mean
    else:
        key = random.indexed(random.purpose(random.key(seed), "pixels"), first)
        values = _draw_pixels(px, random.draw_keys(key, (), px.batch_shape))
    # The mean of a Gaussian that is not squashed can lie outside the range of a picture.
    return np.clip(np.asarray(values), 0.0, 1.0)


def find_label(run: Run, label: str | int) -> int:
    """Find the number of a class by its name, or by the number itself.

    Raises:
        VaeJaxError: the model is not conditional, or has no such class; the sentence names those
            that it has.
    """
    names = run.class_names
    if label in names:
        return names.index(str(label))
    if str(label).isdecimal() and int(label) < len(names):
        return int(label)
    raise VaeJaxError(
        f"{run.experiment.data.name} has no class '{label}': choose one of {', '.join(names)}."
    )


def space_of(run: Run) -> Space:
    """The space that the latents of the bottom layer live in."""
    return run.experiment.model.posteriors[0].space


def posterior_means(run: Run, x: Array | np.ndarray, labels: ArrayLike | None = None) -> Layers:
    """E_q[z] of every layer that pictures are decoded from, in the space that z lives in.

    That is the mean's direction for unit vectors, and the likeliest vector for one-hot ones. The
    layers are all those of a `DeepVAE`, `[n, h, w, c]`, the bottom layer first, and the bottom
    layer alone of any other model, `[n, *event]`.

    Args:
        run: the trained model.
        x: images `[n, H, W, C]`: bytes, or floats as the data set's protocol makes them.
        labels: the labels `[n]` of the images in a conditional model, or `[1]`, one for all.

    Raises:
        VaeJaxError: images or labels do not fit the model.
    """
    means: Layers = _apply(run, "infer", run.observed(x), run.classes(labels))
    match space_of(run):
        case "sphere":
            return tuple(z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in means)
        case "onehot":
            return tuple(jax.nn.one_hot(z.argmax(-1), z.shape[-1]) for z in means)
    return means


def decode_means(run: Run, zs: Layers, labels: ArrayLike | None = None) -> np.ndarray:
    """Means of p(x|z) for latents `[..., *event]`: `[..., H, W, C]`.

    Args:
        run: the trained model.
        zs: latents of the layers of `posterior_means`, or of the top n layers of a `DeepVAE`: those
            below are then at the means of their priors.
        labels: the labels of a conditional model, as in `vae_jax.conditional`.

    Raises:
        VaeJaxError: latents or labels do not fit the model.
    """
    model = run.experiment.model
    is_top = isinstance(model, DeepVAE) and len(zs) < model.decoded_layers
    return _pictures(_apply(run, "decode_top" if is_top else "decode", zs, run.classes(labels)))


def _check_layers(run: Run, name: str, number: int) -> None:
    layers = run.experiment.model.decoded_layers
    if not 1 <= number <= layers:
        way_out = f"take 1 to {layers}" if layers > 1 else "leave it out"
        raise VaeJaxError(
            f"{name} is {number}, and the number of layers from which pictures of "
            f"{run.folder.path} are decoded is {layers}: {way_out}."
        )


@checked
def sample(
    run: Run,
    num: Count = 64,
    seed: int = 0,
    labels: Sequence[str | int] | None = None,
    prior: Family | None = None,
    temperature: Sequence[float] | None = None,
) -> np.ndarray:
    """Draw z from the prior and show means of p(x|z).

    Args:
        run: the trained model.
        num: the number of pictures.
        seed: the seed of the prior's draws.
        labels: classes of a conditional model, by name or number, one after the other with equal
            shares of the pictures; None takes all classes.
        prior: the family of a density that is fitted to the latents of the training images once,
            kept in the run folder, and drawn from; None draws from the model's own prior.
        temperature: the factor of the scales of a `DeepVAE`'s priors: one number, or one for each
            layer, the bottom layer first; None leaves them.

    Returns:
        Pictures `[num, H, W, C]`.

    Raises:
        VaeJaxError: there is no such class, no prior of the family fits the latents, or the model
            has no such temperatures.
    """
    own = _temperatures(run, temperature)
    if prior is not None:
        run = fitted(run, prior)
    if labels is None and run.experiment.model.labels is not None:
        labels = run.class_names
    y = None
    if labels is not None:
        classes = np.array([find_label(run, label) for label in labels])
        y = jnp.asarray(classes[np.arange(num) * len(classes) // num])
    keys = random.indexed(random.purpose(random.key(seed), "samples"), np.arange(num))
    draw = parallel.jit(partial(run.experiment.model.apply, method="sample"))
    pictures = []
    for first in range(0, num, PICTURES_AT_ONCE):
        part = slice(first, first + PICTURES_AT_ONCE)
        _, px = draw(run.seed_variables, keys[part], None if y is None else y[part], *own)
        pictures.append(_pictures(px, seed, first))
    return np.concatenate(pictures)


def _temperatures(run: Run, temperature: Sequence[float] | None) -> tuple[Array, ...]:
    """The further argument of the model's `sample`, if any."""
    if temperature is None:
        return ()
    layers = run.experiment.model.decoded_layers
    if not isinstance(run.experiment.model, DeepVAE):
        raise VaeJaxError(
            f"Temperatures are of a DeepVAE's layers, and {run.folder.path} is the run of another "
            "model: leave --temperature out."
        )
    if len(temperature) not in (1, layers) or min(temperature) < 0:
        raise VaeJaxError(
            f"The temperatures are {list(temperature)}: give one number, or one for each of the "
            f"{layers} layers, none below zero."
        )
    return (jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), (layers,)),)


def reconstruct_rows(run: Run, split: SplitName, rows: np.ndarray) -> np.ndarray:
    """Decode E_q[z] of the images at these positions `[n]` of a split: `[n, H, W, C]`."""

    def part(rows: np.ndarray) -> np.ndarray:
        y = run.labels(split, rows)
        return decode_means(run, posterior_means(run, run.images(split, rows), y), y)

    return np.concatenate(
        [part(rows) for rows in np.array_split(rows, -(-len(rows) // PICTURES_AT_ONCE))]
    )


@checked
def reconstruct(
    run: Run, split: SplitName = "test", num: Count = 20, top: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode images of a split, and decode their posterior means.

    Args:
        run: the trained model.
        split: the split of the data.
        num: the number of images, the first of the split, or all if there are fewer.
        top: the number of layers of a `DeepVAE`, from the top, that are encoded; those below are at
            the means of their priors. None encodes all.

    Returns:
        Images `[n, H, W, C]`, scaled by the protocol, and their reconstructions `[n, H, W, C]`.

    Raises:
        VaeJaxError: the split is empty, or the model has not so many layers.
    """
    top = run.experiment.model.decoded_layers if top is None else top
    _check_layers(run, "top", top)
    rows = np.arange(min(num, len(getattr(run.experiment.data, split))))
    if not len(rows):
        raise VaeJaxError(
            f"The {split} split of {run.experiment.data.name} has no images: choose another split."
        )
    x, y = run.images(split, rows), run.labels(split, rows)
    return np.asarray(x), decode_means(run, posterior_means(run, x, y)[-top:], y)


def _carry(run: Run, z: Array, source: int, target: int) -> Array:
    """Latents of one class as if of another, or as they are where all classes share a prior."""
    model = run.experiment.model
    # The prior of a hierarchy is that of its top layer, and z belongs to the bottom one.
    if not isinstance(model.prior, ClassGaussian) or len(model.posteriors) > 1:
        return z
    params = {"params": run.seed_variables["params"]["prior"]}
    return jnp.asarray(model.prior.apply(params, z, source, target, method="carry"))


@checked
def restyle(
    run: Run,
    source: str | int,
    targets: Sequence[str | int] | None = None,
    split: SplitName = "test",
    num: Count = 10,
) -> tuple[np.ndarray, np.ndarray, str, list[str]]:
    """Encode images with their class and decode them with others: z keeps what y does not say.

    Where z has a Gaussian for each class, it moves from one to the other (`ClassGaussian.carry`).

    Args:
        run: a trained conditional model.
        source: the class of the images, by name or number.
        targets: the classes to decode with; None takes all.
        split: the split of the data.
        num: the number of images, the first of the class, or all if there are fewer.

    Returns:
        Images `[n, H, W, C]`, scaled by the protocol; what they become with each of T targets,
        `[n, T, H, W, C]`; and the names of source and targets, as `plots.restyled` takes them.

    Raises:
        VaeJaxError: the model is not conditional, there is no such class, or the split has no image
            of the source.

    References:
        Kingma et al. (2014), "Semi-supervised learning with deep generative models", figure 1.
    """
    names = run.class_names
    y_source = find_label(run, source)
    y_targets = [find_label(run, target) for target in (names if targets is None else targets)]
    rows = np.flatnonzero(getattr(run.experiment.data, split).labels == y_source)[:num]
    if not len(rows):
        raise VaeJaxError(
            f"The {split} split of {run.experiment.data.name} has no image of "
            f"{names[y_source]!r}: choose another class or split."
        )
    x = run.images(split, rows)
    zs = posterior_means(run, x, [y_source])
    restyled = [
        decode_means(run, tuple(_carry(run, z, y_source, y) for z in zs), [y]) for y in y_targets
    ]
    return np.asarray(x), np.stack(restyled, 1), names[y_source], [names[y] for y in y_targets]


@checked
def interpolate(
    run: Run,
    split: SplitName = "test",
    pairs: Count = 6,
    steps: Count = 11,
    top: int | None = None,
) -> np.ndarray:
    """Decode the shortest lines between the posterior means of pairs of images.

    Lines between real vectors are straight; those between unit vectors are great circles.

    Args:
        run: the trained model.
        split: the split that the images are from.
        pairs: the number of lines, or all if there are fewer pairs; see `pairs_of`.
        steps: the number of pictures on each line.
        top: the number of layers of a `DeepVAE`, from the top, that the lines run through; those
            below are at the means of their priors. None takes all.

    Returns:
        Pictures `[n, steps, H, W, C]`.

    Raises:
        VaeJaxError: there is nothing between two latents of the model, the split has no pair, or
            the model has not so many layers.
    """
    top = run.experiment.model.decoded_layers if top is None else top
    _check_layers(run, "top", top)
    space = space_of(run)
    if space not in ("real", "sphere"):
        raise VaeJaxError(
            f"There is nothing between two latents of {run.folder.path} (space {space!r}): only "
            "real and unit vectors can be interpolated."
        )
    rows = pairs_of(run, split, pairs)
    if not len(rows):
        raise VaeJaxError(
            f"The {split} split of {run.experiment.data.name} has no two images, of one class if "
            "the model has classes: interpolate in another split."
        )
    y = run.labels(split, rows)

    def line(z: Array) -> Array:
        ends = z[0::2, None], z[1::2, None]
        weights = jnp.linspace(0, 1, steps).reshape(-1, *[1] * (z.ndim - 1))
        if space == "real":
            return (1 - weights) * ends[0] + weights * ends[1]
        angle = jnp.arccos(jnp.clip((ends[0] * ends[1]).sum(-1, keepdims=True), -0.999, 0.999))
        near, far = jnp.sin((1 - weights) * angle), jnp.sin(weights * angle)
        circle = (near * ends[0] + far * ends[1]) / jnp.sin(angle)
        return circle / jnp.linalg.norm(circle, axis=-1, keepdims=True)

    lines = tuple(line(z) for z in posterior_means(run, run.images(split, rows), y)[-top:])
    return decode_means(run, lines, None if y is None else np.repeat(y[::2], steps))


def pairs_of(run: Run, split: SplitName, pairs: int) -> np.ndarray:
    """Positions of images to interpolate between, `[2 pairs]`, or fewer where there are no more.

    Line i runs from entry 2i to entry 2i + 1. In a conditional model both images are of one class,
    and the classes take turns.
    """
    if run.experiment.model.labels is None:
        return np.arange(2 * min(pairs, len(getattr(run.experiment.data, split)) // 2))
    labels = getattr(run.experiment.data, split).labels
    classes = [np.flatnonzero(labels == y) for y in np.unique(labels)]
    longest = max(map(len, classes), default=0)
    found = [
        rows[i : i + 2] for i in range(0, longest, 2) for rows in classes if len(rows) >= i + 2
    ]
    return np.concatenate([np.empty(0, int), *found[:pairs]])


def has_coordinates(run: Run) -> bool:
    """Whether the latents of the bottom layer are real, so that each can be moved alone."""
    return space_of(run) == "real"


@checked
def traverse(
    run: Run,
    split: SplitName = "test",
    row: Index = 0,
    steps: Count = 11,
    latents: Count = 10,
    layer: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move one latent at a time from -3 to 3, the others at the posterior mean of one image.

    Args:
        run: the trained model.
        split: the split that the image is from.
        row: the position of the image in it.
        steps: the number of values of each latent.
        latents: the number of latents: those whose posterior means vary most over the first
            thousand images of the split.
        layer: the layer of a `DeepVAE`, counted from the bottom; None takes the top layer. The
            layers above are at the means of the image's posteriors, those below at the means of
            their priors.

    Returns:
        Pictures `[n, steps, H, W, C]`, the values `[steps]`, and which latents they are, `[n]`:
        their positions in z, flattened.

    Raises:
        VaeJaxError: the latents are not real, the split has no such row, or the model no such
            layer.
    """
    layer = run.experiment.model.decoded_layers if layer is None else layer
    _check_layers(run, "layer", layer)
    if not has_coordinates(run):
        raise VaeJaxError(
            f"The latents of {run.folder.path} are not real, so there is no coordinate to move "
            "along."
        )
    split_size = len(getattr(run.experiment.data, split))
    some, own = np.arange(min(1000, split_size)), np.array([row])
    means = posterior_means(run, run.images(split, some), run.labels(split, some))[layer - 1]
    dims = np.argsort(-np.asarray(means.var(0)).ravel())[:latents]
    y = run.labels(split, own)
    z, *above = (each[0] for each in posterior_means(run, run.images(split, own), y)[layer - 1 :])
    values = np.linspace(-3, 3, steps)
    positions = [np.unravel_index(d, z.shape) for d in dims]
    moved = jnp.stack([jnp.stack([z.at[where].set(v) for v in values]) for where in positions])
    held = (jnp.broadcast_to(each, (*moved.shape[:2], *each.shape)) for each in above)
    return decode_means(run, (moved, *held), y), values, dims


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

    References:
        Kingma & Welling (2013), figure 4.
    """
    values = ndtri((jnp.arange(n) + 0.5) / n)
    z_2, z_1 = jnp.meshgrid(values, values, indexing="ij")
    labels = None if label is None else [find_label(run, label)]
    return decode_means(run, (jnp.stack([z_1, z_2], -1),), labels), np.asarray(values)
