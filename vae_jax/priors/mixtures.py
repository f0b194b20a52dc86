"""Mixture priors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.distributions import Mixture, Normal, Shape
from vae_jax.interfaces import Model, Prior, latent_shape


class GaussianMixture(Prior):
    """p(z) = sum_c w_c N(z; m_c, diag s_c²), all learned with the rest of the model.

    Starts from equal weights, scales of one and means drawn from N(0, I).

    Attributes:
        num_components: C.
        shape: of z: d, (n, d) or (h, w, c).
    """

    num_components: int
    shape: int | Shape

    @nn.compact
    def __call__(self, model: Model, y: Array | None = None) -> Mixture:
        """Batch `[]`, event `[*shape]`."""
        event = latent_shape(self.shape)
        shape = (self.num_components, *event)
        loc = self.param("loc", nn.initializers.normal(1.0), shape)
        log_scale = self.param("log_scale", nn.initializers.zeros, shape)
        logits = self.param("logits", nn.initializers.zeros, (self.num_components,))
        components = Normal(loc, jnp.exp(log_scale), event_ndims=len(event))
        return Mixture(jax.nn.log_softmax(logits), components)


class VampPrior(Prior):
    """p(z) = sum_c w_c q(z | u_c): of pseudo-inputs u_c (Tomczak & Welling 2018, equation 9).

    They are parameters or, fixed, exemplars: images that stay as they are, in the collection
    "exemplars", while the encoder that maps them learns (Norouzi et al. 2020, whose prior also
    leaves out the image that is being encoded; this one does not).

    Attributes:
        num_components: C.
        mean, stddev: of the normal that pseudo-inputs start from. The paper's code uses 0.05 and
            0.01 for MNIST and keeps u_c in [0, 1] by clipping, as we do.
        images: uint8 `[N, H, W, C]`; given, each seed draws its pseudo-inputs from these instead.
        fixed: whether pseudo-inputs stay what they start from.
        learned_weights: whether the w_c are learned; else they are 1/C.
    """

    num_components: int
    mean: float = 0.05
    stddev: float = 0.01
    images: np.ndarray | None = None
    fixed: bool = False
    learned_weights: bool = False

    spaces = frozenset({"real", "sphere"})
    needs = frozenset({"density", "amortized"})

    @nn.compact
    def __call__(self, model: Model, y: Array | None = None) -> Mixture:
        """Batch `[]`, event that of q."""
        shape = (self.num_components, *model.image_shape)
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

    def _start(self, key: Array, shape: Shape) -> Array:
        if self.images is None:
            return self.mean + self.stddev * jax.random.normal(key, shape)
        rows = jax.random.choice(key, len(self.images), shape[:1], replace=False)
        return jnp.asarray(self.images)[rows] / 255.0
