"""Priors that carry noise to latents along the paths of a learned velocity.

Data and noise are joined by z_s = alpha_s z + sigma_s e, with e from N(0, I). A network learns the
mean velocity v(z_s, s) of these paths, and dz/ds = v carries N(0, I) at the end of noise to a
density at the end of data: its probability-flow ODE (Song et al. 2021, "Score-based generative
modeling", section 4.3). Up to 64 dimensions this density is exact, although it needs an ODE solver;
above, it can only be estimated, and evaluation uses a bound. Training maximizes that bound or fits
the velocity.
"""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.conditional import check_guidance, dropped, labels_or_zero
from vae_jax.distributions import Bounded, Shape, sum_event
from vae_jax.errors import VaeJaxError
from vae_jax.flows import solve, solve_with_log_det
from vae_jax.flows.ode import EXACT_UP_TO, Velocity
from vae_jax.given import Count, LatentShape, Network, Proportion, Weight
from vae_jax.interfaces import Model, Prior, Variables, latent_shape
from vae_jax.networks.conditioned import AdaptiveMLP, embedded
from vae_jax.networks.dit import DiT
from vae_jax.networks.unet import UNet

Sampler = Literal["ode", "ancestral"]

DENSITY_TOLERANCE = 1e-5
SAMPLE_TOLERANCE = 1e-3  # of the error of a step, in units of the noise
CONDITION = 128


OfNoise = Callable[
    [
        "Transported",
        Float[Array, "N *event"],
        Float[Array, "N *event"],
        Float[Array, "N"],
        Int[Array, "N"] | None,
    ],
    Float[Array, "N"],
]
"""A function of a density and, for each value: the value, noise, a number in [0, 1], a class."""


@struct.dataclass
class Transported(Bounded):
    """The density of noise carried to data by the probability-flow ODE.

    Draws by the ODE have this density. `elbo` bounds the density of the prior's ancestral sampler,
    which is the same if the network's velocity is exact.

    Attributes:
        variables: the variables of the prior.
        y: classes `[B]` of the densities of a batch; None for one density.
        prior: the prior, which has the network.
    """

    variables: Variables
    y: Int[Array, "B"] | None
    prior: "TransportPrior" = struct.field(pytree_node=False)
    event_ndims: int = struct.field(pytree_node=False, default=1, kw_only=True)

    exact_mean = False

    @property
    @override
    def shape(self) -> Shape:
        batch = () if self.y is None else self.y.shape
        return (*batch, *latent_shape(self.prior.shape))

    @property
    def mean(self) -> Float[Array, "*batch_and_event"]:
        """The point to which the ODE carries zero noise; not the mean."""
        return self._carried(jnp.zeros(self.shape))

    def log_prob(self, value: Float[Array, "..."]) -> Float[Array, "..."]:
        """ln N(z_1; 0, I) plus the integral of the divergence along the path from z to z_1.

        The divergence is exact up to 64 dimensions. Above, it is Hutchinson's estimate, with one
        fixed vector of signs (`vae_jax.flows.ode`), and no bound: evaluation takes `elbo` there.
        """
        flat, y = self.flat(value)
        ends = self.prior.ends
        alpha, _ = self.prior.alpha_sigma(ends[0])

        def one(z: Array, y: Array | None) -> Array:
            velocity = self._of_one(y)
            noise, log_det = solve_with_log_det(velocity, alpha * z, ends, DENSITY_TOLERANCE)
            log_normal = -0.5 * (noise**2 + math.log(2 * math.pi)).sum()
            return log_normal + log_det + z.size * jnp.log(alpha)

        with jax.default_matmul_precision("float32"):
            found = jax.vmap(one)(flat, y)
        return found.reshape(value.shape[: value.ndim - self.event_ndims])

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Noise carried to data by the prior's sampler; reparameterized by the ODE."""
        key_start, key_steps = random.purposes(key, "start", "steps")
        noise = random.draw(jax.random.normal, key_start, sample_shape, self.shape)
        if self.prior.sampler == "ode":
            return self._carried(noise)
        return self.prior.ancestral(self, noise, key_steps, sample_shape)

    def elbo(
        self, value: Float[Array, "..."], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """The prior's bound at one time and one draw of noise for each value.

        If labels are dropped, it bounds the mixture of p(z|y) and p(z) with these probabilities:
        E ln p(z|y or nothing) is below the logarithm of the mixture.
        """
        return self._over_flat(self.prior.bound, value, keys)

    @override
    def fit_objective(
        self, value: Float[Array, "..."], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        return self._over_flat(self.prior.to_fit, value, keys)

    def velocity(
        self, z: Float[Array, "N *event"], s: Float[Array, "N"], y: Int[Array, "N"] | None
    ) -> Float[Array, "N *event"]:
        """The network's velocity.

        Args:
            z: latents `[N, *event]`.
            s: the position on the paths, `[N]`.
            y: classes `[N]`, or None.
        """
        v = self.prior.apply(self.variables, z, s, y, method="predict")
        return cast(Array, v)

    def guided(
        self, z: Float[Array, "N *event"], s: Float[Array, "N"], y: Int[Array, "N"] | None
    ) -> Float[Array, "N *event"]:
        """`velocity`, pushed away from the velocity without a class by the prior's guidance.

        Args: as in `velocity`.
        """
        v, weight, none = self.velocity(z, s, y), self.prior.guidance, self.prior.num_classes
        if weight > 0 and y is not None and none is not None:
            v += weight * (v - self.velocity(z, s, jnp.full_like(y, none)))
        return v

    def _of_one(self, y: Int[Array, ""] | None) -> Velocity:
        """The derivative of one z `[*event]` with respect to s `[]`, given the class y."""

        def velocity(z: Array, s: Array) -> Array:
            v = self.guided(z[None], s[None], None if y is None else y[None])[0]
            return self.prior.speed(s) * v

        return velocity

    def _carried(self, noise: Float[Array, "*draws_and_event"]) -> Float[Array, "*draws_and_event"]:
        flat, y = self.flat(noise)
        start, end = self.prior.ends
        alpha, _ = self.prior.alpha_sigma(start)

        def one(noise: Array, y: Array | None) -> Array:
            return solve(self._of_one(y), noise, (end, start), SAMPLE_TOLERANCE) / alpha

        return jax.vmap(one)(flat, y).reshape(noise.shape)

    def flat(
        self, value: Float[Array, "..."]
    ) -> tuple[Float[Array, "N *event"], Int[Array, "N"] | None]:
        """The latents in `value`, `[N, *event]`, and their classes `[N]`."""
        flat = value.reshape(-1, *self.event_shape)
        if self.y is None:
            return flat, None
        return flat, jnp.tile(self.y, len(flat) // len(self.y))

    def _over_flat(
        self, function: OfNoise, value: Float[Array, "..."], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """A function of noise and uniform numbers, evaluated over a batch of any shape."""
        flat, y = self.flat(value)
        keys_flat = keys.reshape(-1)
        key_time, key_noise = random.purposes(keys_flat, "time", "noise")
        uniform = random.draw(jax.random.uniform, key_time, (), flat.shape[:1])
        noise = random.draw(jax.random.normal, key_noise, (), flat.shape)
        none = self.prior.num_classes
        if y is not None and none is not None and self.prior.drop_labels > 0:
            y = dropped(y, keys_flat, none, self.prior.drop_labels)
        return function(self, flat, noise, uniform, y).reshape(keys.shape)


class TransportPrior(Prior):
    """A prior that carries noise along a learned velocity, the base of diffusion and flow matching.

    Attributes:
        shape: the shape of z: d, (n, d) or (h, w, c).
        network: a network from latents `[N, *event]` and conditions `[N, 128]` to `[N, *event]`;
            None takes `AdaptiveMLP()` for vectors, `DiT()` for sets and `UNet()` for maps.
        num_classes: the number of classes y of p(z|y) in a conditional model; None is p(z).
        drop_labels: the probability with which y is withheld in training, so that the network also
            learns p(z).
        guidance: the weight w of classifier-free guidance in sampling, v(z, y) + w (v(z, y) -
            v(z)); 0 draws from p(z|y).
        sampler: "ode", the probability-flow ODE; or "ancestral", step by step with new noise, if
            the prior has such a sampler.

    Raises:
        VaeJaxError: the network does not fit the shape, the prior has no such sampler, or there is
            guidance without classes or without dropped labels.
    """

    shape: LatentShape
    network: Network | None = None
    num_classes: Count | None = None
    drop_labels: Proportion = 0.1
    guidance: Weight = 0.0
    sampler: Sampler = "ode"

    exact = False
    draws_by = frozenset({"guidance"})
    samplers: ClassVar[tuple[Sampler, ...]] = ("ode",)

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        name = type(self).__name__
        check_guidance(self, self.num_classes, self.drop_labels, self.guidance)
        if isinstance(self.network, UNet) and len(latent_shape(self.shape)) != 3:
            raise VaeJaxError(
                f"UNet is a network of maps (h, w, c), and the shape of {name} is {self.shape}: "
                "take AdaptiveMLP() or DiT(), or leave the network out."
            )
        if self.sampler not in self.samplers:
            raise VaeJaxError(f"{name} has no sampler {self.sampler!r}: take 'ode'.")

    @property
    @override
    def bound_alone(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether there are more than 64 dimensions, for which the ODE's density is an estimate."""
        return math.prod(latent_shape(self.shape)) > EXACT_UP_TO

    def setup(self):
        """The network, and the embeddings of time and class."""
        event = latent_shape(self.shape)
        default = {1: AdaptiveMLP, 2: DiT, 3: UNet}[len(event)]
        self.trunk = default() if self.network is None else self.network
        self.of_time = nn.Dense(CONDITION), nn.Dense(CONDITION)
        if self.num_classes is not None:
            self.of_class = nn.Embed(self.num_classes + 1, CONDITION)

    @property
    @override
    def label_classes(self) -> int | None:
        return self.num_classes

    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Transported:
        y = None if self.num_classes is None else labels_or_zero(y, self)
        event = latent_shape(self.shape)
        if self.is_initializing():
            self.predict(jnp.zeros((1, *event)), jnp.zeros(1), y)
            self.start()
        return Transported(self.variables, y, self.clone(parent=None), event_ndims=len(event))

    def predict(
        self, z: Float[Array, "N *event"], s: Float[Array, "N"], y: Int[Array, "_"] | None
    ) -> Float[Array, "N *event"]:
        """The mean velocity of the paths through z at s, given the class y.

        Args:
            z: latents `[N, *event]`.
            s: the position on the paths, `[N]`.
            y: classes `[N]`, or None.

        Raises:
            VaeJaxError: the output of a user's own network has another shape than z.
        """
        first, second = self.of_time
        time = (s - self.ends[0]) / (self.ends[1] - self.ends[0])
        condition = second(jax.nn.silu(first(embedded(time, CONDITION))))
        if y is not None:
            condition += self.of_class(y)
        v = self.trunk(z, condition)
        if v.shape != z.shape:
            raise VaeJaxError(
                f"The network of {type(self).__name__} makes {list(v.shape[1:])} of latents "
                f"{list(z.shape[1:])}: take one that keeps their shape, such as AdaptiveMLP(), or "
                "UNet() of maps."
            )
        return v

    def start(self) -> None:
        """Create further parameters when the prior is initialized."""

    @property
    def ends(self) -> tuple[float, float]:
        """s at the data end and at the noise end."""
        raise NotImplementedError

    def alpha_sigma(
        self, s: Float[ArrayLike, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """alpha_s and sigma_s at s."""
        raise NotImplementedError

    def speed(self, s: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The factor from the network's velocity to dz/ds, at s."""
        raise NotImplementedError

    def bound(
        self,
        p: Transported,
        z: Float[Array, "N *event"],
        noise: Float[Array, "N *event"],
        uniform: Float[Array, "N"],
        y: Int[Array, "N"] | None,
    ) -> Float[Array, "N"]:
        """An estimate of the bound on ln p(z) in nats, `[N]`.

        Args:
            p: the density, which has the network's variables.
            z: latents `[N, *event]`.
            noise: standard normal noise `[N, *event]`.
            uniform: numbers in [0, 1], `[N]`.
            y: classes `[N]`, or None.
        """
        raise NotImplementedError

    def to_fit(
        self,
        p: Transported,
        z: Float[Array, "N *event"],
        noise: Float[Array, "N *event"],
        uniform: Float[Array, "N"],
        y: Int[Array, "N"] | None,
    ) -> Float[Array, "N"]:
        """The quantity to maximize when the prior is fitted to given latents, `[N]`.

        Args: as in `bound`.
        """
        return self.bound(p, z, noise, uniform, y)

    def ancestral(
        self,
        p: Transported,
        noise: Float[Array, "*draws_and_event"],
        key: Key[Array, "..."],
        sample_shape: Shape,
    ) -> Float[Array, "*draws_and_event"]:
        """Draws by a sampler with new noise in each step.

        Args:
            p: the density, which has the network's variables.
            noise: the noise to carry, `[*sample_shape, *batch, *event]`.
            key: one typed key, or one for each example of the batch.
            sample_shape: the leading axes of independent draws.
        """
        raise NotImplementedError


def standard_normal_bound(prior: TransportPrior, z: Float[Array, "N *event"]) -> Float[Array, "N"]:
    """The bound on ln p(z) of a prior whose velocity is that of N(0, I), in closed form.

    With a = alpha² / (alpha² + sigma²) at the data end, it is ln N(z; 0, I / a) - d (1 - a) / 2.
    Only the difference that a network makes remains to be estimated.

    Args:
        prior: the prior, which has the ends of its paths.
        z: latents.
    """
    alpha, sigma = prior.alpha_sigma(prior.ends[0])
    a = alpha**2 / (alpha**2 + sigma**2)
    each = 0.5 * (jnp.log(a) - math.log(2 * math.pi) - (1 - a) - a * z**2)
    return sum_event(each, z.ndim - 1)
