"""A warm-up in which the layers of a hierarchy share the weight of the KL."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Count
from vae_jax.interfaces import Layers, Metrics, Model, Objective, Requirements
from vae_jax.parallel import batch_mean
from vae_jax.vae import Terms

FLOOR = 0.01  # nats, so that a layer without rate keeps a weight


def shares_of(zs: Layers) -> Float[np.ndarray, "L"]:
    """alpha_l of latents zs: the positions in a layer's map / the number of layers of that size."""
    maps = [z.shape[2:-1] for z in zs]
    count = Counter(maps)
    return np.array([np.prod(shape, initial=1) / count[shape] for shape in maps])


@dataclass(frozen=True)
class BalancedELBO(Objective):
    """Distortion + beta sum_l gamma_l KL_l, gamma_l ∝ E[KL_l] / alpha_l.

    While beta is below one, layers with a high rate for their size alpha_l are penalized more than
    layers with a low rate, so that none is left unused; the weights gamma_l have a mean of one and
    no gradient. At beta = 1 they are one, and this is the ELBO.

    Attributes:
        beta: the weight of the KL, a schedule of the step that ends at one.
        num_samples: the number of samples K.

    References:
        Vahdat & Kautz (2020), "NVAE: a deep hierarchical variational autoencoder", appendix A,
            where alpha_l is the layer's size; dividing by the number of layers of that size follows
            the paper's code.
    """

    beta: Callable[[Array], ArrayLike] = field()
    num_samples: Count = 1

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(posterior=frozenset({"density"}), whole_batch=True)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image; the metric `neg_elbo` has neither weight."""
        del model
        beta = jnp.asarray(self.beta(step), terms.log_px.dtype)
        rates = terms.rate.mean(1)
        gamma = (batch_mean(jnp.abs(terms.rate).mean(1)) + FLOOR) / shares_of(terms.z)
        gamma = jnp.where(beta < 1, lax.stop_gradient(gamma / gamma.mean()), 1.0)
        loss = -terms.log_px.mean() + beta * (gamma * rates).sum()
        return loss, terms.bound_metrics() | {"beta": beta}
