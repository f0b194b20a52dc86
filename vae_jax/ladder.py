"""The ladder VAE: inference and generation share the way down."""

import jax.numpy as jnp
from jax import Array

from vae_jax.compatibility import check_events
from vae_jax.distributions import Distribution, Normal, exact_kl
from vae_jax.errors import VaeJaxError
from vae_jax.hierarchical import Hierarchy, sample_layer
from vae_jax.vae import Terms


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
