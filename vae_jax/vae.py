"""The variational autoencoder and its Terms."""

import math
from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from vae_jax import random
from vae_jax.distributions import Distribution, Shared, exact_kl, sample_each
from vae_jax.interfaces import Layers, Metrics, Model, Posterior

D = TypeVar("D", bound=Distribution)


@struct.dataclass
class Terms:
    """What an objective or an estimator needs, per sample k and example b; nothing is averaged.

    Layers are tuples, the bottom layer first; a VAE has one.

    Attributes:
        x: images `[B, H, W, C]` as the likelihood sees them.
        y: their labels `[B]` in a conditional model, else None.
        keys: typed keys `[B]`, from which `random.purpose` makes more noise.
        z: latents `[K, B, *event_l]`, layer by layer.
        path: zeros `[K, B]`; adding `(c * path).sum()` to a loss multiplies the gradient that
            passes through z[k, b] by 1 + c[k, b] (`weigh_path`). None with several layers.
        log_px: ln p(x|z), `[K, B]`, nats, summed over pixels.
        log_pz: ln p(z), layer by layer, `[L, K, B]`.
        log_qz: ln q(z|x), layer by layer, `[L, K, B]`.
        kl: exact KL(q(z|x) || p(z)) in nats, `[L, B]`; None where no closed form exists. Where a
            layer depends on sampled ones (`LadderVAE`), the mean over K of its exact KLs.
        q: the posteriors, layer by layer.
        p: the priors, layer by layer.
        reconstruction: the mean of p(x|z), `[K, B, H, W, C]`.
    """

    x: Array
    y: Array | None
    keys: Array
    z: Layers
    path: Array | None
    log_px: Array
    log_pz: Array
    log_qz: Array
    kl: Array | None
    q: tuple[Distribution, ...]
    p: tuple[Distribution, ...]
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

    def held_log_qz(self) -> Array:
        """ln q(z|x) of a single layer with q's parameters held fixed, `[K, B]`.

        Gradients pass through z alone.
        """
        return lax.stop_gradient(self.q[0]).log_prob(self.z[0])

    def rate_and_distortion(self) -> Metrics:
        """The distortion, and the rate summed over layers: `kl` exact, `kl_sampled` estimated."""
        metrics = {
            "distortion": -self.log_px.mean(),
            "kl_sampled": self.kl_sampled.sum(0).mean(),
        }
        if self.kl is not None:
            metrics["kl"] = self.kl.sum(0).mean()
        for layer, kl in enumerate(self.kl_sampled[1:], start=2):
            metrics[f"kl_sampled_z{layer}"] = kl.mean()
        return metrics

    def bound_metrics(self) -> Metrics:
        """`neg_elbo`, at beta = 1, and the metrics of `rate_and_distortion`."""
        neg_elbo = (self.rate.sum(0) - self.log_px.mean(0)).mean()
        return {"neg_elbo": neg_elbo} | self.rate_and_distortion()


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


class VAE(Model, kw_only=True):
    """encoder x posterior x prior x decoder x likelihood (Kingma & Welling 2013).

    Attributes:
        encoder: a network from images `[B, H, W, C]` to features.
        posterior: from features to q(z|x).
        prior: p(z).
        decoder: a network from latents, and the image shape, to features.
        likelihood: from features, and the image shape, to p(x|z).
        critic: what the objective plays against, if it needs one.
        labels: makes it the model p(x|z, y), q(z|x, y) of images with classes y.
        image_shape: (H, W, C); by default that of an experiment's data.
    """

    encoder: nn.Module
    posterior: Posterior
    decoder: nn.Module

    @property
    def posteriors(self) -> tuple[Posterior]:
        """The posterior of the one layer."""
        return (self.posterior,)

    def __call__(
        self, x: Array, keys: Array, num_samples: int = 1, y: Array | None = None
    ) -> Terms:
        """Encode, sample, decode; see `Model`."""
        q = self.encode(x, y)
        p = self.prior(self, y)
        z, log_qz = q.sample_and_log_prob(random.purpose(keys, "posterior"), (num_samples,))
        z, path = weigh_path(z, jnp.zeros(z.shape[:2], z.dtype))
        log_pz = p.log_prob(z)
        px = self.likelihood.observe(self.decode((z,), y), x)
        kl = exact_kl(q, p)
        return Terms(
            x=x,
            y=y,
            keys=keys,
            z=(z,),
            path=path,
            log_px=px.log_prob(x),
            log_pz=log_pz[None],
            log_qz=log_qz[None],
            kl=None if kl is None else kl[None],
            q=(q,),
            p=(p,),
            reconstruction=px.mean,
        )

    def encode(self, x: Array, y: Array | None = None) -> Distribution:
        """q(z|x) for images `[B, H, W, C]`."""
        if self.labels is not None:
            x = self.labels.for_encoder(x, y)
        return self.posterior(self.encoder(x))

    def decode(self, zs: Layers, y: Array | None = None) -> Distribution:
        """p(x|z) for latents `([..., *event],)`: batch `[...]`, event `[H, W, C]`."""
        (z,) = zs

        def likelihood(z: Array) -> Distribution:
            if self.labels is not None:
                z = self.labels.for_decoder(z, y)
            return self.likelihood(self.decoder(z, self.image_shape), self.image_shape)

        return apply_flat(likelihood, z, self.posterior.event_ndims)

    def sample(self, keys: Array, y: Array | None = None) -> tuple[Layers, Distribution]:
        """Latents `([N, *event],)` from the prior, one for each key of `[N]`, and p(x|z) there."""
        z = sample_each(self.prior(self, y), random.purpose(keys, "prior"))
        return (z,), self.decode((z,), y)

    def log_prior(self, zs: Layers, y: Array | None = None) -> Array:
        """ln p(z) for latents `([..., *event],)`: `[...]`, nats."""
        (z,) = zs
        return self.prior(self, y).log_prob(z)
