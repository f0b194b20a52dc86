"""The latents of images as numbers, and the lines between them."""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict
from jax import Array

from vae_jax import random
from vae_jax.distributions import Distribution
from vae_jax.interfaces import Layers, Model, Space
from vae_jax.vae import Terms

Latents = np.ndarray | tuple[np.ndarray, ...]
"""Latents `[n, *event]`; with several layers a tuple, one array per layer, z_1 first."""

# The samples that estimate a mean without a closed form, to 1/16 of a standard deviation.
DRAWS = 256


@dataclass(frozen=True, repr=False)
class Encoded:
    """q(z|x) of n images.

    In a model with several layers, the mean and standard deviation of a layer are conditional on
    the means of the layers inferred before it, and `sample` is a joint draw of all layers.

    Attributes:
        mean: E_q[z] of each image; without a closed form, as with flows, the mean of 256 draws.
        std: the standard deviation of each component of z.
        sample: a draw from q(z|x).
    """

    mean: Latents
    std: Latents
    sample: Latents

    @property
    def named(self) -> dict[str, np.ndarray]:
        """The arrays `z`, the mean, and `std`; with several layers `z_1`, `std_1` and so on."""
        found: dict[str, np.ndarray] = {}
        for name, layers in {"z": self.mean, "std": self.std}.items():
            if isinstance(layers, tuple):
                found |= {f"{name}_{layer}": z for layer, z in enumerate(layers, start=1)}
            else:
                found[name] = layers
        return found

    def __repr__(self) -> str:
        layers = self.mean if isinstance(self.mean, tuple) else (self.mean,)
        shapes = ", ".join(f"z_{i} {list(z.shape)}" for i, z in enumerate(layers, start=1))
        return f"Encoded(mean, std, sample: {shapes})"


def moments(
    model: Model, variables: VariableDict, x: Array, keys: Array, y: Array | None
) -> tuple[Layers, Layers, Layers]:
    """The mean, the standard deviation and a draw of each layer.

    Args:
        model: a model.
        variables: its variables.
        x: images `[B, H, W, C]` as the model sees them.
        keys: typed keys `[B]`.
        y: labels `[B]` of a conditional model.

    Returns:
        Means, standard deviations and draws, `[B, *event]` for each layer.
    """
    key_draws, key_sample = random.purposes(keys, "moments", "sample")
    found: list[tuple[Array, Array]] = []
    qs = cast("tuple[Distribution, ...]", model.apply(variables, x, y, method="infer"))
    for layer, q in enumerate(qs):
        draws = q.sample(random.indexed(key_draws, layer), (DRAWS,))
        mean = q.mean if q.exact_mean else draws.mean(0)
        found.append((mean, draws.std(0, ddof=1) if (std := q.std) is None else std))
    mean, std = zip(*found, strict=True)
    terms = cast(Terms, model.apply(variables, x, key_sample, 1, y))
    return mean, std, tuple(z[0] for z in terms.z)


def centre(q: Distribution, space: Space) -> Array:
    """The centre of q, a point of the `space` of z."""
    match space:
        case "sphere":
            return q.mean / jnp.linalg.norm(q.mean, axis=-1, keepdims=True)
        case "onehot":
            return jax.nn.one_hot(q.mean.argmax(-1), q.mean.shape[-1])
    return q.mean


def between(a: np.ndarray, b: np.ndarray, points: int, space: Space) -> np.ndarray:
    """The shortest lines between latents.

    Args:
        a: latents `[n, *event]` at the beginning.
        b: latents `[n, *event]` at the end.
        points: the number of points on each line.
        space: the space of z.

    Returns:
        Latents `[n, points, *event]`.
    """
    start, end = a[:, None], b[:, None]
    weights = np.linspace(0, 1, points, dtype=np.float32).reshape(-1, *[1] * (a.ndim - 1))
    if space == "real":
        return (1 - weights) * start + weights * end
    angle = np.arccos(np.clip((start * end).sum(-1, keepdims=True), -0.999, 0.999))
    near, far = np.sin((1 - weights) * angle), np.sin(weights * angle)
    circle = (near * start + far * end) / np.sin(angle)
    return circle / np.linalg.norm(circle, axis=-1, keepdims=True)


def as_pictures(px: Distribution, seed: Array, rows: Array) -> Array:
    """Pictures of a distribution of images: its mean, or a draw if the mean is no picture.

    Args:
        px: p(x|z), batch `[b]`.
        seed: the seed of draws.
        rows: the positions of the pictures, which with the seed determine their noise, `[b]`.

    Returns:
        Pictures `[b, H, W, C]`.
    """
    if px.mean_is_picture:
        values = px.mean
    else:
        key = random.indexed(random.purpose(random.key(seed), "pixels"), 0)
        values = px.sample(random.indexed(key, rows))
    # The mean of a Gaussian that is not squashed can lie outside the range of a picture.
    return jnp.clip(values, 0.0, 1.0)
