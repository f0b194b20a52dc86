"""Inference from the bottom layer to the top one."""

from collections.abc import Sequence

from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax.distributions import Distribution
from vae_jax.hierarchical.base import Hierarchy, sample_layer
from vae_jax.interfaces import Layers
from vae_jax.vae import Terms, apply_flat


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
