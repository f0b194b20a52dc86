"""Flow matching in the space of latents."""

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.distributions import sum_event
from vae_jax.priors.transport import Transported, TransportPrior, standard_normal_bound

FIRST = 1e-3  # the time at the data end, and sigma there


class FlowMatching(TransportPrior):
    """Flow matching with straight paths from data to noise.

    z_t = (1 - t) z + t e for t from 0.001 to 1; the network's v estimates e - z. Fitted to given
    latents, it minimizes E_t,e |e - z - v(z_t, t)|² (equation 23), which is not a bound; ln p(z) is
    the density of the ODE. At initialization v is zero, and p(z) is N(0, I) up to a factor of 1.001
    in scale.

    In the ELBO this error is weighted so that it gives the bound of `Diffusion` along the straight
    path, with t drawn uniformly in ln t:

        ln p(z) >= E ln p(z|z_t) at t = 0.001 - 1/2 E_t,e[gamma'(t) (1 - t)² |e - z - v|²],

    with gamma = 2 ln(t / (1 - t)). It bounds ln p(z) of the diffusion with these paths. Only its
    difference from the known bound of N(0, I) is estimated. Evaluation uses the exact density of
    the ODE up to 64 dimensions, and this bound above.

    Attributes:
        shape, network, num_classes, drop_labels, guidance, sampler: as in `TransportPrior`.

    References:
        Lipman et al. (2023), "Flow matching for generative modeling", section 4.1.
        Kingma & Gao (2023), "Understanding diffusion objectives as the ELBO with simple data
            augmentation".
        Ho & Salimans (2022), "Classifier-free diffusion guidance", for guidance.

    Example:
        As a second stage, conditioned on ten classes, for a model with z of 16 dimensions:

        >>> second = fit_prior(run, FlowMatching(16, num_classes=10), "runs/flow")
        >>> images = second.sample(64, guidance=1.0)
    """

    @property
    @override
    def ends(self) -> tuple[float, float]:
        return FIRST, 1.0

    @override
    def alpha_sigma(
        self, s: Float[ArrayLike, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        return 1 - jnp.asarray(s), jnp.asarray(s)

    @override
    def speed(self, s: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.ones_like(s)

    @override
    def bound(
        self,
        p: Transported,
        z: Float[Array, "N *event"],
        noise: Float[Array, "N *event"],
        uniform: Float[Array, "N"],
        y: Int[Array, "N"] | None,
    ) -> Float[Array, "N"]:
        t = FIRST**uniform  # its density is 1 / (t ln 1/FIRST)
        z_t, true, v = self._velocities(p, z, noise, t, y)
        at = t.reshape(-1, *[1] * (z.ndim - 1))
        normal = (2 * at - 1) / (at**2 + (1 - at) ** 2) * z_t  # the velocity of N(0, I)
        change = (v - normal) * (v + normal - 2 * true)  # of |e - z - v|² from that of N(0, I)
        weight = (1 - t) * math.log(1 / FIRST)
        return standard_normal_bound(self, z) - weight * sum_event(change, z.ndim - 1)

    @override
    def to_fit(
        self,
        p: Transported,
        z: Float[Array, "N *event"],
        noise: Float[Array, "N *event"],
        uniform: Float[Array, "N"],
        y: Int[Array, "N"] | None,
    ) -> Float[Array, "N"]:
        _, true, v = self._velocities(p, z, noise, uniform, y)
        return -sum_event((true - v) ** 2, z.ndim - 1)

    def _velocities(
        self,
        p: Transported,
        z: Float[Array, "N *event"],
        noise: Float[Array, "N *event"],
        t: Float[Array, "N"],
        y: Int[Array, "N"] | None,
    ) -> tuple[Float[Array, "N *event"], Float[Array, "N *event"], Float[Array, "N *event"]]:
        """z_t, the velocity e - z of its path, and the network's."""
        at = t.reshape(-1, *[1] * (z.ndim - 1))
        z_t = (1 - at) * z + at * noise
        return z_t, noise - z, p.velocity(z_t, t, y)
