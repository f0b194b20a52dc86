"""Models with several stochastic layers; they return the same Terms as `VAE`."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from vae_jax import random
from vae_jax.distributions import Distribution, Normal, exact_kl, sample_each
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Layers, Model, Posterior
from vae_jax.vae import Terms, apply_flat


class Hierarchy(Model, kw_only=True):
    """p(x, z) = p(z_L) p(z_{L-1}|z_L) ... p(z_1|z_2) p(x|z_1); subclasses say how z is inferred.

    Attributes (each sequence has the bottom layer first):
        encoders: L networks; see the subclass.
        posteriors: L posteriors, on the features of the encoders.
        prior: p(z_L); one that is made of q(z|x), like the VampPrior, is refused.
        decoders: L networks: the first towards x, then towards z_1, ..., z_{L-1}.
        conditionals: L - 1 densities p(z_1|z_2), ..., on the features of decoders[1:].
        likelihood: p(x|z_1), on the features of decoders[0].
        critic: what the objective plays against, if it needs one.
        labels: makes all these densities those given y, as in `VAE`.
        image_shape: (H, W, C); by default that of an experiment's data.
    """

    encoders: Sequence[nn.Module]
    posteriors: Sequence[Posterior]  # pyright: ignore[reportIncompatibleMethodOverride]
    decoders: Sequence[nn.Module]
    conditionals: Sequence[Posterior]

    def decode(self, zs: Layers, y: Array | None = None) -> Distribution:
        """p(x|z_1) for latents `[..., *event_l]`: batch `[...]`, event `[H, W, C]`."""

        def likelihood(z: Array) -> Distribution:
            features = self.decoders[0](self._for_decoder(z, y), self.image_shape)
            return self.likelihood(features, self.image_shape)

        return apply_flat(likelihood, zs[0], self.posteriors[0].event_ndims)

    def sample(self, keys: Array, y: Array | None = None) -> tuple[Layers, Distribution]:
        """Latents of every layer `[N, *event_l]`, one for each key, and p(x|z_1)."""
        keys = random.purpose(keys, "prior")
        z = sample_each(self._top(y), random.indexed(keys, len(self.encoders) - 1))
        zs = [z]
        for layer in reversed(range(len(self.encoders) - 1)):
            z = self._generate(layer, z, y).sample(random.indexed(keys, layer))
            zs.insert(0, z)
        return tuple(zs), self.decode(tuple(zs), y)

    def log_prior(self, zs: Layers, y: Array | None = None) -> Array:
        """ln p(z_1, ..., z_L) for latents `[..., *event_l]`: `[...]`, nats."""
        log_pz = [p.log_prob(z) for p, z in zip(self._priors(zs, y), zs, strict=True)]
        return jnp.stack(log_pz).sum(0)

    def _terms(
        self,
        x: Array,
        y: Array | None,
        keys: Array,
        zs: Sequence[Array],
        qs: Sequence[Distribution],
        ps: Sequence[Distribution],
        kl: Array | None,
    ) -> Terms:
        px = self.likelihood.observe(self.decode(tuple(zs), y), x)
        return Terms(
            x=x,
            y=y,
            keys=keys,
            z=tuple(zs),
            path=None,
            log_px=px.log_prob(x),
            log_pz=jnp.stack([p.log_prob(z) for p, z in zip(ps, zs, strict=True)]),
            log_qz=jnp.stack([q.log_prob(z) for q, z in zip(qs, zs, strict=True)]),
            kl=kl,
            q=tuple(qs),
            p=tuple(ps),
            reconstruction=px.mean,
        )

    def _generate(self, layer: int, z: Array, y: Array | None) -> Distribution:
        """p(z_{layer+1} | z_{layer+2}), counting layers from one."""

        def conditional(z: Array) -> Distribution:
            return self.conditionals[layer](self.decoders[layer + 1](self._for_decoder(z, y)))

        return apply_flat(conditional, z, self.posteriors[layer + 1].event_ndims)

    def _for_encoder(self, x: Array, y: Array | None) -> Array:
        return x if self.labels is None else self.labels.for_encoder(x, y)

    def _for_decoder(self, z: Array, y: Array | None) -> Array:
        return z if self.labels is None else self.labels.for_decoder(z, y)

    def _top(self, y: Array | None) -> Distribution:
        if self.prior.needs:
            raise VaeJaxError(
                f"{type(self.prior).__name__} is made of the model's q(z|x), which is not the "
                f"posterior of the top layer in a {type(self).__name__}: take another prior, such "
                "as StandardNormal."
            )
        return self.prior(self, y)

    def _priors(self, zs: Layers, y: Array | None) -> list[Distribution]:
        """p(z_1|z_2), ..., p(z_{L-1}|z_L), p(z_L)."""
        return [*(self._generate(layer, z, y) for layer, z in enumerate(zs[1:])), self._top(y)]


class HierarchicalVAE(Hierarchy, kw_only=True):
    """Inference bottom-up: q(z|x) = q(z_1|x) q(z_2|z_1) ... q(z_L|z_{L-1}).

    Burda et al. (2015), section 2. The encoders are networks on x, z_1, ..., z_{L-1}.
    """

    def __call__(
        self, x: Array, keys: Array, num_samples: int = 1, y: Array | None = None
    ) -> Terms:
        """As `VAE.__call__`; `kl` is None: only the sampled estimate exists, layer by layer."""
        q = self.encode(x, y)
        z = sample_layer(q, keys, 0, num_samples)
        qs, zs = [q], [z]
        for layer in range(1, len(self.encoders)):
            q = self._infer(layer, z, y)
            z = sample_layer(q, keys, layer, num_samples)
            qs.append(q)
            zs.append(z)
        return self._terms(x, y, keys, zs, qs, self._priors(tuple(zs), y), kl=None)

    def encode(self, x: Array, y: Array | None = None) -> Distribution:
        """q(z_1|x) for images `[B, H, W, C]`."""
        return self.posteriors[0](self.encoders[0](self._for_encoder(x, y)))

    def _infer(self, layer: int, z: Array, y: Array | None) -> Distribution:
        """q(z_{layer+1} | z_layer), counting layers from one."""

        def posterior(z: Array) -> Distribution:
            return self.posteriors[layer](self.encoders[layer](self._for_encoder(z, y)))

        return apply_flat(posterior, z, self.posteriors[layer - 1].event_ndims)


class LadderVAE(Hierarchy, kw_only=True):
    """Inference top-down: q(z|x) = q(z_L|x) q(z_{L-1}|x, z_L) ... q(z_1|x, z_2).

    Sønderby et al. (2016), section 2.2. A deterministic way up, h_1 = encoders[0](x), h_2 =
    encoders[1](h_1), ..., gives each layer a Gaussian, posteriors[l], on its features; on the way
    down it is merged with p(z_l|z_{l+1}), and stands alone at the top. All posteriors and priors
    but those of the top layer must have independent Gaussian components.
    """

    def __call__(
        self, x: Array, keys: Array, num_samples: int = 1, y: Array | None = None
    ) -> Terms:
        """As `VAE.__call__`.

        `kl` has for each layer the exact KL given the latents above, averaged over their K samples;
        it is None where the top layer has no closed form.
        """
        q, *below = self._bottom_up(x, y)
        p = self._top(y)
        z = sample_layer(q, keys, 0, num_samples)
        qs, ps, zs = [q], [p], [z]
        for position, evidence in enumerate(below, start=1):
            p = self._generate(len(below) - position, z, y)
            q = merge(evidence, p)
            z = sample_layer(q, keys, position, num_samples)
            qs.insert(0, q)
            ps.insert(0, p)
            zs.insert(0, z)
        kls = [exact_kl(q, p) for q, p in zip(qs, ps, strict=True)]
        means = [kl.reshape(-1, len(x)).mean(0) for kl in kls if kl is not None]
        kl = jnp.stack(means) if len(means) == len(kls) else None
        return self._terms(x, y, keys, zs, qs, ps, kl)

    def encode(self, x: Array, y: Array | None = None) -> Distribution:
        """q(z_1|x, z_2, ...) for images `[B, H, W, C]`, the layers above at their means."""
        q, *below = self._bottom_up(x, y)
        for position, evidence in enumerate(below, start=1):
            q = merge(evidence, self._generate(len(below) - position, q.mean, y))
        return q

    def _bottom_up(self, x: Array, y: Array | None) -> list[Distribution]:
        """What x says about z_L, ..., z_1: the top layer first, batch `[B]`."""
        h, found = self._for_encoder(x, y), []
        for encoder, posterior in zip(self.encoders, self.posteriors, strict=True):
            h = encoder(h)
            found.insert(0, posterior(h))
        return found


def sample_layer(q: Distribution, keys: Array, position: int, num_samples: int) -> Array:
    """Latents `[K, B, *event]` of one layer.

    Args:
        q: batch `[B]` for the layer that is inferred first, else `[K, B]`, given the latents
            before.
        keys: the examples' keys `[B]`.
        position: the layer's position in the order of inference, from 0.
        num_samples: K.
    """
    keys = random.indexed(random.purpose(keys, "posterior"), position)
    if position == 0:
        return q.sample(keys, (num_samples,))
    return q.sample(random.indexed(keys, jnp.arange(num_samples)[:, None]))


def merge(evidence: Distribution, p: Distribution) -> Normal:
    """The product of two Gaussians, normalized: means weighted by their precisions.

    Sønderby et al. (2016), section 2.2.

    Args:
        evidence: bottom-up, batch `[B]`.
        p: top-down, batch `[..., B]`.

    Raises:
        VaeJaxError: one of them is not a Normal.
    """
    if not (isinstance(evidence, Normal) and isinstance(p, Normal)):
        names = " and a ".join(type(given).__name__ for given in (evidence, p))
        raise VaeJaxError(
            f"A LadderVAE merges two Gaussians of independent components, and was given a {names}: "
            "below the top, take DiagonalGaussian for posteriors and conditionals."
        )
    precision = evidence.scale**-2 + p.scale**-2
    loc = (evidence.loc * evidence.scale**-2 + p.loc * p.scale**-2) / precision
    return Normal(loc, precision**-0.5, event_ndims=evidence.event_ndims)
