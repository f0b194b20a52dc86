"""The variational autoencoder and its Terms."""

import math
from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from vae_jax.compatibility import check_events
from vae_jax.conditional import LabelEmbedding
from vae_jax.distributions import Distribution, Shape, Shared, exact_kl, sample_each
from vae_jax.likelihoods.base import observed

D = TypeVar("D", bound=Distribution)


@struct.dataclass
class Terms:
    """All that an objective or an estimator needs, per sample k and example b; nothing is averaged.

    Attributes:
        x: images `[B, H, W, C]` as the likelihood sees them.
        keys: `[B]`, to fold in for more noise (`fold_in_each`); what is drawn here used them bare.
        z: latents `[K, B, ...]`; a tuple, bottom layer first, in hierarchical models.
        path: zeros `[K, B]`; adding `(c * path).sum()` to a loss multiplies the gradient that
            passes through z[k, b] by 1 + c[k, b] (`weigh_path`). None in hierarchical models.
        log_px: ln p(x|z), `[K, B]`, nats, summed over pixels.
        log_pz: ln p(z), layer by layer, `[L, K, B]`.
        log_qz: ln q(z|x), layer by layer, `[L, K, B]`.
        kl: exact KL(q(z|x) || p(z)) in nats, `[L, B]`; None where no closed form exists. Where a
            layer depends on sampled ones (`LadderVAE`), the mean over K of its exact KLs.
        q: the posterior; a tuple of L in hierarchical models.
        p: the prior; a tuple of L conditionals in hierarchical models.
        reconstruction: mean of p(x|z), `[K, B, H, W, C]`.
    """

    x: Array
    keys: Array
    z: Array | tuple[Array, ...]
    path: Array | None
    log_px: Array
    log_pz: Array
    log_qz: Array
    kl: Array | None
    q: Distribution | tuple[Distribution, ...]
    p: Distribution | tuple[Distribution, ...]
    reconstruction: Array

    @property
    def log_w(self) -> Array:
        """Log importance weights ln p(x, z) - ln q(z|x), `[K, B]` (Burda et al. 2015, eq. 8)."""
        return self.log_px + (self.log_pz - self.log_qz).sum(0)

    @property
    def kl_sampled(self) -> Array:
        """The sampled estimate of the KL, the mean over K of ln q - ln p, `[L, B]`."""
        return (self.log_qz - self.log_pz).mean(1)

    @property
    def rate(self) -> Array:
        """KL(q(z|x) || p(z)), `[L, B]`: exact where that exists, else the sampled estimate."""
        return self.kl_sampled if self.kl is None else self.kl


@jax.custom_vjp
def weigh_path(z: Array, weights: Array) -> tuple[Array, Array]:
    """The identity, whose backward pass multiplies z's cotangent by 1 + that of `weights`.

    So one backward pass gives the parameters behind z another weight for each sample than the
    parameters in front of it, as doubly reparameterized gradients need (Tucker et al. 2019).

    Args:
        z: `[K, B, ...]`.
        weights: zeros `[K, B]`.
    """
    return z, weights


def _weigh_path_forward(z: Array, weights: Array) -> tuple[tuple[Array, Array], None]:
    return (z, weights), None


def _weigh_path_backward(_: None, cotangents: tuple[Array, Array]) -> tuple[Array, Array]:
    of_z, weights = cotangents
    factor = 1 + weights.reshape(weights.shape + (1,) * (of_z.ndim - weights.ndim))
    return factor * of_z, jnp.zeros_like(weights)


weigh_path.defvjp(_weigh_path_forward, _weigh_path_backward)


def apply_flat(conditional: Callable[[Array], D], z: Array, event_ndims: int = 1) -> D:
    """p(. | z) for latents `[*batch, *event]`, through networks that take `[N, *event]`."""
    batch, event = z.shape[: z.ndim - event_ndims], z.shape[z.ndim - event_ndims :]
    flat = conditional(z.reshape(math.prod(batch), *event))

    def reshaped(leaf: Array | Shared) -> Array | Shared:
        return leaf if isinstance(leaf, Shared) else leaf.reshape(*batch, *leaf.shape[1:])

    return jax.tree.map(reshaped, flat, is_leaf=lambda leaf: isinstance(leaf, Shared))


def fold_in_each(keys: Array, purpose: Array | int) -> Array:
    """Keys `[B]` for another purpose."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)


class VAE(nn.Module):
    """encoder x posterior x prior x decoder x likelihood (Kingma & Welling 2013).

    Attributes:
        encoder: network from images `[B, H, W, C]` to features.
        posterior: from features to q(z|x).
        prior: p(z).
        decoder: network from latents, and the image shape, to features.
        likelihood: from features, and the image shape, to p(x|z).
        critic: what the objective plays against, if it needs one.
        labels: makes it the model p(x|z, y), q(z|x, y) of images with classes y, which `given`
            gives to it: all that is said of x here then holds given y.
        image_shape: (H, W, C).
    """

    encoder: nn.Module
    posterior: nn.Module
    prior: nn.Module
    decoder: nn.Module
    likelihood: nn.Module
    critic: nn.Module | None = None
    labels: LabelEmbedding | None = None
    image_shape: Shape = (28, 28, 1)

    def __call__(self, x: Array, keys: Array, num_samples: int = 1) -> Terms:
        """Encode, sample, decode.

        Args:
            x: images `[B, H, W, C]`, scaled by the data set's protocol.
            keys: `[B]` typed keys: each example draws its noise from its own.
            num_samples: K.
        """
        q = self.encode(x)
        p = self.prior(self)
        check_events(q, p)
        z, log_qz = q.sample_and_log_prob(keys, (num_samples,))
        z, path = weigh_path(z, jnp.zeros(z.shape[:2], z.dtype))
        log_pz = p.log_prob(z)
        px = observed(self.likelihood, self.decode(z), x)
        kl = exact_kl(q, p)
        return Terms(
            x=x,
            keys=keys,
            z=z,
            path=path,
            log_px=px.log_prob(x),
            log_pz=log_pz[None],
            log_qz=log_qz[None],
            kl=None if kl is None else kl[None],
            q=q,
            p=p,
            reconstruction=px.mean,
        )

    def encode(self, x: Array) -> Distribution:
        """q(z|x) for images `[B, H, W, C]`."""
        if self.labels is not None:
            x = self.labels.for_encoder(x)
        return self.posterior(self.encoder(x))

    def decode(self, z: Array) -> Distribution:
        """p(x|z) for latents `[..., *event]`: batch `[...]`, event `[H, W, C]`."""

        def likelihood(z: Array) -> Distribution:
            if self.labels is not None:
                z = self.labels.for_decoder(z)
            return self.likelihood(self.decoder(z, self.image_shape), self.image_shape)

        return apply_flat(likelihood, z, self.posterior.event_ndims)

    def sample(self, keys: Array) -> tuple[Array, Distribution]:
        """Latents `[N, *event]` from the prior, one for each key of `[N]`, and p(x|z) there."""
        z = sample_each(self.prior(self), keys)
        return z, self.decode(z)

    def log_prior(self, z: Array) -> Array:
        """ln p(z) for latents `[..., *event]`: `[...]`, nats."""
        return self.prior(self).log_prob(z)

    def log_joint(self, x: Array, z: Array) -> Array:
        """ln p(x|z) + ln p(z) for images `[B, H, W, C]` and latents `[..., B, *event]`, nats."""
        return self.decode(z).log_prob(x) + self.log_prior(z)
