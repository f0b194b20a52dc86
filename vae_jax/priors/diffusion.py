"""Diffusion in the space of latents, with a bound on its likelihood."""

from typing import ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Shape, sum_event
from vae_jax.given import Count
from vae_jax.priors.transport import Sampler, Transported, TransportPrior, standard_normal_bound

GAMMA = (-10.0, 10.0)
"""gamma = -ln(alpha² / sigma²) at the data end, where sigma is 0.7 percent, and the noise end."""


class NoiseSchedule(nn.Module):
    """A learned increasing map of [0, 1] onto itself (Kingma et al. 2021, appendix H).

    A line plus sigmoids, all with positive slopes; at initialization it is close to the line.

    Attributes:
        width: the number of sigmoids.
    """

    width: int = 32

    @nn.compact
    def __call__(self, t: Float[Array, "N"]) -> Float[Array, "N"]:
        """The fraction of the range from the first gamma to the last at times t in [0, 1]."""
        shape = (self.width,)
        weights = jax.nn.softplus(self.param("weights", nn.initializers.constant(-6.0), shape))
        slopes = jax.nn.softplus(self.param("slopes", nn.initializers.constant(10.0), shape))

        def centres(key: Key[Array, ""], shape: Shape) -> Array:
            del key, shape
            return jnp.arange(self.width) / max(self.width - 1, 1)

        centre = self.param("centres", centres, shape)

        def raw(t: Array) -> Array:
            return t + (weights * jax.nn.sigmoid(slopes * (t[..., None] - centre))).sum(-1)

        low, high = raw(jnp.zeros(())), raw(jnp.ones(()))
        return (raw(t) - low) / (high - low)


class Diffusion(TransportPrior):
    """Variational diffusion of latents with a learned noise schedule.

    z_t = alpha z + sigma e with alpha² = sigmoid(-gamma(t)) and sigma² = sigmoid(gamma(t)), gamma
    increasing from -10 to 10. In continuous time the bound has three terms:

        ln p(z) >= E ln p(z|z_0) - KL(q(z_1|z) || N(0, I)) - 1/2 E_t,e[gamma'(t) |e - e(z_t)|²],

    where p(z|z_0) = N(z_0 / alpha, sigma² / alpha²) at t = 0. The network's output v estimates
    alpha e - sigma z, and e(z_t) = sigma z_t + alpha v. At initialization v is zero, with which
    p(z) is N(0, I) and the bound is tight and known in closed form. The difference that v makes in
    the third term is estimated from one t and one e, without bias. Its mean does not depend on the
    schedule between the ends, so the schedule is trained to lower the variance of the estimate
    (appendix I.2).

    Latents should have a scale near one, as `fit-prior` gives them, and q(z|x) should be much wider
    than the noise at t = 0, 0.7 percent.

    In the ELBO this bound replaces ln p(z), so the result bounds ln p(x) of the model that samples
    step by step ("ancestral"). Evaluation uses the exact density of the ODE up to 64 dimensions,
    and this bound above.

    Attributes:
        shape, network, num_classes, drop_labels, guidance, sampler: as in `TransportPrior`.
        num_steps: the number of steps of the ancestral sampler, equally spaced in gamma.

    References:
        Kingma et al. (2021), "Variational diffusion models", equations 11 to 18.
        Vahdat et al. (2021), "Score-based generative modeling in latent space", for the prior of a
            VAE.
        Salimans & Ho (2022), "Progressive distillation for fast sampling of diffusion models", for
            the network's output.
        Ho & Salimans (2022), "Classifier-free diffusion guidance", for guidance.

    Example:
        As a second stage, for a model with z of the shape (7, 7, 4):

        >>> second = fit_prior(run, Diffusion((7, 7, 4)), "runs/diffusion")
    """

    num_steps: Count = 250

    samplers: ClassVar[tuple[Sampler, ...]] = ("ode", "ancestral")

    def setup(self):
        """The schedule, besides the network and the embeddings."""
        super().setup()
        self.schedule = NoiseSchedule()

    @override
    def start(self) -> None:
        self.schedule(jnp.zeros(1))

    @property
    @override
    def ends(self) -> tuple[float, float]:
        return GAMMA

    @override
    def alpha_sigma(
        self, s: Float[ArrayLike, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        return jnp.sqrt(jax.nn.sigmoid(-jnp.asarray(s))), jnp.sqrt(jax.nn.sigmoid(jnp.asarray(s)))

    @override
    def speed(self, s: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        # With tan(phi) = sigma / alpha, dz/dphi = v.
        alpha, sigma = self.alpha_sigma(s)
        return alpha * sigma / 2

    @override
    def bound(
        self,
        p: Transported,
        z: Float[Array, "N *event"],
        noise: Float[Array, "N *event"],
        uniform: Float[Array, "N"],
        y: Int[Array, "N"] | None,
    ) -> Float[Array, "N"]:
        first, last = GAMMA

        def share(t: Array) -> Array:
            return cast(Array, self.apply(p.variables, t, method=lambda self, t: self.schedule(t)))

        share_t, slope = jax.jvp(share, (uniform,), (jnp.ones_like(uniform),))

        def term(p: Transported, z: Array, share: Array, slope: Array) -> Array:
            gamma = first + (last - first) * share
            alpha, sigma = (
                each.reshape(-1, *[1] * (z.ndim - 1)) for each in self.alpha_sigma(gamma)
            )
            v = p.velocity(alpha * z + sigma * noise, gamma, y)
            true = alpha * noise - sigma * z
            change = alpha**2 * v * (v - 2 * true)  # of |e - e(z_t)|² from v = 0, that is N(0, I)
            return (last - first) * slope / 2 * sum_event(change, z.ndim - 1)

        held = lax.stop_gradient
        loss = term(p, z, held(share_t), held(slope))
        # The mean does not depend on the schedule: the gradient of the square is the variance's.
        square = term(held(p), held(z), share_t, slope) ** 2 / (2 * noise[0].size)
        return standard_normal_bound(self, z) - loss - (square - held(square))

    @override
    def ancestral(
        self,
        p: Transported,
        noise: Float[Array, "*draws_and_event"],
        key: Key[Array, "..."],
        sample_shape: Shape,
    ) -> Float[Array, "*draws_and_event"]:
        flat, y = p.flat(noise)
        first, last = GAMMA
        gammas = jnp.linspace(last, first, self.num_steps + 1)

        def new(name: str, step: Array | int) -> Array:
            own = random.indexed(random.purpose(key, name), step)
            return random.draw(jax.random.normal, own, sample_shape, p.shape).reshape(flat.shape)

        def step(z: Array, step: Array) -> tuple[Array, None]:
            gamma, after = gammas[step], gammas[step + 1]
            alpha, sigma = self.alpha_sigma(gamma)
            alpha_after, sigma_after = self.alpha_sigma(after)
            v = p.guided(z, jnp.full(len(z), gamma), y)
            share = -jnp.expm1(after - gamma)
            mean = alpha_after / alpha * (z - share * sigma * (sigma * z + alpha * v))
            return mean + sigma_after * jnp.sqrt(share) * new("step", step), None

        z, _ = lax.scan(step, flat, jnp.arange(self.num_steps))
        alpha, sigma = self.alpha_sigma(GAMMA[0])
        return ((z + sigma * new("last", 0)) / alpha).reshape(noise.shape)
