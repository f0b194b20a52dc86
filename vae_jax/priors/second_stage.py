"""A second VAE, over the latents of the first (Dai & Wipf 2019)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Distribution, Shape
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Model, Prior
from vae_jax.likelihoods.gaussian import Gaussian
from vae_jax.networks import MLP
from vae_jax.posteriors.gaussian import DiagonalGaussian
from vae_jax.priors.simple import StandardNormal
from vae_jax.vae import VAE


@struct.dataclass
class SecondStage(Distribution):
    """p(z) = E_p(u)[p(z|u)] of a VAE over latents `[d]`: it can be sampled, not evaluated."""

    variables: Any
    vae: VAE = struct.field(pytree_node=False)

    @property
    @override
    def shape(self) -> Shape:
        return self.vae.image_shape[:1]

    @property
    def mean(self) -> Array:
        """The decoder's mean at u = 0."""
        u = jnp.zeros(self.event_shape)
        pz: Any = self.vae.apply(self.variables, (u,), method="decode")
        return pz.mean.reshape(self.event_shape)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """u from N(0, I), then z from p(z|u), noise included."""
        keys = random.draw_keys(key, sample_shape, ()).reshape(-1)
        u_and_pz: Any = self.vae.apply(self.variables, keys, method="sample")
        z = u_and_pz[1].sample(random.purpose(keys, "pixels"))
        return z.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Array) -> Array:
        """There is only a bound, which `elbo` has.

        Raises:
            VaeJaxError: always.
        """
        raise VaeJaxError(
            "A second-stage VAE has no density of z, only a bound on it: sample from it, or fit a "
            "mixture or a flow to evaluate likelihoods."
        )

    def elbo(self, z: Array, keys: Array) -> Array:
        """The bound on ln p(z) with one sample of u, `[N, d]` and keys `[N]` to `[N]`, nats."""
        terms: Any = self.vae.apply(self.variables, z.reshape(-1, *self.vae.image_shape), keys)
        return terms.log_px[0] - terms.kl[0]


class SecondStageVAE(Prior):
    """A VAE over latents `[dim]`, as wide in u as in z (Dai & Wipf 2019).

    Attributes:
        dim: latent dimensions d, of z and of u.
        hidden: widths of the hidden layers of encoder and decoder.
    """

    dim: int
    hidden: tuple[int, ...] = (512, 512)

    def setup(self):
        """Latents are images of `dim` x 1 pixels."""
        self.vae = VAE(
            encoder=MLP(self.hidden, jax.nn.relu),
            posterior=DiagonalGaussian(self.dim),
            prior=StandardNormal(self.dim),
            decoder=MLP(self.hidden, jax.nn.relu),
            likelihood=Gaussian(squash=_identity),
            image_shape=(self.dim, 1, 1),
        )

    def __call__(self, model: Model, y: Array | None = None) -> SecondStage:
        """Batch `[]`, event `[dim]`."""
        if self.is_initializing():
            self.vae(jnp.zeros((1, self.dim, 1, 1)), random.key(0)[None])
        return SecondStage(self.vae.variables, self.vae.clone(parent=None))


def _identity(x: Array) -> Array:
    return x
