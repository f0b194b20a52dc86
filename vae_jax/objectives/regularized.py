"""Deterministic autoencoders, made smooth by a penalty on the decoder instead of by noise."""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Distribution, sum_event
from vae_jax.given import Weight
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.vae import Terms


def gradient_penalty(
    model: Model,
    z: Float[Array, "B *event"],
    keys: Key[Array, "B"],
    y: Int[Array, "_"] | None = None,
) -> Float[Array, "B"]:
    """An unbiased estimate of |dD/dz|², the squared Frobenius norm, with D(z) the mean of p(x|z).

    |vᵀ dD/dz|² with random signs v, by one vector-Jacobian product (Hutchinson 1990).

    Args:
        model: the model, bound to its parameters.
        z: latents `[B, *event]`.
        keys: the keys of the signs, `[B]`.
        y: the labels of a conditional model.
    """
    unbound, variables = model.unbind()  # a bound module cannot be differentiated

    def decode(z: Array) -> Array:
        px = cast(Distribution, unbound.apply(variables, (z,), y, method="decode"))
        return px.mean

    images, pull_back = jax.vjp(decode, z)
    signs = random.draw(jax.random.rademacher, keys, (), images.shape).astype(images.dtype)
    return sum_event(pull_back(signs)[0] ** 2, z.ndim - 1)


def squared_weights(model: Model) -> Float[Array, ""]:
    """The squared norm of all weights, without biases, of a model's decoder and likelihood."""
    groups = [model.variables["params"].get(group, {}) for group in ("decoder", "likelihood")]
    weights = [leaf for leaf in jax.tree.leaves(groups) if leaf.ndim > 1]
    return sum(((weight**2).sum() for weight in weights), jnp.zeros(()))


@dataclass(frozen=True)
class RAE(Objective):
    """-ln p(x|z) + beta |z|²/2 + l2 |theta|² + gradient_penalty |dD/dz|².

    The last two terms are the paper's RAE-L2 and RAE-GP, with theta the weights of the decoder; for
    RAE-SN, wrap the decoder in `SpectralNorm`. With all weights zero it is a plain autoencoder. The
    model's prior is not used: a density of z to sample from is fitted afterwards.

    The paper penalizes the norm of the decoder's gradient; here the squared norm of the whole
    Jacobian is penalized, estimated without bias from one random projection of the image.

    Attributes:
        beta: the weight of |z|²/2.
        l2: the weight of the squared weights of the decoder.
        gradient_penalty: the weight of the squared norm of the decoder's Jacobian.

    References:
        Ghosh et al. (2020), "From variational to deterministic autoencoders".

    Example:
        >>> model = VAE(..., posterior=Deterministic(16))
        >>> objective = RAE(beta=1e-4, gradient_penalty=1e-3)
    """

    beta: Weight = 0.0
    l2: Weight = 0.0
    gradient_penalty: Weight = 0.0

    @property
    @override
    def requires(self) -> Requirements:
        return Requirements(
            without=frozenset({"noise", "codebook"}),
            spaces=frozenset({"real"}),
            fixed_prior=True,
            one_layer=True,
        )

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in nats per image; there is no bound."""
        del step
        z = terms.z[0][0]
        squared_norm = sum_event(z**2, z.ndim - 1)
        loss = -terms.log_px.mean() + 0.5 * self.beta * squared_norm.mean()
        metrics = terms.rate_and_distortion() | {"squared_norm": squared_norm.mean()}
        if self.l2:
            loss += self.l2 * squared_weights(model)
        if self.gradient_penalty:
            penalty = gradient_penalty(
                model, z, random.purpose(terms.keys, "projection"), terms.y
            ).mean()
            loss += self.gradient_penalty * penalty
            metrics["gradient_penalty"] = penalty
        return loss, metrics
