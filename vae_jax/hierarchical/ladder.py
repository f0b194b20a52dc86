"""Inference from the top layer to the bottom one, merged with the generative model."""

from collections.abc import Sequence

from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax.distributions import Distribution, Normal
from vae_jax.errors import VaeJaxError
from vae_jax.hierarchical.base import Hierarchy, exact_kls, sample_layer
from vae_jax.interfaces import Layers
from vae_jax.vae import Terms


class LadderVAE(Hierarchy, kw_only=True):
    """Inference top-down: q(z|x) = q(z_L|x) q(z_{L-1}|x, z_L) ... q(z_1|x, z_2).

    In the deterministic bottom-up pass, `h_1 = encoders[0](x)`, `h_2 = encoders[1](h_1)`, ..., each
    layer has a Gaussian, posteriors[l], on its features. In the top-down pass this is merged with
    p(z_l|z_{l+1}); at the top it stands alone. Posteriors and conditionals below the top must have
    independent Gaussian components.

    `Terms.kl` has for each layer the exact KL given the latents above, averaged over their K
    samples; it is None if the top layer has no closed form.

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
        """q(z_1|x, y, z_2, ...), batch `[B]`, with the layers above at their means."""
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
