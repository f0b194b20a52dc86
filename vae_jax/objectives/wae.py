"""The Wasserstein autoencoder: q(z) matched to p(z) instead of each q(z|x)."""

from dataclasses import dataclass

from jax import Array
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.objectives.mmd import IMQ, VECTOR_SPACES, Kernel, aggregated_mmd
from vae_jax.vae import Terms, has_bound


@dataclass(frozen=True)
class WAE(Objective):
    """The Wasserstein autoencoder with MMD.

    The loss is the distortion + weight MMD². With `Gaussian(scale)` the distortion is, up to a
    constant, the squared error divided by 2 scale². q(z|x) may be deterministic.

    Attributes:
        weight: the weight lambda of MMD².
        kernel: the kernel of MMD.

    References:
        Tolstikhin et al. (2018), "Wasserstein auto-encoders", algorithm 2.
    """

    weight: Weight
    kernel: Kernel = IMQ()

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(
            without=frozenset({"codebook"}),
            spaces=VECTOR_SPACES,
            fixed_prior=True,
            one_layer=True,
            whole_batch=True,
            least_batch=2,
        )

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image, of a batch of at least two images."""
        del step
        metrics = terms.bound_metrics() if has_bound(model) else terms.rate_and_distortion()
        distance = aggregated_mmd(terms, self.kernel, model)
        loss = -terms.log_px.mean() + self.weight * distance
        return loss, metrics | {"mmd": distance}
