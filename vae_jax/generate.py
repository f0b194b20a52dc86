"""Pictures from a trained model: samples, reconstructions, interpolations, traversals, manifolds.

Every function takes a `Run`, shows its first seed, and returns means of p(x|z) in [0, 1], or draws
from it where pixels depend on each other.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri

from vae_jax import threefry
from vae_jax.compatibility import Space
from vae_jax.data import BINARIZATION_SEED, SplitName, index_keys
from vae_jax.distributions import Distribution
from vae_jax.errors import VaeJaxError
from vae_jax.run import Run

PICTURES_AT_ONCE = 500
# What a seed's key is folded with for the pixels of draws; z is of the bare key.
PIXELS = 1


def _apply(run: Run, method: str, *arguments: Any) -> Any:
    """A method of the model, compiled, with the run's variables."""
    function = partial(run.experiment.model.apply, method=method)
    return jax.jit(function)(run.seed_variables, *arguments)


_draw = jax.jit(lambda px, keys: px.sample(keys))


def _pictures(px: Distribution, seed: int = 0, first: int = 0) -> np.ndarray:
    if px.mean_is_picture:
        values = px.mean
    else:
        key = jax.random.fold_in(jax.random.fold_in(threefry.key(seed), PIXELS), first)
        values = _draw(px, jax.random.split(key, px.batch_shape))
    # An unsquashed Gaussian's mean can leave the range that a picture has.
    return np.clip(np.asarray(values), 0.0, 1.0)


def images_of(run: Run, split: SplitName, rows: np.ndarray) -> Array:
    """Images `[n, H, W, C]` as the model sees them.

    Raises:
        VaeJaxError: the split has no such rows.
    """
    images = getattr(run.experiment.data, split).images
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(images):
        raise VaeJaxError(
            f"The {split} split of {run.experiment.data.name} has {len(images)} images; rows "
            f"{rows.min()} to {rows.max()} were asked for."
        )
    keys = index_keys(BINARIZATION_SEED, split, jnp.asarray(rows))
    return run.experiment.data.protocol.apply(images[rows], keys)


def space_of(run: Run) -> Space:
    """Where the latents of the bottom layer live."""
    model: Any = run.experiment.model
    return (model.posteriors[0] if hasattr(model, "posteriors") else model.posterior).space


def posterior_means(run: Run, x: Array) -> Array:
    """E_q[z] of the bottom layer, `[n, *event]`, moved into the space that z lives in.

    Of unit vectors the mean's direction, of one-hot vectors the likeliest.
    """
    q: Distribution = _apply(run, "encode", x)
    match space_of(run):
        case "sphere":
            return q.mean / jnp.linalg.norm(q.mean, axis=-1, keepdims=True)
        case "onehot":
            return jax.nn.one_hot(q.mean.argmax(-1), q.mean.shape[-1])
    return q.mean


def decode_means(run: Run, z: Array) -> np.ndarray:
    """Means of p(x|z) for latents `[..., *event]` of the bottom layer: `[..., H, W, C]`."""
    px: Distribution = _apply(run, "decode", z)
    return _pictures(px)


def sample(run: Run, num: int, seed: int = 0) -> np.ndarray:
    """Means of p(x|z) with z from the prior, `[num, H, W, C]`."""
    keys = jax.random.split(threefry.key(seed), num)
    draw = jax.jit(partial(run.experiment.model.apply, method="sample"))
    pictures = []
    for first in range(0, num, PICTURES_AT_ONCE):
        _, px = draw(run.seed_variables, keys[first : first + PICTURES_AT_ONCE])
        pictures.append(_pictures(px, seed, first))
    return np.concatenate(pictures)


def reconstruct_rows(run: Run, split: SplitName, rows: np.ndarray) -> np.ndarray:
    """The decoder's means at E_q[z] of images by their places in a split, `[n, H, W, C]`."""
    parts = np.array_split(rows, -(-len(rows) // PICTURES_AT_ONCE))
    pictures = [decode_means(run, posterior_means(run, images_of(run, split, p))) for p in parts]
    return np.concatenate(pictures)


def reconstruct(run: Run, split: SplitName, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `num` images of a split, and the decoder's means at their E_q[z]."""
    x = images_of(run, split, np.arange(num))
    return np.asarray(x), decode_means(run, posterior_means(run, x))


def interpolate(run: Run, split: SplitName, pairs: int, steps: int) -> np.ndarray:
    """Along the shortest lines between the E_q[z] of images 2i and 2i+1.

    Straight ones between real vectors, great circles between unit vectors.

    Returns:
        `[pairs, steps, H, W, C]`.

    Raises:
        VaeJaxError: between two latents of the model there is nothing, or the split is too small.
    """
    space = space_of(run)
    if space not in ("real", "sphere"):
        raise VaeJaxError(
            f"There is nothing between two latents of {run.folder.path} (space {space!r}): only "
            "real and unit vectors can be interpolated."
        )
    z = posterior_means(run, images_of(run, split, np.arange(2 * pairs)))
    ends = z[0::2, None], z[1::2, None]
    weights = jnp.linspace(0, 1, steps).reshape(-1, *[1] * (z.ndim - 1))
    if space == "sphere":
        angle = jnp.arccos(jnp.clip((ends[0] * ends[1]).sum(-1, keepdims=True), -0.999, 0.999))
        near, far = jnp.sin((1 - weights) * angle), jnp.sin(weights * angle)
        line = (near * ends[0] + far * ends[1]) / jnp.sin(angle)
        line = line / jnp.linalg.norm(line, axis=-1, keepdims=True)
    else:
        line = (1 - weights) * ends[0] + weights * ends[1]
    return decode_means(run, line)


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
    variance = posterior_means(run, images_of(run, split, np.arange(min(1000, split_size)))).var(0)
    dims = np.argsort(-np.asarray(variance).ravel())[:most]
    z = posterior_means(run, images_of(run, split, np.array([row])))[0]
    values = np.linspace(-3, 3, steps)
    places = [np.unravel_index(d, z.shape) for d in dims]
    moved = jnp.stack([jnp.stack([z.at[place].set(v) for v in values]) for place in places])
    return decode_means(run, moved), values, dims


def manifold(run: Run, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A 2-D latent space through the inverse normal CDF (Kingma & Welling 2013, figure 4).

    Returns:
        Images `[n, n, H, W, C]`, rows of ascending z_2, columns of ascending z_1, and the values
        `[n]` of either.
    """
    values = ndtri((jnp.arange(n) + 0.5) / n)
    z_2, z_1 = jnp.meshgrid(values, values, indexing="ij")
    return decode_means(run, jnp.stack([z_1, z_2], -1)), np.asarray(values)
