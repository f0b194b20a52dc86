"""Pictures from a trained model: samples, reconstructions, interpolations, traversals, manifolds.

Every function takes a `Run`, shows its first seed, and returns means of p(x|z) in [0, 1], or draws
from it where pixels depend on each other. Images of a conditional model keep their labels unless
others are asked for.
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

from vae_jax import random
from vae_jax.conditional import ClassGaussian
from vae_jax.data import SplitName
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Space
from vae_jax.run import Run

PICTURES_AT_ONCE = 500


def _apply(run: Run, method: str, *arguments: Any) -> Any:
    """A method of the model, compiled, with the variables of the run's first seed."""
    function = partial(run.experiment.model.apply, method=method)
    return jax.jit(function)(run.seed_variables, *arguments)


def _as_y(labels: ArrayLike | None) -> Array | None:
    return None if labels is None else jnp.asarray(labels)


_draw = jax.jit(lambda px, keys: px.sample(keys))


def _pictures(px: Distribution, seed: int = 0, first: int = 0) -> np.ndarray:
    if px.mean_is_picture:
        values = px.mean
    else:
        key = random.indexed(random.purpose(random.key(seed), "pixels"), first)
        values = _draw(px, random.draw_keys(key, (), px.batch_shape))
    # An unsquashed Gaussian's mean can leave the range that a picture has.
    return np.clip(np.asarray(values), 0.0, 1.0)


def find_label(run: Run, label: str) -> int:
    """The number of a class by its name, or by the number itself.

    Raises:
        VaeJaxError: there is no such class; the sentence names those there are.
    """
    names = run.class_names
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise VaeJaxError(
        f"{run.experiment.data.name} has no class {label!r}: choose one of {', '.join(names)}."
    )


def space_of(run: Run) -> Space:
    """Where the latents of the bottom layer live."""
    return run.experiment.model.posteriors[0].space


def posterior_means(run: Run, x: Array, labels: ArrayLike | None = None) -> Array:
    """E_q[z] of the bottom layer, `[n, *event]`, moved into the space that z lives in.

    Of unit vectors the mean's direction, of one-hot vectors the likeliest.

    Args:
        run: a `Run`.
        x: images `[n, H, W, C]` as the model sees them.
        labels: of a conditional model, `[n]`, or `[1]`, one for all.
    """
    q: Distribution = _apply(run, "encode", x, _as_y(labels))
    match space_of(run):
        case "sphere":
            return q.mean / jnp.linalg.norm(q.mean, axis=-1, keepdims=True)
        case "onehot":
            return jax.nn.one_hot(q.mean.argmax(-1), q.mean.shape[-1])
    return q.mean


def decode_means(run: Run, z: Array, labels: ArrayLike | None = None) -> np.ndarray:
    """Means of p(x|z) for latents `[..., *event]` of the bottom layer: `[..., H, W, C]`.

    Args:
        run: a `Run`.
        z: latents.
        labels: those of a conditional model (`vae_jax.conditional`).
    """
    px: Distribution = _apply(run, "decode", (z,), _as_y(labels))
    return _pictures(px)


def sample(run: Run, num: int, seed: int = 0, labels: ArrayLike | None = None) -> np.ndarray:
    """Means of p(x|z) with z from the prior, `[num, H, W, C]`.

    Args:
        run: a `Run`.
        num: how many.
        seed: of the prior's draws.
        labels: of a conditional model, `[num]`, or `[1]`, one for all; None takes all classes, one
            after the other, with equal shares.
    """
    if labels is None and run.experiment.model.labels is not None:
        labels = np.arange(num) * len(run.class_names) // num
    keys = random.indexed(random.purpose(random.key(seed), "samples"), np.arange(num))
    draw = jax.jit(partial(run.experiment.model.apply, method="sample"))
    pictures = []
    for first in range(0, num, PICTURES_AT_ONCE):
        part = slice(first, first + PICTURES_AT_ONCE)
        y = None if labels is None else jnp.asarray(np.broadcast_to(labels, num)[part])
        _, px = draw(run.seed_variables, keys[part], y)
        pictures.append(_pictures(px, seed, first))
    return np.concatenate(pictures)


def reconstruct_rows(run: Run, split: SplitName, rows: np.ndarray) -> np.ndarray:
    """The decoder's means at E_q[z] of images by their places in a split, `[n, H, W, C]`."""

    def part(rows: np.ndarray) -> np.ndarray:
        y = run.labels(split, rows)
        return decode_means(run, posterior_means(run, run.images(split, rows), y), y)

    return np.concatenate(
        [part(rows) for rows in np.array_split(rows, -(-len(rows) // PICTURES_AT_ONCE))]
    )


def reconstruct(run: Run, split: SplitName, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of a split, and the decoder's means at their E_q[z].

    Args:
        run: a `Run`.
        split: of the data.
        num: how many images, the first of the split, or all if there are fewer.

    Returns:
        Images `[n, H, W, C]` as the model sees them, and as many means.

    Raises:
        VaeJaxError: the split is empty.
    """
    rows = np.arange(min(num, len(getattr(run.experiment.data, split))))
    if not len(rows):
        raise VaeJaxError(
            f"The {split} split of {run.experiment.data.name} has no images: choose another split."
        )
    x, y = run.images(split, rows), run.labels(split, rows)
    return np.asarray(x), decode_means(run, posterior_means(run, x, y), y)


def _carried(run: Run, z: Array, source: int, target: int) -> Array:
    """Latents of one class as if of another, or as they are where one prior is for all classes."""
    model = run.experiment.model
    # The prior of a hierarchy is that of its top layer, and z is of the bottom one.
    if not isinstance(model.prior, ClassGaussian) or len(model.posteriors) > 1:
        return z
    params = {"params": run.seed_variables["params"]["prior"]}
    return jnp.asarray(model.prior.apply(params, z, source, target, method="carry"))


def restyle(
    run: Run, split: SplitName, source: int, targets: Sequence[int], num: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images of one class, encoded with it and decoded with others: z keeps what y does not say.

    Analogies of Kingma et al. (2014), figure 1. Where z has a Gaussian for each class, it
    moves from the one to the other (`ClassGaussian.carry`).

    Args:
        run: of a conditional model.
        split: of the data.
        source: the class of the images, its first `num` in the split, or all if there are fewer.
        targets: classes to decode with.
        num: how many images.

    Returns:
        Images `[n, H, W, C]` as the model sees them, and `[n, len(targets), H, W, C]`.

    Raises:
        VaeJaxError: the model is not conditional, or the split has no image of the class.
    """
    names = run.class_names
    rows = np.flatnonzero(getattr(run.experiment.data, split).labels == source)[:num]
    if not len(rows):
        raise VaeJaxError(
            f"The {split} split of {run.experiment.data.name} has no image of {names[source]!r}: "
            "choose another class or split."
        )
    x = run.images(split, rows)
    z = posterior_means(run, x, [source])
    restyled = [decode_means(run, _carried(run, z, source, y), [y]) for y in targets]
    return np.asarray(x), np.stack(restyled, 1)


def interpolate(run: Run, split: SplitName, pairs: int, steps: int) -> np.ndarray:
    """Along the shortest lines between the E_q[z] of images 2i and 2i+1.

    Straight ones between real vectors, great circles between unit vectors. The images are those
    of `pairs_of`.

    Returns:
        `[n, steps, H, W, C]`.

    Raises:
        VaeJaxError: between two latents of the model there is nothing, or the split has no pair.
    """
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
    z = posterior_means(run, run.images(split, rows), y)
    ends = z[0::2, None], z[1::2, None]
    weights = jnp.linspace(0, 1, steps).reshape(-1, *[1] * (z.ndim - 1))
    if space == "sphere":
        angle = jnp.arccos(jnp.clip((ends[0] * ends[1]).sum(-1, keepdims=True), -0.999, 0.999))
        near, far = jnp.sin((1 - weights) * angle), jnp.sin(weights * angle)
        line = (near * ends[0] + far * ends[1]) / jnp.sin(angle)
        line = line / jnp.linalg.norm(line, axis=-1, keepdims=True)
    else:
        line = (1 - weights) * ends[0] + weights * ends[1]
    return decode_means(run, line, None if y is None else np.repeat(y[::2], steps))


def pairs_of(run: Run, split: SplitName, pairs: int) -> np.ndarray:
    """Rows 2i and 2i+1 to interpolate between, `[2 pairs]`, or fewer where the split has no more.

    Of a conditional model both are of one class, the classes taking turns.
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
    """Whether the bottom layer's latents are real, so that each component can be moved alone."""
    return space_of(run) == "real"


def traverse(
    run: Run, split: SplitName, row: int, steps: int, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One latent at a time moved over -3 ... 3, the others at one image's E_q[z].

    Args:
        run: a `Run`.
        split: of the data.
        row: the image's place in it.
        steps: values for each latent.
        most: so many latents are shown: those whose E_q[z] vary most over the split's first
            thousand images.

    Returns:
        Images `[n, steps, H, W, C]`, the values `[steps]`, and which latents `[n]`: their places in
        z, flattened.

    Raises:
        VaeJaxError: the latents are not real, or the split has no such row.
    """
    if not has_coordinates(run):
        raise VaeJaxError(
            f"The latents of {run.folder.path} are not real, so there is no coordinate to move "
            "along."
        )
    split_size = len(getattr(run.experiment.data, split))
    some, own = np.arange(min(1000, split_size)), np.array([row])
    means = posterior_means(run, run.images(split, some), run.labels(split, some))
    dims = np.argsort(-np.asarray(means.var(0)).ravel())[:most]
    y = run.labels(split, own)
    z = posterior_means(run, run.images(split, own), y)[0]
    values = np.linspace(-3, 3, steps)
    places = [np.unravel_index(d, z.shape) for d in dims]
    moved = jnp.stack([jnp.stack([z.at[place].set(v) for v in values]) for place in places])
    return decode_means(run, moved, y), values, dims


def manifold(run: Run, n: int, label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A 2-D latent space through the inverse normal CDF (Kingma & Welling 2013, figure 4).

    Args:
        run: a `Run`.
        n: pictures a side.
        label: of a conditional model, the class to decode with.

    Returns:
        Images `[n, n, H, W, C]`, rows of ascending z_2, columns of ascending z_1, and the values
        `[n]` of either.
    """
    values = ndtri((jnp.arange(n) + 0.5) / n)
    z_2, z_1 = jnp.meshgrid(values, values, indexing="ij")
    labels = None if label is None else [label]
    return decode_means(run, jnp.stack([z_1, z_2], -1), labels), np.asarray(values)
