"""Models with several stochastic layers; they return the same Terms as `VAE`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import (
    Distribution,
    Normal,
    Shape,
    exact_kl,
    log_prob_or_bound,
    sample_each,
)
from vae_jax.errors import VaeJaxError
from vae_jax.given import Bounds, check_decoder, check_encoder
from vae_jax.interfaces import Layers, Model, Posterior
from vae_jax.vae import Terms, apply_flat, weigh_paths, with_batch, with_parameters_held

NETWORKS = "a tuple of Linen modules, such as (MLP((64,)), MLP((64,)))"
POSTERIORS = "a tuple of posteriors, such as (DiagonalGaussian(8), DiagonalGaussian(4))"


class Hierarchy(Model, kw_only=True):
    """p(x, z) = p(z_L) p(z_{L-1}|z_L) ... p(z_1|z_2) p(x|z_1); subclasses infer z.

    Every sequence has the bottom layer first.

    Attributes:
        encoders: L networks; see the subclass.
        posteriors: L posteriors, on the features of the encoders.
        prior: p(z_L); one that is made of q(z|x), such as the VampPrior, only in a `SkipVAE`.
        decoders: L networks: decoders[0] maps z_1 to the features of the likelihood p(x|z_1), and
            decoders[i] maps z_{i+1} to those of conditionals[i - 1], which is p(z_i|z_{i+1}).
        conditionals: the L - 1 densities p(z_1|z_2), p(z_2|z_3), and so on.
        likelihood: p(x|z_1), on the features of decoders[0].
        critic: the module that the objective plays against, if it needs one.
        labels: the embedding of classes y, on which all densities then depend, as in `VAE`.
        image_shape: (H, W, C); by default that of an experiment's data.
    """

    encoders: Annotated[Sequence[nn.Module], Bounds(least=1), NETWORKS]
    posteriors: Annotated[  # pyright: ignore[reportIncompatibleMethodOverride]
        Sequence[Posterior], POSTERIORS
    ]
    decoders: Annotated[Sequence[nn.Module], NETWORKS]
    conditionals: Annotated[Sequence[Posterior], POSTERIORS]

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        counts = {
            "encoders": len(self.encoders),
            "posteriors": len(self.posteriors),
            "decoders": len(self.decoders),
            "conditionals": len(self.conditionals) + 1,
        }
        for name, count in counts.items():
            if count != (most := max(counts.values())):
                few = name == "conditionals"
                raise VaeJaxError(
                    f"{name} of {type(self).__name__} are {count - few}, where {most} layers have "
                    f"{most - few}: give an encoder, a posterior and a decoder for each layer, and "
                    "a conditional for each below the top."
                )
        for index, (encoder, decoder) in enumerate(zip(self.encoders, self.decoders, strict=True)):
            check_encoder(f"encoders[{index}] of {type(self).__name__}", encoder)
            check_decoder(f"decoders[{index}] of {type(self).__name__}", decoder, index == 0)

    @override
    def decode(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Distribution:
        def likelihood(z: Array) -> Distribution:
            features = self.decoders[0](self._for_decoder(z, y), self.image_shape)
            return self.likelihood(features, self.image_shape)

        return apply_flat(likelihood, zs[0], self.posteriors[0])

    @override
    def sample(
        self, keys: Key[Array, "N"], y: Int[Array, "B"] | None = None
    ) -> tuple[Layers, Distribution]:
        keys = random.purpose(keys, "prior")
        z = sample_each(self._top(y), random.indexed(keys, len(self.encoders) - 1))
        zs = [z]
        for layer in reversed(range(len(self.encoders) - 1)):
            z = self._generate(layer, z, y).sample(random.indexed(keys, layer))
            zs.insert(0, z)
        return tuple(zs), self.decode(tuple(zs), y)

    @override
    def log_prior(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Float[Array, "..."]:
        return _log_probs(self._priors(zs, y), zs).sum(0)

    @override
    def held(self, terms: Terms) -> Terms:
        zs, path = weigh_paths(terms.z)
        px = self.likelihood.observe(self.decode(zs, terms.y), terms.x, remember=False)
        qs = with_parameters_held(type(self)._inferred, self, terms.x, zs, terms.y)
        return dataclasses.replace(
            terms,
            z=zs,
            path=path,
            log_px=px.log_prob(terms.x),
            log_pz=_log_priors(self._priors(zs, terms.y), zs, terms.keys),
            log_qz=_log_probs(qs, zs),
        )

    def _inferred(
        self, x: Float[Array, "B H W C"], zs: Layers, y: Int[Array, "_"] | None
    ) -> Sequence[Distribution]:
        """q(z_l | x, ...) of every layer, each given the latents that are inferred before it."""
        raise NotImplementedError

    def _terms(
        self,
        x: Float[Array, "B H W C"],
        y: Int[Array, "_"] | None,
        keys: Key[Array, "B"],
        zs: Sequence[Float[Array, "K B ..."]],
        qs: Sequence[Distribution],
        ps: Sequence[Distribution],
        kl: Float[Array, "L B"] | None,
    ) -> Terms:
        px = self.likelihood.observe(self.decode(tuple(zs), y), x)
        return Terms(
            x=x,
            y=y,
            keys=keys,
            z=tuple(zs),
            path=None,
            log_px=px.log_prob(x),
            log_pz=_log_priors(ps, zs, keys),
            log_qz=_log_probs(qs, zs),
            kl=kl,
            q=tuple(qs),
            p=tuple(ps),
            reconstruction=px.mean,
        )

    def _generate(
        self, layer: int, z: Float[Array, "..."], y: Int[Array, "B"] | None
    ) -> Distribution:
        """p(z_{layer+1} | z_{layer+2}), with layers counted from one."""

        def conditional(z: Array) -> Distribution:
            return self.conditionals[layer](self.decoders[layer + 1](self._for_decoder(z, y)))

        return apply_flat(conditional, z, self.posteriors[layer + 1])

    def _for_encoder(
        self, x: Float[Array, "N ..."], y: Int[Array, "B"] | None
    ) -> Float[Array, "N ..."]:
        return x if self.labels is None else self.labels.for_encoder(x, y)

    def _for_decoder(
        self, z: Float[Array, "N ..."], y: Int[Array, "B"] | None
    ) -> Float[Array, "N ..."]:
        return z if self.labels is None else self.labels.for_decoder(z, y)

    def _top(self, y: Int[Array, "B"] | None) -> Distribution:
        if self.prior.needs:
            raise VaeJaxError(
                f"{type(self.prior).__name__} is made of the model's q(z|x), which is not the "
                f"posterior of the top layer in a {type(self).__name__}: take another prior, such "
                "as StandardNormal, or a SkipVAE."
            )
        return self.prior(self, y)

    def _priors(self, zs: Layers, y: Int[Array, "B"] | None) -> list[Distribution]:
        """p(z_1|z_2), ..., p(z_{L-1}|z_L), p(z_L)."""
        return [*(self._generate(layer, z, y) for layer, z in enumerate(zs[1:])), self._top(y)]


class HierarchicalVAE(Hierarchy, kw_only=True):
    """Inference bottom-up: q(z|x) = q(z_1|x) q(z_2|z_1) ... q(z_L|z_{L-1}).

    The encoders are networks on x, z_1, ..., z_{L-1}. No KL has a closed form: `Terms.kl` is None.

    References:
        Burda et al. (2015), "Importance weighted autoencoders", section 2.
    """

    @override
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        keys: Key[Array, "B"],
        num_samples: int = 1,
        y: Int[Array, "_"] | None = None,
    ) -> Terms:
        q = self.encode(x, y)
        z = sample_layer(q, keys, 0, num_samples)
        qs, zs = [q], [z]
        for layer in range(1, len(self.encoders)):
            q = self._infer(layer, z, y)
            z = sample_layer(q, keys, layer, num_samples)
            qs.append(q)
            zs.append(z)
        return self._terms(x, y, keys, zs, qs, self._priors(tuple(zs), y), kl=None)

    @override
    def encode(self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None) -> Distribution:
        return self.posteriors[0](self.encoders[0](self._for_encoder(x, y)))

    @override
    def infer(
        self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None
    ) -> tuple[Distribution, ...]:
        qs = [self.encode(x, y)]
        for layer in range(1, len(self.encoders)):
            qs.append(self._infer(layer, qs[-1].mean, y))
        return tuple(qs)

    @override
    def _inferred(
        self, x: Float[Array, "B H W C"], zs: Layers, y: Int[Array, "_"] | None
    ) -> Sequence[Distribution]:
        above = [self._infer(layer, z, y) for layer, z in enumerate(zs[:-1], start=1)]
        return [self.encode(x, y), *above]

    def _infer(self, layer: int, z: Float[Array, "..."], y: Int[Array, "B"] | None) -> Distribution:
        """q(z_{layer+1} | z_layer), with layers counted from one."""

        def posterior(z: Array) -> Distribution:
            return self.posteriors[layer](self.encoders[layer](self._for_encoder(z, y)))

        return apply_flat(posterior, z, self.posteriors[layer - 1])


class LadderVAE(Hierarchy, kw_only=True):
    """Inference top-down: q(z|x) = q(z_L|x) q(z_{L-1}|x, z_L) ... q(z_1|x, z_2).

    On the deterministic way up, `h_1 = encoders[0](x)`, `h_2 = encoders[1](h_1)`, ..., each layer
    gets a Gaussian, posteriors[l], on its features. On the way down this is merged with
    p(z_l|z_{l+1}); at the top it stands alone. Posteriors and conditionals below the top must have
    independent Gaussian components.

    `Terms.kl` has for each layer the exact KL given the latents above, averaged over their K
    samples; it is None where the top layer has no closed form.

    References:
        Sønderby et al. (2016), "Ladder variational autoencoders", section 2.2.
    """

    @override
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        keys: Key[Array, "B"],
        num_samples: int = 1,
        y: Int[Array, "_"] | None = None,
    ) -> Terms:
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
        return self._terms(x, y, keys, zs, qs, ps, exact_kls(qs, ps, len(x)))

    def encode(self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None) -> Distribution:
        """q(z_1|x, z_2, ...), batch `[B]`, with the layers above at their means."""
        return self.infer(x, y)[0]

    @override
    def infer(
        self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None
    ) -> tuple[Distribution, ...]:
        q, *below = self._bottom_up(x, y)
        qs = [q]
        for position, evidence in enumerate(below, start=1):
            p = self._generate(len(below) - position, qs[0].mean, y)
            qs.insert(0, merge(evidence, p))
        return tuple(qs)

    @override
    def _inferred(
        self, x: Float[Array, "B H W C"], zs: Layers, y: Int[Array, "_"] | None
    ) -> Sequence[Distribution]:
        q, *below = self._bottom_up(x, y)
        ps = [self._generate(layer, z, y) for layer, z in enumerate(zs[1:])]
        merged = [merge(evidence, p) for evidence, p in zip(below[::-1], ps, strict=True)]
        return [*merged, q]

    def _bottom_up(
        self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None
    ) -> list[Distribution]:
        """The bottom-up Gaussians of z_L, ..., z_1, the top layer first, batch `[B]`."""
        h, found = self._for_encoder(x, y), []
        for encoder, posterior in zip(self.encoders, self.posteriors, strict=True):
            h = encoder(h)
            found.insert(0, posterior(h))
        return found


class SkipVAE(Hierarchy, kw_only=True):
    """p(x|z_1, ..., z_L): every layer reaches the image, past those below it.

    Inference is top-down, q(z|x) = q(z_L|x) q(z_{L-1}|x, z_L) ... q(z_1|x, z_2). With L = 2 this is
    the HVAE of Tomczak & Welling (2018). Images and latents are concatenated into one vector:
    encoders[L-1] is a network on images, the others on [x, z_{l+1}], and decoders[0] on [z_1, ...,
    z_L]. The prior of z_L may be made of q(z_L|x), as a VampPrior is.

    `Terms.kl` has for each layer the exact KL given the latents above, averaged over their K
    samples; it is None where one has no closed form.

    References:
        Tomczak & Welling (2018), "VAE with a VampPrior", section 4.
    """

    @property
    @override
    def decoded_layers(self) -> int:
        return len(self.encoders)

    @override
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        keys: Key[Array, "B"],
        num_samples: int = 1,
        y: Int[Array, "_"] | None = None,
    ) -> Terms:
        qs = [self.encode(x, y)]
        zs = [sample_layer(qs[0], keys, 0, num_samples)]
        for position in range(1, len(self.encoders)):
            qs.insert(0, self._infer(len(self.encoders) - 1 - position, x, zs[0], y))
            zs.insert(0, sample_layer(qs[0], keys, position, num_samples))
        ps = self._priors(tuple(zs), y)
        return self._terms(x, y, keys, zs, qs, ps, exact_kls(qs, ps, len(x)))

    @override
    def encode(self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None) -> Distribution:
        """q(z_L|x), batch `[B]`: that of the layer that is inferred first."""
        return self.posteriors[-1](self.encoders[-1](self._for_encoder(x, y)))

    @override
    def infer(
        self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None
    ) -> tuple[Distribution, ...]:
        qs = [self.encode(x, y)]
        for layer in reversed(range(len(self.encoders) - 1)):
            qs.insert(0, self._infer(layer, x, qs[0].mean, y))
        return tuple(qs)

    @override
    def _inferred(
        self, x: Float[Array, "B H W C"], zs: Layers, y: Int[Array, "_"] | None
    ) -> Sequence[Distribution]:
        below = [self._infer(layer, x, z, y) for layer, z in enumerate(zs[1:])]
        return [*below, self.encode(x, y)]

    @override
    def decode(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Distribution:
        batch, z = self._side_by_side(zs, self.posteriors)
        features = self.decoders[0](self._for_decoder(z, y), self.image_shape)
        return with_batch(self.likelihood(features, self.image_shape), batch)

    def decode_top(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Distribution:
        """p(x | z) for the top n layers, those below at the means of their conditionals.

        Args:
            zs: latents `[..., *event]` of the top n layers, z_L last, as `zs[-n:]` of all.
            y: the labels of a conditional model.
        """
        while len(zs) < len(self.encoders):
            layer = len(self.encoders) - len(zs) - 1
            zs = (self._generate(layer, zs[0], y).mean, *zs)
        return self.decode(zs, y)

    def _infer(
        self,
        layer: int,
        x: Float[Array, "B H W C"],
        z: Float[Array, "..."],
        y: Int[Array, "_"] | None,
    ) -> Distribution:
        """q(z_{layer+1} | x, z_{layer+2}), with layers counted from one."""
        batch, z = self._side_by_side((z,), self.posteriors[layer + 1 :])
        image = self._for_encoder(x, y).reshape(len(x), -1)
        image = jnp.broadcast_to(image, (*batch, image.shape[-1])).reshape(len(z), -1)
        features = self.encoders[layer](jnp.concatenate([image, z], -1))
        return with_batch(self.posteriors[layer](features), batch)

    def _side_by_side(
        self, zs: Layers, posteriors: Sequence[Posterior]
    ) -> tuple[Shape, Float[Array, "N d"]]:
        """The batch of latents, and the latents of all layers in one vector, the bottom first."""
        batch = zs[0].shape[: zs[0].ndim - posteriors[0].event_ndims]
        seen = [q.seen(z).reshape(math.prod(batch), -1) for q, z in zip(posteriors, zs)]  # noqa: B905
        return batch, jnp.concatenate(seen, -1)

    @override
    def _top(self, y: Int[Array, "B"] | None) -> Distribution:
        return self.prior(self, y)


def exact_kls(
    qs: Sequence[Distribution], ps: Sequence[Distribution], size: int
) -> Float[Array, "L B"] | None:
    """The exact KL of each layer, averaged over samples; None where one has no closed form.

    Args:
        qs: q(z_l|x, ...) of each layer, batch `[B]` or `[K, B]`.
        ps: p(z_l|...) of each layer.
        size: the number of examples B.
    """
    kls = [exact_kl(q, p) for q, p in zip(qs, ps, strict=True)]
    means = [kl.reshape(-1, size).mean(0) for kl in kls if kl is not None]
    return jnp.stack(means) if len(means) == len(kls) else None


def _log_probs(
    ps: Sequence[Distribution], zs: Sequence[Float[Array, "..."]]
) -> Float[Array, "L ..."]:
    """The log-density of each layer's latents."""
    return jnp.stack([p.log_prob(z) for p, z in zip(ps, zs, strict=True)])


def _log_priors(
    ps: Sequence[Distribution], zs: Sequence[Float[Array, "K B ..."]], keys: Key[Array, "B"]
) -> Float[Array, "L K B"]:
    """The same under priors; for one that is `Bounded`, an estimate of its bound."""
    return jnp.stack([log_prob_or_bound(p, z, keys) for p, z in zip(ps, zs, strict=True)])


def sample_layer(
    q: Distribution, keys: Key[Array, "B"], position: int, num_samples: int
) -> Float[Array, "K B ..."]:
    """Latents of one layer.

    Args:
        q: the layer's posterior, batch `[B]` for the layer that is inferred first, `[K, B]` for the
            others, given the layers before.
        keys: the keys of the examples.
        position: the layer's position in the order of inference, from 0.
        num_samples: the number of samples K.
    """
    keys = random.indexed(random.purpose(keys, "posterior"), position)
    if position == 0:
        return q.sample(keys, (num_samples,))
    return q.sample(random.indexed(keys, jnp.arange(num_samples)[:, None]))


def merge(evidence: Distribution, p: Distribution) -> Normal:
    """The normalized product of two Gaussians (Sønderby et al. 2016, section 2.2).

    Precisions add up, and means are weighted by them.

    Args:
        evidence: the bottom-up Gaussian, batch `[B]`.
        p: the top-down Gaussian, batch `[..., B]`.

    Raises:
        VaeJaxError: one of them is not a Normal.
    """
    if not (isinstance(evidence, Normal) and isinstance(p, Normal)):
        names = " and a ".join(type(given).__name__ for given in (evidence, p))
        raise VaeJaxError(
            f"A LadderVAE merges two Gaussians of independent components, and was given a {names}: "
            "take DiagonalGaussian for posteriors and conditionals below the top."
        )
    precision = evidence.scale**-2 + p.scale**-2
    loc = (evidence.loc * evidence.scale**-2 + p.loc * p.scale**-2) / precision
    return Normal(loc, precision**-0.5, event_ndims=evidence.event_ndims)
