"""The common base of models with several stochastic layers, which return the Terms of `VAE`."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Distribution, exact_kl, log_prob_or_bound, sample_each
from vae_jax.errors import VaeJaxError
from vae_jax.given import Bounds, check_decoder, check_encoder
from vae_jax.interfaces import Layers, Model, Posterior
from vae_jax.vae import Terms, apply_flat, weigh_paths, with_parameters_held

NETWORKS = "a tuple of Linen modules, such as (MLP((64,)), MLP((64,)))"
POSTERIORS = "a tuple of posteriors, such as (DiagonalGaussian(8), DiagonalGaussian(4))"


class Hierarchy(Model, kw_only=True):
    """p(x, z) = p(z_L) p(z_{L-1}|z_L) ... p(z_1|z_2) p(x|z_1); subclasses infer z.

    Every sequence has the bottom layer first.

    Attributes:
        encoders: L networks; see the subclass.
        posteriors: L posteriors, on the features of the encoders.
        prior: p(z_L); one that depends on q(z|x), such as the VampPrior, only in a `SkipVAE`.
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
    conditionals: Annotated[  # pyright: ignore[reportIncompatibleVariableOverride]
        Sequence[Posterior], POSTERIORS
    ]

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
        """q(z_l | x, ...) of every layer, each given the latents inferred before it."""
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


def exact_kls(
    qs: Sequence[Distribution], ps: Sequence[Distribution], size: int
) -> Float[Array, "L B"] | None:
    """The exact KL of each layer, averaged over samples; None if one has no closed form.

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
    """Log-densities under the priors; for one that is `Bounded`, an estimate of its bound."""
    return jnp.stack([log_prob_or_bound(p, z, keys) for p, z in zip(ps, zs, strict=True)])


def sample_layer(
    q: Distribution, keys: Key[Array, "B"], position: int, num_samples: int
) -> Float[Array, "K B ..."]:
    """Latents of one layer.

    Args:
        q: the layer's posterior, batch `[B]` for the layer inferred first, `[K, B]` for the others,
            given the layers before.
        keys: the keys of the examples.
        position: the layer's position in the order of inference, from 0.
        num_samples: the number of samples K.
    """
    keys = random.indexed(random.purpose(keys, "posterior"), position)
    if position == 0:
        return q.sample(keys, (num_samples,))
    return q.sample(random.indexed(keys, jnp.arange(num_samples)[:, None]))
