"""One importance-weighted bound for the model, several for the inference network."""

from dataclasses import dataclass, replace

from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Count
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.objectives.importance import importance_bound, in_groups, requirements
from vae_jax.objectives.miwae import MIWAE
from vae_jax.vae import Terms


@dataclass(frozen=True)
class PIWAE(Objective):
    """The IWAE bound with M K samples for p, the MIWAE bound for q.

    p(x|z) is computed twice, the second time with z held fixed, so that either bound can be
    differentiated with respect to p alone. A prior made from the encoder counts as p.

    Attributes:
        m: the number of bounds M for q.
        k: the number of samples K in each.
        doubly_reparameterized: whether the gradient of q is doubly reparameterized.

    References:
        Rainforth et al. (2018), "Tighter variational bounds are not necessarily better".
        Tucker et al. (2019), "Doubly reparameterized gradient estimators for Monte Carlo
            objectives".
    """

    m: Count
    k: Count
    doubly_reparameterized: bool = False

    @property
    def num_samples(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of samples M K."""
        return self.m * self.k

    @property
    @override
    def requires(self) -> Requirements:
        return replace(requirements(self.doubly_reparameterized), one_layer=True)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """A loss with the value -L_MK in nats per image, and with MIWAE's gradient for q."""
        loss, metrics = MIWAE(self.m, self.k, self.doubly_reparameterized)(terms, step, model)
        z, log_qz = lax.stop_gradient((terms.z[0], terms.log_qz[0]))
        px = model.likelihood.observe(model.decode((z,), terms.y), terms.x, remember=False)
        log_w = px.log_prob(terms.x) + terms.p[0].log_prob(z) - log_qz
        miwae = in_groups(importance_bound, self.m)(log_w).mean()
        return loss + miwae - importance_bound(log_w).mean(), metrics
