"""A second VAE, over the latents of the first."""

from typing import cast

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Bounded, Distribution, Shape
from vae_jax.errors import VaeJaxError
from vae_jax.given import Dim, Widths
from vae_jax.interfaces import Layers, Model, Prior, Variables
from vae_jax.likelihoods.gaussian import Gaussian
from vae_jax.networks import MLP
from vae_jax.posteriors.gaussian import DiagonalGaussian
from vae_jax.priors.simple import StandardNormal
from vae_jax.vae import VAE, Terms


@struct.dataclass
class SecondStage(Bounded):
    """p(z) = E_p(u)[p(z|u)] of a VAE over latents `[d]`; it can be sampled but not evaluated.

    Attributes:
        variables: the variables of the VAE.
        vae: the VAE, whose images are latents.
    """

    variables: Variables
    vae: VAE = struct.field(pytree_node=False)

    @property
    @override
    def shape(self) -> Shape:
        return self.vae.image_shape[:1]

    @property
    def mean(self) -> Float[Array, "d"]:
        """The decoder's mean at u = 0; not the mean."""
        u = jnp.zeros(self.event_shape)
        pz = cast(Distribution, self.vae.apply(self.variables, (u,), method="decode"))
        return pz.mean.reshape(self.event_shape)

    def sample(self, key: Key[Array, ""], sample_shape: Shape = ()) -> Float[Array, "*draws d"]:
        """u from N(0, I), then z from p(z|u), noise included."""
        keys = random.draw_keys(key, sample_shape, ()).reshape(-1)
        u_and_pz = self.vae.apply(self.variables, keys, method="sample")
        _, pz = cast(tuple[Layers, Distribution], u_and_pz)
        z = pz.sample(random.purpose(keys, "pixels"))
        return z.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Float[Array, "*draws d"]) -> Float[Array, "*draws"]:
        """Refused: there is only a bound, `elbo`.

        Raises:
            VaeJaxError: always.
        """
        raise VaeJaxError(
            "A second-stage VAE has no density of z, only a bound on it: sample from it, or fit a "
            "mixture or a flow to evaluate likelihoods."
        )

    def elbo(
        self, value: Float[Array, "*batch d"], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """The bound on ln p(z) in nats, with one sample of u for each z."""
        x = value.reshape(-1, *self.vae.image_shape)
        terms = cast(Terms, self.vae.apply(self.variables, x, keys.reshape(-1)))
        return (terms.log_px[0] - terms.rate[0]).reshape(keys.shape)


class SecondStageVAE(Prior):
    """A VAE over latents z, whose latents u have the same number of dimensions.

    Attributes:
        dim: the number of dimensions d of z and of u.
        hidden: the widths of the hidden layers of its encoder and decoder.

    References:
        Dai & Wipf (2019), "Diagnosing and enhancing VAE models", section 3.
    """

    dim: Dim
    hidden: Widths = (512, 512)

    exact = False

    def setup(self):
        """The VAE, with latents as images of d x 1 pixels."""
        self.vae = VAE(
            encoder=MLP(self.hidden, jax.nn.relu),
            posterior=DiagonalGaussian(self.dim),
            prior=StandardNormal(self.dim),
            decoder=MLP(self.hidden, jax.nn.relu),
            likelihood=Gaussian(squash=_identity),
            image_shape=(self.dim, 1, 1),
        )

    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> SecondStage:
        if self.is_initializing():
            self.vae(jnp.zeros((1, self.dim, 1, 1)), random.key(0)[None])
        return SecondStage(self.vae.variables, self.vae.clone(parent=None))


def _identity(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return x
