"""A perceptual distance added to an objective, in features learned on the same data."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict
from jax import Array
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.data import Split
from vae_jax.errors import VaeJaxError
from vae_jax.given import Checked, Count, Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.networks.features import NUM_STEPS, FeatureNetwork, maps
from vae_jax.vae import Terms

# Evaluation's learned features have seed 0. This network has another seed, so that no model is
# measured in the features that it was trained on.
SEED = 1
# The least squared length of a position's features, as in the authors' code of LPIPS.
LEAST_SQUARE = 1e-10


def perceptual_distance(
    features: Sequence[Float[Array, "N ..."]], others: Sequence[Float[Array, "N ..."]]
) -> Float[Array, "N"]:
    """sum_l mean_hw |a_l(h, w) / |a_l(h, w)| - b_l(h, w) / |b_l(h, w)||² (Zhang et al. 2018).

    This is equation 1 of the paper with weights of one, there called the cosine distance.

    Args:
        features: maps of one set of images, layer by layer.
        others: maps of the images to compare with, layer by layer.
    """

    def unit(x: Array) -> Array:
        return x / jnp.sqrt((x**2).sum(-1, keepdims=True) + LEAST_SQUARE)

    each = [
        ((unit(a) - unit(b)) ** 2).sum(-1).mean((1, 2))
        for a, b in zip(features, others, strict=True)
    ]
    return jnp.stack(each).sum(0)


@dataclass(frozen=True)
class LearnedPerceptual(Checked):
    """Feature maps of a network trained on the data set's own training images.

    No outside weights are used. The network is a classifier of the labels, or an autoencoder if
    there are none (`FeatureNetwork`). It is trained when training begins or resumes, from a fixed
    seed. An `Experiment` gives it its data.

    Attributes:
        num_steps: the number of training steps of the network.
    """

    num_steps: Count = NUM_STEPS

    def of(self, train: Split) -> "LearnedPerceptual":
        """A copy that learns from the images of the split `train`."""
        copied = copy.copy(self)
        vars(copied).pop("params", None)
        vars(copied)["train"] = train
        return copied

    @cached_property
    def params(self) -> VariableDict:
        """The trained variables.

        Raises:
            VaeJaxError: no `Experiment` has given it images to learn from.
        """
        train = vars(self).get("train")
        if train is None:
            raise VaeJaxError(
                "LearnedPerceptual has no images to learn from: give the objective to an "
                "Experiment, or take LearnedPerceptual().of(data.train)."
            )
        with jax.ensure_compile_time_eval():  # once, even during compilation
            params = FeatureNetwork.of(train).trained(train, self.num_steps, SEED)
            return jax.tree.map(np.asarray, params)

    def __call__(self, images: Float[Array, "N H W C"]) -> list[Float[Array, "N ..."]]:
        """Three maps of images `[N, H, W, C]` in [0, 1]."""
        return maps(self.params, 255 * images)


@dataclass(frozen=True)
class Perceptual(Objective):
    """An objective plus a perceptual distance between images and the means of p(x|z).

    The loss is that of the objective + weight d(x, E[x|z]), with d the `perceptual_distance`. VQGAN
    and latent diffusion give d a weight of one relative to a mean absolute error; with
    `Laplace(scale=1.0)` this corresponds to a weight of H W C here, where -ln p(x|z) is a sum over
    pixels.

    Attributes:
        objective: the objective without the distance.
        weight: the weight of the distance.
        features: a function of images `[N, H, W, C]` in [0, 1] to maps `[N, h, w, F]`, one for each
            layer.

    References:
        Zhang et al. (2018), "The unreasonable effectiveness of deep features as a perceptual
            metric".
        Esser et al. (2021), "Taming transformers for high-resolution image synthesis", for its use.
        Rombach et al. (2022), "High-resolution image synthesis with latent diffusion models", for
            its use.

    Example:
        >>> objective = Perceptual(VQVAE(), weight=100.0)
    """

    objective: Annotated[Objective, "an objective, such as ELBO()"]
    weight: Weight = 1.0
    features: Annotated[
        LearnedPerceptual | Callable[[Array], Sequence[Array]],
        "a function of images to maps of features, such as LearnedPerceptual()",
    ] = LearnedPerceptual()

    @property
    def num_samples(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of samples of the objective."""
        return self.objective.num_samples

    @property
    @override
    def requires(self) -> Requirements:
        return dataclasses.replace(self.objective.requires, mean_is_picture=True)

    def distance(self, x: Float[Array, "B H W C"], drawn: Float[Array, "..."]) -> Float[Array, ""]:
        """The weighted mean distance between images x and their reconstructions `drawn`."""
        pictures = drawn.reshape(-1, *x.shape)
        seen = self.features(x)

        def each(pictures: Array) -> Array:
            return perceptual_distance(seen, self.features(pictures))

        return self.weight * jnp.stack([each(one) for one in pictures]).mean()

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image; `perceptual` is the weighted distance in it."""
        loss, metrics = self.objective(terms, step, model)
        if model.is_initializing():  # the features do not depend on the model's parameters
            return loss, metrics
        distance = self.distance(terms.x, terms.reconstruction)
        return loss + distance, metrics | {"perceptual": distance}


def learning_from(objective: Objective, train: Split) -> Objective:
    """The objective, with its `LearnedPerceptual`, if any, learning from the split `train`."""
    if not dataclasses.is_dataclass(objective):
        return objective
    changes: dict[str, object] = {}
    for field in dataclasses.fields(objective):
        part = getattr(objective, field.name)
        if isinstance(part, LearnedPerceptual):
            changes[field.name] = part.of(train)
        elif isinstance(part, Objective) and (other := learning_from(part, train)) is not part:
            changes[field.name] = other
    return dataclasses.replace(objective, **changes) if changes else objective
