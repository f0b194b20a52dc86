"""Missing pixels drawn given the seen ones, by a Markov chain through the latents."""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import VariableDict
from jax import Array, lax

from vae_jax import random
from vae_jax.distributions import Coded, Distribution, Quantized, Shape
from vae_jax.interfaces import Layers, Model
from vae_jax.priors.masked import MaskedCategorical
from vae_jax.vae import Terms

# The share of first steps in which proposals are always accepted: from a draw of the prior the
# chain then reaches likely pixels sooner (Mattei & Frellsen 2018, section 3.3).
WARM_UP = 0.25


def has_exact_chain(model: Model) -> bool:
    """Whether a model's ln q(z|x) can be evaluated at a given z, to reject proposals."""
    return len(model.posteriors) == 1 and "density" in model.posteriors[0].traits


def has_independent_pixels(model: Model, variables: VariableDict) -> bool:
    """Whether a model's pixels are independent given z, so that some can be drawn alone."""
    y = None if model.labels is None else jnp.zeros(1, jnp.int32)

    def sample(variables: VariableDict) -> object:
        return model.apply(variables, random.key(0)[None], y, method="sample")

    _, px = cast(tuple[Layers, Distribution], jax.eval_shape(sample, variables))
    return px.mean_is_picture


def inpainted(
    model: Model,
    variables: VariableDict,
    x: Array,
    missing: Array,
    keys: Array,
    steps: int,
    y: Array | None = None,
) -> tuple[Layers, Array]:
    """A draw of z and of the missing pixels from p(z, x_missing | x_seen), by Gibbs steps.

    In each step, z' drawn from q(z|x), where x has the pixels of the step before, replaces z with
    probability min(1, w(z') / w(z)), w(z) = p(x|z) p(z) / q(z|x); then the missing pixels are drawn
    from p(x|z). This is Metropolis within Gibbs, whose stationary distribution is the exact one. A
    model of several layers, or without a density of q, always accepts z': pseudo-Gibbs (Rezende et
    al. 2014, appendix F), whose stationary distribution is near it if q is near p(z|x).

    Args:
        model: a model whose pixels are independent given z.
        variables: its variables.
        x: images `[N, H, W, C]` in the form of the protocol; missing pixels may be any numbers.
        missing: booleans `[N, H, W]`.
        keys: typed keys `[N]`.
        steps: the number of steps.
        y: labels `[N]` of a conditional model.

    Returns:
        The latents of every layer `[N, *event]`, and images with the missing pixels drawn.

    References:
        Mattei & Frellsen (2018), "Leveraging the exact likelihood of deep latent variable models",
            algorithm 2.
    """
    exact = has_exact_chain(model)
    hidden = missing[..., None]

    def step(index: Array, state: tuple[Array, Layers]) -> tuple[Array, Layers]:
        x, zs = state
        own = random.indexed(random.purpose(keys, "inpainting"), index)
        terms = cast(Terms, model.apply(variables, x, own, 1, y))
        proposed = tuple(z[0] for z in terms.z)
        if exact:
            log_joint = cast(Array, model.apply(variables, x, zs, y, method="log_joint"))
            log_ratio = terms.log_w[0] - (log_joint - terms.q[0].log_prob(zs[0]))
            u = random.draw(jax.random.uniform, random.purpose(own, "accept"), (), x.shape[:1])
            accepted = (jnp.log(u) < log_ratio) | (index < WARM_UP * steps)
            z = accepted.reshape(-1, *(1,) * (zs[0].ndim - 1))
            proposed = (jnp.where(z, proposed[0], zs[0]),)
        return jnp.where(hidden, _pixels(model, variables, proposed, own, y), x), proposed

    x, zs = lax.fori_loop(0, steps, step, _start(model, variables, x, missing, keys, y))
    return zs, x


def _start(
    model: Model, variables: VariableDict, x: Array, missing: Array, keys: Array, y: Array | None
) -> tuple[Array, Layers]:
    """Images with the missing pixels of a draw from the model, and its latents."""
    zs, px = cast(
        tuple[Layers, Distribution],
        model.apply(variables, random.purpose(keys, "start"), y, method="sample"),
    )
    drawn = px.sample(random.purpose(keys, "start pixels"))
    return jnp.where(missing[..., None], drawn, x), zs


def _pixels(
    model: Model, variables: VariableDict, zs: Layers, keys: Array, y: Array | None
) -> Array:
    """Draws from p(x|z)."""
    px = cast(Distribution, model.apply(variables, zs, y, method="decode"))
    return px.sample(random.purpose(keys, "pixels"))


def inpainted_by_codes(
    model: Model,
    variables: VariableDict,
    x: Array,
    missing: Array,
    keys: Array,
    steps: int,
    y: Array | None = None,
) -> tuple[Layers, Array]:
    """A draw of the codes whose pixels are missing, given the other codes, and of these pixels.

    In each step the image, with the missing pixels of the step before, is encoded; the codes whose
    blocks, on a grid of equal ones, lack pixels are drawn from the prior, `MaskedCodes`, given the
    other codes; and the missing pixels are drawn from p(x|z). Encoders look beyond a code's own
    block: there the first step sees pixels of a draw from the model, and later steps see the pixels
    drawn before.

    Args, Returns: as in `inpainted`.

    References:
        Chang et al. (2022), "MaskGIT: masked generative image transformer", section 4.4.
    """

    def prior_of(model: Model) -> Distribution:
        return model.prior(model, y)

    def step(index: Array, state: tuple[Array, Layers]) -> tuple[Array, Layers]:
        x, _ = state
        own = random.indexed(random.purpose(keys, "inpainting"), index)
        q = cast(Quantized, model.apply(variables, x, y, method="encode"))
        p = nn.apply(prior_of, model)(variables)
        assert isinstance(p, Coded)
        assert isinstance(p.base, MaskedCategorical)
        every = jnp.broadcast_to(of_grid(missing, p.grid)[..., None], q.indices.shape)
        codes = p.base.complete(p.one_hot(q.mean), every.reshape(len(x), -1), own)
        zs = (p.embed(codes),)
        return jnp.where(missing[..., None], _pixels(model, variables, zs, own, y), x), zs

    x, zs = lax.fori_loop(0, steps, step, _start(model, variables, x, missing, keys, y))
    return zs, x


def of_grid(missing: Array, grid: Shape) -> Array:
    """Whether any pixel of each of h x w equal blocks is missing.

    Args:
        missing: booleans `[N, H, W]`.
        grid: (h, w).

    Returns:
        Booleans `[N, h, w]`.
    """
    (h, w), (height, width) = grid, missing.shape[1:]
    block = -(-height // h), -(-width // w)
    over = h * block[0] - height, w * block[1] - width
    padded = jnp.pad(missing, ((0, 0), (0, over[0]), (0, over[1])))
    return padded.reshape(-1, h, block[0], w, block[1]).any((2, 4))
