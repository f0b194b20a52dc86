"""An autoregressive prior over maps of real vectors, each from a mixture of Gaussians."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.conditional import labels_or_zero
from vae_jax.distributions import LOG_SCALE_RANGE, Normal, Shape, limited
from vae_jax.given import Count
from vae_jax.interfaces import Model, latent_shape
from vae_jax.priors.tokens import Autoregressive, TokenPrior

CANDIDATES = 64  # the number of draws from which guidance chooses one


@struct.dataclass
class AutoregressiveMixture(Autoregressive):
    """Vectors `[d]`, row by row, each from a mixture of Gaussians given those before."""

    prior: "GIVT" = struct.field(pytree_node=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    @override
    def shape(self) -> Shape:
        return (*(() if self.y is None else self.y.shape), *latent_shape(self.prior.shape))

    @property
    @override
    def token_size(self) -> int:
        return latent_shape(self.prior.shape)[-1]

    def mixture(self, outputs: Float[Array, "*batch _"]) -> tuple[Float[Array, "*batch K"], Normal]:
        """The log-weights `[*batch, K]` and the Gaussians, batch `[*batch, K]`, from `outputs`."""
        count, size = self.prior.num_components, self.token_size
        logits, rest = outputs[..., :count], outputs[..., count:]
        loc, log_scale = jnp.split(rest.reshape(*rest.shape[:-1], count, 2 * size), 2, -1)
        scale = jnp.exp(limited(log_scale, *LOG_SCALE_RANGE))
        return jax.nn.log_softmax(logits), Normal(loc, scale)

    @override
    def log_density(
        self, outputs: Float[Array, "*#batch _"], tokens: Float[Array, "*#batch d"]
    ) -> Float[Array, "..."]:
        log_weights, components = self.mixture(outputs)
        return jax.nn.logsumexp(log_weights + components.log_prob(tokens[..., None, :]), axis=-1)

    @override
    def noise(self, key: Key[Array, "..."], sample_shape: Shape) -> list[Float[Array, "..."]]:
        """The noise of the components and values of M candidates, and of the choice among them."""
        count = CANDIDATES if self.prior.guidance > 0 and self.y is not None else 1
        key_component, key_value, key_choice = random.purposes(key, "component", "value", "choice")
        every = *self.batch_shape, self.network.length, count
        components = (*every, self.prior.num_components)
        return [
            random.draw(jax.random.gumbel, key_component, sample_shape, components),
            random.draw(jax.random.normal, key_value, sample_shape, (*every, self.token_size)),
            random.draw(jax.random.gumbel, key_choice, sample_shape, every),
        ]

    @override
    def choose(
        self, outputs: Sequence[Float[Array, "N _"]], noise: Sequence[Float[Array, "N M ..."]]
    ) -> Float[Array, "N d"]:
        of_component, of_value, of_choice = noise
        of_class, *of_none = (each[:, None] for each in outputs)
        log_weights, components = self.mixture(of_class)
        chosen = jax.nn.one_hot((log_weights + of_component).argmax(-1), log_weights.shape[-1])
        loc, scale = (
            (chosen[..., None] * each).sum(-2) for each in (components.loc, components.scale)
        )
        candidates = loc + self.prior.temperature * scale * of_value
        if not of_none:
            return candidates[:, 0]
        ratio = self.log_density(of_class, candidates) - self.log_density(of_none[0], candidates)
        best = (self.prior.guidance * ratio + of_choice).argmax(-1)
        return jnp.take_along_axis(candidates, best[:, None, None], 1)[:, 0]


class GIVT(TokenPrior):
    """A generative infinite-vocabulary transformer.

    ln p(z) = sum_i ln sum_k w_k N(z_i; m_k, diag s_k²), where a causal transformer computes w, m
    and s from z_1, ..., z_i-1, the vectors of a map row by row. It is exact and takes one pass, so
    evaluation by L_K needs no bound on it. Latents should have a scale near one, as `fit-prior`
    gives them; at initialization the density is close to N(0, I).

    Attributes:
        shape: the shape of z: (h, w, c) or (n, d); for a vector, d, the prior is a single mixture.
        width, num_layers, num_heads, num_classes, drop_labels: as in `TokenPrior`.
        guidance: the guidance of sampling, as in `TokenPrior`; each vector is chosen from 64 draws
            from p(z_i|y) by importance resampling.
        temperature: the factor of the standard deviations s in sampling.
        num_components: the number K of Gaussians.

    References:
        Tschannen et al. (2023), "GIVT: generative infinite-vocabulary transformers", section 3,
            whose guidance uses rejection sampling.

    Example:
        As a second stage, for a model with z of the shape (7, 7, 4):

        >>> second = fit_prior(run, GIVT((7, 7, 4)), "runs/givt")
        >>> images = second.sample(64, temperature=0.9)
    """

    width: Count = 128
    num_layers: Count = 4
    num_components: Count = 16

    @nn.compact
    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> AutoregressiveMixture:
        y = None if self.num_classes is None else labels_or_zero(y, self)
        *positions, size = latent_shape(self.shape)
        outputs = self.num_components * (1 + 2 * size)
        network = self.transformer(math.prod(positions), size, outputs)
        return AutoregressiveMixture(
            network.variables,
            y,
            network.clone(parent=None),
            self.clone(parent=None),
            event_ndims=len(positions) + 1,
        )
