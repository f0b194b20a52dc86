"""The variational autoencoder and its Terms."""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Concatenate, ParamSpec, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import (
    Bounded,
    Distribution,
    Shared,
    exact_kl,
    log_prob_or_bound,
    sample_each,
)
from vae_jax.errors import VaeJaxError
from vae_jax.given import Network, check_decoder, check_encoder
from vae_jax.interfaces import Layers, Metrics, Model, Posterior, Shape

D = TypeVar("D", bound=Distribution)
M = TypeVar("M", bound=nn.Module)
P = ParamSpec("P")
T = TypeVar("T")


@struct.dataclass
class Terms:
    """The quantities of K samples for each of B examples; nothing is averaged over the batch.

    Densities are in nats, summed over pixels and over the components of z. Layers are tuples or the
    axis L, the bottom layer first; a VAE has one.

    Attributes:
        x: the images in the form of the data's protocol.
        y: the labels of a conditional model, else None.
        keys: typed keys, from which `random.purpose` makes further noise.
        z: the latents of each layer, `[K, B, *event]`.
        path: zeros, by which `weigh` multiplies the gradient through z[k, b] (`weigh_path`). With
            several layers it is None except in the Terms that `Model.held` returns.
        log_px: ln p(x|z).
        log_pz: ln p(z) of each layer; for a prior that is `Bounded`, an estimate of its bound.
        log_qz: ln q(z|x) of each layer.
        kl: the exact KL(q(z|x) || p(z)) of each layer; None if there is no closed form. For a
            layer that depends on sampled ones (`LadderVAE`), the mean over K of its exact KLs.
        q: the posterior of each layer.
        p: the prior of each layer.
        reconstruction: the mean of p(x|z).
    """

    x: Float[Array, "B H W C"]
    y: Int[Array, "_"] | None
    keys: Key[Array, "B"]
    z: Layers
    path: Float[Array, "K B"] | None
    log_px: Float[Array, "K B"]
    log_pz: Float[Array, "L K B"]
    log_qz: Float[Array, "L K B"]
    kl: Float[Array, "L B"] | None
    q: tuple[Distribution, ...]
    p: tuple[Distribution, ...]
    reconstruction: Float[Array, "K B H W C"]

    @property
    def log_w(self) -> Float[Array, "K B"]:
        """The log importance weights ln p(x, z) - ln q(z|x) (Burda et al. 2015, equation 8)."""
        return self.log_px + (self.log_pz - self.log_qz).sum(0)

    @property
    def kl_sampled(self) -> Float[Array, "L B"]:
        """The sampled estimate of the KL, the mean over K of ln q(z|x) - ln p(z)."""
        return (self.log_qz - self.log_pz).mean(1)

    @property
    def rate(self) -> Float[Array, "L B"]:
        """KL(q(z|x) || p(z)), exact if there is a closed form, else the sampled estimate."""
        return self.kl_sampled if self.kl is None else self.kl

    @property
    def neg_elbo(self) -> Float[Array, "B"]:
        """-ELBO: the rate of all layers, plus the mean over K of the distortion."""
        return self.rate.sum(0) - self.log_px.mean(0)

    def weigh(self, weights: Float[Array, "K B"]) -> Float[Array, ""]:
        """Zero, which in a loss gives gradients through z[k, b] the weight 1 + `weights[k, b]`.

        Raises:
            VaeJaxError: these Terms have no `path`.
        """
        if self.path is None:
            raise VaeJaxError(
                "These Terms have no path, as those of a model with several layers: take those of "
                "model.held(terms)."
            )
        return (weights * self.path).sum()

    def with_exact_prior(self) -> "Terms":
        """The same Terms with ln p(z) itself in place of an estimate of its bound."""
        log_pz = [
            p.log_prob(z) if isinstance(p, Bounded) else known
            for p, z, known in zip(self.p, self.z, self.log_pz, strict=True)
        ]
        return dataclasses.replace(self, log_pz=jnp.stack(log_pz))

    def rate_and_distortion(self) -> Metrics:
        """`distortion`, and the rates summed over layers: `kl` if exact, and `kl_sampled`.

        With several layers there is also `kl_sampled_z2` and so on.
        """
        metrics = {
            "distortion": -self.log_px.mean(),
            "kl_sampled": self.kl_sampled.sum(0).mean(),
        }
        if self.kl is not None:
            metrics["kl"] = self.kl.sum(0).mean()
        for layer, kl in enumerate(self.kl_sampled[1:], start=2):
            metrics[f"kl_sampled_z{layer}"] = kl.mean()
        return metrics

    def bound_metrics(self) -> Metrics:
        """`neg_elbo`, at beta = 1, and the metrics of `rate_and_distortion`."""
        return {"neg_elbo": self.neg_elbo.mean()} | self.rate_and_distortion()


class VAE(Model, kw_only=True):
    """encoder x posterior x prior x decoder x likelihood.

    Attributes:
        encoder: a network from images `[N, H, W, C]` to features.
        posterior: the map from features to q(z|x).
        prior: p(z).
        decoder: a network from latents `[N, *event]` and the image shape to features.
        likelihood: the map from features and the image shape to p(x|z).
        critic: the module that the objective plays against, if it needs one.
        labels: the embedding of classes y, which makes this the model p(x|z, y), q(z|x, y).
        image_shape: (H, W, C); by default that of an experiment's data.

    References:
        Kingma & Welling (2013), "Auto-encoding variational Bayes".

    Example:
        >>> model = VAE(
        ...     encoder=MLP((200,)),
        ...     posterior=DiagonalGaussian(50),
        ...     prior=StandardNormal(50),
        ...     decoder=MLP((200,)),
        ...     likelihood=Bernoulli(),
        ... )
    """

    encoder: Network
    posterior: Annotated[Posterior, "a posterior, such as DiagonalGaussian(20)"]
    decoder: Network

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_encoder("encoder of VAE", self.encoder)
        check_decoder("decoder of VAE", self.decoder)

    @property
    def posteriors(self) -> tuple[Posterior]:
        """The posterior of the single layer."""
        return (self.posterior,)

    @override
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        keys: Key[Array, "B"],
        num_samples: int = 1,
        y: Int[Array, "_"] | None = None,
    ) -> Terms:
        q = self.encode(x, y)
        p = self.prior(self, y)
        z, log_qz = q.sample_and_log_prob(random.purpose(keys, "posterior"), (num_samples,))
        z, path = weigh_path(z, jnp.zeros(z.shape[:2], z.dtype))
        log_pz = log_prob_or_bound(p, z, keys)
        px = self.likelihood.observe(self.decode((z,), y), x)
        kl = exact_kl(q, p)
        return Terms(
            x=x,
            y=y,
            keys=keys,
            z=(z,),
            path=path,
            log_px=px.log_prob(x),
            log_pz=log_pz[None],
            log_qz=log_qz[None],
            kl=None if kl is None else kl[None],
            q=(q,),
            p=(p,),
            reconstruction=px.mean,
        )

    @override
    def encode(self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None) -> Distribution:
        if self.labels is not None:
            x = self.labels.for_encoder(x, y)
        return self.posterior(self.encoder(x))

    @override
    def held(self, terms: Terms) -> Terms:
        log_qz = lax.stop_gradient(terms.q[0]).log_prob(terms.z[0])
        return dataclasses.replace(terms, log_qz=log_qz[None])

    @override
    def decode(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Distribution:
        (z,) = zs

        def likelihood(z: Array) -> Distribution:
            if self.labels is not None:
                z = self.labels.for_decoder(z, y)
            return self.likelihood(self.decoder(z, self.image_shape), self.image_shape)

        return apply_flat(likelihood, z, self.posterior)

    @override
    def sample(
        self, keys: Key[Array, "N"], y: Int[Array, "B"] | None = None
    ) -> tuple[Layers, Distribution]:
        z = sample_each(self.prior(self, y), random.purpose(keys, "prior"))
        return (z,), self.decode((z,), y)

    @override
    def log_prior(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Float[Array, "..."]:
        (z,) = zs
        return self.prior(self, y).log_prob(z)


def has_bound(model: Model) -> bool:
    """Whether E_q[ln p(x, z) - ln q(z|x)] bounds ln p(x) in `model`: q has a density or mass."""
    return model.likelihood.measure != "pseudo" and all(
        posterior.traits & {"density", "codebook"} for posterior in model.posteriors
    )


# Helpers shared with other models


def apply_flat(
    conditional: Callable[[Array], D], z: Float[Array, "..."], posterior: Posterior
) -> D:
    """p(. | z), batch `[*batch]`, by networks that take one batch axis.

    Args:
        conditional: a function of latents `[N, *event]` to a distribution with batch `[N]`.
        z: latents `[*batch, *event]`.
        posterior: the posterior of these latents.

    Returns:
        The distribution with batch `[*batch]`.
    """
    ndims = posterior.event_ndims
    batch, event = z.shape[: z.ndim - ndims], z.shape[z.ndim - ndims :]
    return with_batch(conditional(posterior.seen(z).reshape(math.prod(batch), *event)), batch)


def with_batch(flat: D, batch: Shape) -> D:
    """The distribution `flat` with its one batch axis `[N]` split into the axes `[*batch]`."""

    def reshaped(leaf: Array | Shared) -> Array | Shared:
        return leaf if isinstance(leaf, Shared) else leaf.reshape(*batch, *leaf.shape[1:])

    return jax.tree.map(reshaped, flat, is_leaf=lambda leaf: isinstance(leaf, Shared))


# The gradient through z


@jax.custom_vjp
def weigh_path(
    z: Float[Array, "K B *event"], weights: Float[Array, "K B"]
) -> tuple[Float[Array, "K B *event"], Float[Array, "K B"]]:
    """The identity; its backward pass multiplies z's cotangent by one plus that of `weights`.

    This lets one backward pass weigh, for each sample, the gradient of the parameters of q(z|x)
    differently from that of the parameters of p(x|z).

    Args:
        z: latents.
        weights: zeros, whose cotangent is the weight.

    Returns:
        The latents and the zeros.

    References:
        Tucker et al. (2019), "Doubly reparameterized gradient estimators for Monte Carlo
            objectives".
    """
    return z, weights


ZAndWeights = tuple[Float[Array, "K B *event"], Float[Array, "K B"]]


def _weigh_path_forward(
    z: Float[Array, "K B *event"], weights: Float[Array, "K B"]
) -> tuple[ZAndWeights, None]:
    return (z, weights), None


def _weigh_path_backward(_: None, cotangents: ZAndWeights) -> ZAndWeights:
    of_z, weights = cotangents
    factor = 1 + weights.reshape(weights.shape + (1,) * (of_z.ndim - weights.ndim))
    return factor * of_z, jnp.zeros_like(weights)


weigh_path.defvjp(_weigh_path_forward, _weigh_path_backward)


def with_parameters_held(
    method: Callable[Concatenate[M, P], T], model: M, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call a method of a model with its parameters held constant.

    Args:
        method: a function of the model and further arguments.
        model: the model, bound or within `apply`.
        args: the further positional arguments.
        kwargs: the further named arguments.

    Returns:
        The result of the method.
    """
    return nn.map_variables(method, "params", trans_in_fn=lax.stop_gradient)(model, *args, **kwargs)


def weigh_paths(zs: Layers) -> tuple[Layers, Float[Array, "K B"]]:
    """`weigh_path` of every layer with one weight for each sample.

    Args:
        zs: latents `[K, B, *event]` of every layer.

    Returns:
        The layers, and `Terms.path`.
    """
    weights = jnp.zeros(zs[0].shape[:2], zs[0].dtype)
    weighed, paths = zip(*(weigh_path(z, weights) for z in zs), strict=True)
    return weighed, jnp.stack(paths).sum(0)
