"""The VampPrior: a mixture of the posteriors of pseudo-inputs."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key, UInt8
from typing_extensions import override

from vae_jax.distributions import Mixture, Shape
from vae_jax.errors import VaeJaxError
from vae_jax.given import Count, Positive
from vae_jax.interfaces import Model, Prior


class VampPrior(Prior):
    """p(z) = sum_c w_c q(z | u_c) with pseudo-inputs u_c.

    The pseudo-inputs are parameters. If they are fixed, they are exemplars, in the collection
    "exemplars", and only the encoder that maps them is trained.

    Attributes:
        num_components: the number of components C.
        mean: the mean of the normal from which pseudo-inputs are initialized. The paper's code has
            0.05 for MNIST, and clips u_c to [0, 1], as this class does.
        stddev: the standard deviation of that normal, 0.01 in the paper's code.
        images: images from which each seed draws its initial pseudo-inputs instead.
        fixed: whether pseudo-inputs keep their initial values.
        learned_weights: whether the w_c are learned; otherwise they are 1/C.

    Raises:
        VaeJaxError: there are fewer images than components, or (when the model is used) they have
            another shape than the model's images.

    References:
        Tomczak & Welling (2018), "VAE with a VampPrior", equation 9.
        Norouzi et al. (2020), "Exemplar VAE: linking generative models, nearest neighbor retrieval,
            and data augmentation", whose prior also excludes the image being encoded.

    Example:
        Exemplars, drawn from the training images:

        >>> prior = VampPrior(500, images=data.train.images, fixed=True)
    """

    num_components: Count
    mean: float = 0.05
    stddev: Positive = 0.01
    images: Annotated[
        UInt8[np.ndarray, "N H W C"] | None, "images, an array of uint8 [N, H, W, C], or None"
    ] = None
    fixed: bool = False
    learned_weights: bool = False

    spaces = frozenset({"real", "sphere"})
    needs = frozenset({"density", "amortized"})

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        if self.images is not None and len(self.images) < self.num_components:
            raise VaeJaxError(
                f"VampPrior cannot draw {self.num_components} components from {len(self.images)} "
                "images: give at least as many images, or fewer components."
            )

    @nn.compact
    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Mixture:
        shape = (self.num_components, *model.image_shape)
        if self.images is not None and self.images.shape[1:] != model.image_shape:
            raise VaeJaxError(
                f"The images of VampPrior have the shape {self.images.shape[1:]}, the model's "
                f"{model.image_shape}: give images of the data, such as data.train.images."
            )
        if self.fixed:
            pseudo_inputs = self.variable(
                "exemplars", "pseudo_inputs", lambda: self._start(self.make_rng(), shape)
            ).value
        else:
            pseudo_inputs = self.param("pseudo_inputs", self._start, shape)
        logits = jnp.zeros(self.num_components)
        if self.learned_weights:
            logits = self.param("logits", nn.initializers.zeros, logits.shape)
        log_weights = jax.nn.log_softmax(logits)
        return Mixture(log_weights, model.encode(jnp.clip(pseudo_inputs, 0.0, 1.0)))

    def _start(self, key: Key[Array, ""], shape: Shape) -> Float[Array, "C ..."]:
        if self.images is None:
            return self.mean + self.stddev * jax.random.normal(key, shape)
        rows = jax.random.choice(key, len(self.images), shape[:1], replace=False)
        return jnp.asarray(self.images)[rows] / 255.0
