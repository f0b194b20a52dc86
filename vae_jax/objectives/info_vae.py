"""The InfoVAE: q(z) matched to p(z) by maximum mean discrepancy, besides a weighted KL."""

from dataclasses import dataclass
from typing import Annotated

from jax import Array
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.errors import VaeJaxError
from vae_jax.given import Bounds, Count, Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.objectives.mmd import IMQ, VECTOR_SPACES, Kernel, aggregated_mmd
from vae_jax.vae import Terms


@dataclass(frozen=True)
class InfoVAE(Objective):
    """Distortion + (1 - alpha) KL + (alpha + lambda - 1) MMD².

    At alpha = 1 it is the MMD-VAE.

    Attributes:
        alpha: the weight of the mutual information of x and z, at most 1.
        lambda_: the weight lambda; the distance between q(z) and p(z) has the weight
            alpha + lambda - 1.
        kernel: the kernel of MMD.
        num_samples: the number of samples K.

    Raises:
        VaeJaxError: alpha + lambda - 1 is negative, so that the distance would be rewarded.

    References:
        Zhao et al. (2019), "InfoVAE: balancing learning and inference in variational autoencoders".
        Gretton et al. (2012), "A kernel two-sample test", lemma 6, for MMD².
    """

    alpha: Annotated[float, Bounds(most=1)]
    lambda_: Weight
    kernel: Kernel = IMQ()
    num_samples: Count = 1

    @override
    def __post_init__(self):
        super().__post_init__()
        if self.alpha + self.lambda_ < 1:
            raise VaeJaxError(
                f"alpha + lambda_ - 1 of InfoVAE is {self.alpha + self.lambda_ - 1:g}, a reward "
                f"for the distance of q(z) from p(z): give lambda_ >= {1 - self.alpha:g}."
            )

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(
            posterior=frozenset({"density"}),
            spaces=VECTOR_SPACES,
            one_layer=True,
            whole_batch=True,
            least_batch=2,
        )

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image, of a batch of at least two images."""
        del step
        distance = aggregated_mmd(terms, self.kernel, model)
        loss = (
            -terms.log_px.mean()
            + (1 - self.alpha) * terms.rate.sum(0).mean()
            + (self.alpha + self.lambda_ - 1) * distance
        )
        return loss, terms.bound_metrics() | {"mmd": distance}
