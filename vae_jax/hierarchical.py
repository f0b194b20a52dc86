"""Models with several stochastic layers; they return the same Terms as `VAE`."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.compatibility import check_events
from vae_jax.conditional import LabelEmbedding
from vae_jax.distributions import Distribution, Normal, Shape, exact_kl, sample_each
from vae_jax.errors import VaeJaxError
from vae_jax.likelihoods.base import observed
from vae_jax.vae import Terms, apply_flat, fold_in_each


class Hierarchy(nn.Module):
    """p(x, z) = p(z_L) p(z_{L-1}|z_L) ... p(z_1|z_2) p(x|z_1); subclasses say how z is inferred.

    Attributes (each sequence has the bottom layer first):
        encoders: L networks; see the subclass.
        posteriors: L, on the encoders' features.
        prior: p(z_L); one that is made of q(z|x), like the VampPrior, is refused.
        decoders: L networks: the first towards x, then towards z_1, ..., z_{L-1}.
        conditionals: L - 1: p(z_1|z_2), ..., on the features of decoders[1:].
        likelihood: p(x|z_1), on the features of decoders[0].
        critic: what the objective plays against, if it needs one.
        labels: makes all these densities those given y, as in `VAE`.
        image_shape: (H, W, C).
    """

    encoders: Sequence[nn.Module]
    posteriors: Sequence[nn.Module]
    prior: nn.Module
    decoders: Sequence[nn.Module]
    conditionals: Sequence[nn.Module]
    likelihood: nn.Module
    critic: nn.Module | None = None
    labels: LabelEmbedding | None = None
    image_shape: Shape = (28, 28, 1)

    def decode(self, z: Array) -> Distribution:
        """p(x|z_1) for latents `[..., *event_1]`: batch `[...]`, event `[H, W, C]`."""

        def likelihood(z: Array) -> Distribution:
            features = self.decoders[0](self._for_decoder(z), self.image_shape)
            return self.likelihood(features, self.image_shape)

        return apply_flat(likelihood, z, self.posteriors[0].event_ndims)

    def sample(self, keys: Array) -> tuple[tuple[Array, ...], Distribution]:
        """Latents of every layer `[N, *event_l]`, bottom first, one for each key, and p(x|z_1)."""
        z = sample_each(self._top(), fold_in_each(keys, len(self.encoders) - 1))
        zs = [z]
        for layer in reversed(range(len(self.encoders) - 1)):
            z = self._generate(layer, z).sample(fold_in_each(keys, layer))
            zs.insert(0, z)
        return tuple(zs), self.decode(z)

    def log_prior(self, zs: Sequence[Array]) -> Array:
        """ln p(z_1, ..., z_L) for latents `[..., *event_l]`, bottom first: `[...]`, nats."""
        log_pz = [p.log_prob(z) for p, z in zip(self._priors(zs), zs, strict=True)]
        return jnp.stack(log_pz).sum(0)

    def log_joint(self, x: Array, zs: Sequence[Array]) -> Array:
        """ln p(x, z_1, ..., z_L) of images `[B, H, W, C]`, latents `[..., B, *event_l]`, nats."""
        return self.decode(zs[0]).log_prob(x) + self.log_prior(zs)

    def _terms(
        self,
        x: Array,
        keys: Array,
        zs: Sequence[Array],
        qs: Sequence[Distribution],
        ps: Sequence[Distribution],
        kl: Array | None,
    ) -> Terms:
        for q, p in zip(qs, ps, strict=True):
            check_events(q, p)
        px = observed(self.likelihood, self.decode(zs[0]), x)
        return Terms(
            x=x,
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

    def _generate(self, layer: int, z: Array) -> Normal:
        """p(z_{layer+1} | z_{layer+2}), counting layers from one."""

        def conditional(z: Array) -> Normal:
            return self.conditionals[layer](self.decoders[layer + 1](self._for_decoder(z)))

        return apply_flat(conditional, z, self.posteriors[layer + 1].event_ndims)

    def _for_encoder(self, x: Array) -> Array:
        return x if self.labels is None else self.labels.for_encoder(x)

    def _for_decoder(self, z: Array) -> Array:
        return z if self.labels is None else self.labels.for_decoder(z)

    def _top(self) -> Distribution:
        if self.prior.needs:
            raise VaeJaxError(
                f"{type(self.prior).__name__} is made of the model's q(z|x), which is not that of "
                f"the top layer in a {type(self).__name__}: take a prior that is not, such as "
                "StandardNormal."
            )
        return self.prior(self)

    def _priors(self, zs: Sequence[Array]) -> list[Distribution]:
        """p(z_1|z_2), ..., p(z_{L-1}|z_L), p(z_L)."""
        return [*(self._generate(layer, z) for layer, z in enumerate(zs[1:])), self._top()]


class HierarchicalVAE(Hierarchy):
    """Inference bottom-up: q(z|x) = q(z_1|x) q(z_2|z_1) ... q(z_L|z_{L-1}).

    Burda et al. (2015), section 2. The encoders are networks on x, z_1, ..., z_{L-1}.
    """

    def __call__(self, x: Array, keys: Array, num_samples: int = 1) -> Terms:
        """As `VAE.__call__`; `kl` is None: only the sampled estimate exists, layer by layer."""
        q = self.encode(x)
        z = sample_layer(q, keys, 0, num_samples)
        qs, zs = [q], [z]
        for layer in range(1, len(self.encoders)):
            q = self._infer(layer, z)
            z = sample_layer(q, keys, layer, num_samples)
            qs.append(q)
            zs.append(z)
        return self._terms(x, keys, zs, qs, self._priors(zs), kl=None)

    def encode(self, x: Array) -> Normal:
        """q(z_1|x) for images `[B, H, W, C]`."""
        return self.posteriors[0](self.encoders[0](self._for_encoder(x)))

    def _infer(self, layer: int, z: Array) -> Normal:
        """q(z_{layer+1} | z_layer), counting layers from one."""

        def posterior(z: Array) -> Normal:
            return self.posteriors[layer](self.encoders[layer](self._for_encoder(z)))

        return apply_flat(posterior, z, self.posteriors[layer - 1].event_ndims)


def sample_layer(q: Distribution, keys: Array, place: int, num_samples: int) -> Array:
    """Latents `[K, B, *event]` of the layer that is inferred at a place, 0 first, of keys `[B]`.

    Args:
        q: of batch `[B]` at place 0, else `[K, B]`, given the latents before.
        keys: of the examples.
        place: in the order of inference.
        num_samples: K.
    """
    if place == 0:
        return q.sample(fold_in_each(keys, 0), (num_samples,))
    purposes = place * num_samples + jnp.arange(num_samples)
    return q.sample(jax.vmap(lambda purpose: fold_in_each(keys, purpose))(purposes))


class LadderVAE(Hierarchy):
    """Inference top-down: q(z|x) = q(z_L|x) q(z_{L-1}|x, z_L) ... q(z_1|x, z_2).

    Sønderby et al. (2016), section 2.2. A deterministic way up, h_1 = encoders[0](x), h_2 =
    encoders[1](h_1), ..., gives each layer a Gaussian, posteriors[l] of its features; on the way
    down it is merged with p(z_l|z_{l+1}), and stands alone at the top. All but the top layer's
    posterior and the prior must be of independent Gaussian components.
    """

    def __call__(self, x: Array, keys: Array, num_samples: int = 1) -> Terms:
        """As `VAE.__call__`.

        `kl` has for each layer the exact KL given the latents above, averaged over their K samples;
        None where the top layer's has no closed form.
        """
        q, *below = self._bottom_up(x)
        p = self._top()
        check_events(q, p)
        z = sample_layer(q, keys, 0, num_samples)
        qs, ps, zs = [q], [p], [z]
        for place, evidence in enumerate(below, start=1):
            p = self._generate(len(below) - place, z)
            q = merge(evidence, p)
            z = sample_layer(q, keys, place, num_samples)
            qs.insert(0, q)
            ps.insert(0, p)
            zs.insert(0, z)
        kls = [exact_kl(q, p) for q, p in zip(qs, ps, strict=True)]
        means = [kl.reshape(-1, len(x)).mean(0) for kl in kls if kl is not None]
        kl = jnp.stack(means) if len(means) == len(kls) else None
        return self._terms(x, keys, zs, qs, ps, kl)

    def encode(self, x: Array) -> Distribution:
        """q(z_1|x, z_2, ...) of images `[B, H, W, C]`, the layers above at their means."""
        q, *below = self._bottom_up(x)
        for place, evidence in enumerate(below, start=1):
            q = merge(evidence, self._generate(len(below) - place, q.mean))
        return q

    def _bottom_up(self, x: Array) -> list[Distribution]:
        """What x says of z_L, ..., z_1: the top layer first, batch `[B]`."""
        h, found = self._for_encoder(x), []
        for encoder, posterior in zip(self.encoders, self.posteriors, strict=True):
            h = encoder(h)
            found.insert(0, posterior(h))
        return found


def merge(evidence: Distribution, p: Distribution) -> Normal:
    """The product of two Gaussians, normalized: means weighted by their precisions.

    Sønderby et al. (2016), section 2.2.

    Args:
        evidence: bottom-up, batch `[B]`.
        p: top-down, batch `[..., B]`.

    Raises:
        VaeJaxError: one of them is no Normal, or they are over latents of two shapes.
    """
    if not (isinstance(evidence, Normal) and isinstance(p, Normal)):
        names = " and a ".join(type(given).__name__ for given in (evidence, p))
        raise VaeJaxError(
            f"A LadderVAE merges two Gaussians of independent components, and was given a {names}: "
            "below the top, take DiagonalGaussian for posteriors and conditionals."
        )
    check_events(evidence, p)
    precision = evidence.scale**-2 + p.scale**-2
    loc = (evidence.loc * evidence.scale**-2 + p.loc * p.scale**-2) / precision
    return Normal(loc, precision**-0.5, event_ndims=evidence.event_ndims)
