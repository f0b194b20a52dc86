"""An optimizer for each group of parameters: encoder, posterior, prior, decoder, ..., critic."""

from collections.abc import Callable, Hashable
from typing import Annotated, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.tree_util import KeyPath, keystr
from jax.typing import ArrayLike

from vae_jax.errors import VaeJaxError
from vae_jax.given import Count, Index, Weight, checked

PARAMETER_GROUPS = (
    "encoder",
    "posterior",
    "prior",
    "decoder",
    "conditional",
    "likelihood",
    "critic",
)
"""The groups of parameters: the parts of a model."""


def group_of(name: str) -> str:
    """The group of the parameters of the part `name`; hierarchies number theirs, `encoders_0`."""
    return name.rstrip("_0123456789").removesuffix("s")


def group_at(path: KeyPath) -> str:
    """The group of the parameter at `path` in the tree of parameters."""
    first, *rest = keystr(path, simple=True, separator="/").split("/")
    # The vectors of classes go with the network that is given them.
    return group_of(rest[0] if first == "labels" else first)


Optimizer = Annotated[
    optax.GradientTransformation, "an optax transformation, such as optax.adam(1e-3)"
]


@checked
def by_group(default: Optimizer, **groups: Optimizer) -> optax.GradientTransformation:
    """Move each group of parameters with its own optimizer.

    This allows a game within one scalar objective: the critic's optimizer moves the critic alone.
    `optax.set_to_zero()` freezes a group.

    Args:
        default: the optimizer of every group that is not named.
        groups: optimizers by the name of a group, one of `PARAMETER_GROUPS`.

    Returns:
        The optimizer of all parameters.

    Raises:
        VaeJaxError: there is no such group, or a value is not an optimizer.

    Example:
        >>> by_group(optax.adam(1e-3), critic=optax.adam(1e-4))
    """
    for name in groups:
        if name not in PARAMETER_GROUPS:
            known = ", ".join(PARAMETER_GROUPS)
            raise VaeJaxError(f"There is no group of parameters {name!r}: take one of {known}.")

    def labels(params: optax.Params) -> optax.Params:
        def label(path: KeyPath, _: Array) -> str:
            return name if (name := group_at(path)) in groups else "default"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.multi_transform({"default": default, **groups}, labels)


def has_groups(state: optax.OptState) -> bool:
    """Whether `state` belongs to several optimizers, each for a group of parameters."""
    groups = optax.MultiTransformState
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, groups))
    return any(isinstance(leaf, groups) for leaf in leaves)


class SwitchedState(NamedTuple):
    """The number of updates, and the states of both optimizers."""

    updates: Array
    first: optax.OptState
    then: optax.OptState


@checked
def switched(num_steps: Index, first: Optimizer, then: Optimizer) -> optax.GradientTransformation:
    """Change the optimizer after a number of steps; the second counts its own steps from there.

    Steps that training skips are not counted.

    Args:
        num_steps: the number of updates by the first optimizer.
        first: the optimizer until then.
        then: the optimizer from then on.

    Example:
        Train the encoder for 1,000 steps, then hold it fixed:

        >>> by_group(adam, encoder=switched(1000, adam, optax.set_to_zero()))
    """

    def init(params: optax.Params) -> SwitchedState:
        return SwitchedState(jnp.zeros((), jnp.int32), first.init(params), then.init(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, SwitchedState]:
        state = cast(SwitchedState, state)

        def by_first() -> tuple[optax.Updates, optax.OptState, optax.OptState]:
            return *first.update(updates, state.first, params), state.then

        def by_then() -> tuple[optax.Updates, optax.OptState, optax.OptState]:
            moved, after = then.update(updates, state.then, params)
            return moved, state.first, after

        moved, *states = lax.cond(state.updates < num_steps, by_first, by_then)
        return moved, SwitchedState(state.updates + 1, *states)

    return optax.GradientTransformation(init, update)


@checked
def lagging_inference(
    optimizer: Optimizer, encoder_steps: Count, num_steps: Count
) -> optax.GradientTransformation:
    """Extra steps of the inference network, against a posterior that lags behind and collapses.

    In the first `num_steps` updates, q(z|x) alone moves for `encoder_steps` updates, each on its
    own batch, then the rest of the model alone for one, and so on; afterwards both move in each.
    In the paper the loss determines the number of steps of q(z|x), at most 100, and the phase ends
    when the mutual information of x and z no longer grows.

    Args:
        optimizer: the optimizer of both sides, each with a separate state.
        encoder_steps: the number of steps of encoder and posterior for each step of the others.
        num_steps: the number of updates in this phase, counting both sides.

    References:
        He et al. (2019), "Lagging inference networks and posterior collapse in variational
            autoencoders", algorithm 1.

    Example:
        >>> lagging_inference(optax.adam(1e-3), encoder_steps=10, num_steps=5000)
    """

    def moves_inference(step: ArrayLike, **_: object) -> Array:
        t = jnp.asarray(step)
        return (t >= num_steps) | (t % (encoder_steps + 1) < encoder_steps)

    def moves_the_rest(step: ArrayLike, **_: object) -> Array:
        t = jnp.asarray(step)
        return (t >= num_steps) | (t % (encoder_steps + 1) == encoder_steps)

    def sides(params: optax.Params) -> optax.Params:
        def side(path: KeyPath, _: Array) -> str:
            return "inference" if group_at(path) in ("encoder", "posterior") else "rest"

        return jax.tree_util.tree_map_with_path(side, params)

    each: dict[Hashable, optax.GradientTransformation] = {
        "inference": optax.conditionally_mask(optimizer, moves_inference),
        "rest": optax.conditionally_mask(optimizer, moves_the_rest),
    }
    return optax.multi_transform(each, sides)


class SpectralState(NamedTuple):
    """The number of updates, and an estimate of each kernel's first right singular vector."""

    updates: Array
    right: optax.Params


@checked
def spectral_regularization(
    weight: Weight | Callable[[Array], ArrayLike], iterations: Count = 4
) -> optax.GradientTransformation:
    """Add to the loss the largest singular values of the networks' kernels, times a weight.

    The term is weight sum_i sigma(W_i), whose gradient for W is weight u v', with u and v the first
    singular vectors. Only the gradient is changed; the reported loss excludes the term. u and v
    come from power iteration that continues from the last step's. The kernels are those of
    encoders, decoders, conditionals and critics: `[inputs, outputs]`, a convolution's `[h, w,
    inputs, outputs]` as a matrix from patches to features, or several of either with a leading
    axis, such as the blocks of a `DeepVAE`'s level.

    Args:
        weight: a number, or a schedule of the step, in nats if the loss is.
        iterations: the number of power iterations at each step.

    References:
        Vahdat & Kautz (2020), "NVAE: a deep hierarchical variational autoencoder", section 3.2.

    Example:
        >>> optax.chain(spectral_regularization(0.1), optax.adamax(1e-3))
    """

    def init(params: optax.Params) -> SpectralState:
        def start(path: KeyPath, w: Array) -> Array:
            if not _is_regularized(path):
                return jnp.zeros(0)
            w = _as_matrices(w)
            # Start vector: nonzero, and not a singular vector of any likely kernel.
            return jnp.broadcast_to(jnp.cos(jnp.arange(w.shape[-1])), (*w.shape[:-2], w.shape[-1]))

        right = jax.tree_util.tree_map_with_path(start, params)
        return SpectralState(jnp.zeros((), jnp.int32), right)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, SpectralState]:
        state = cast(SpectralState, state)
        factor = weight(state.updates) if callable(weight) else weight

        def vectors(path: KeyPath, w: Array, v: Array) -> tuple[Array, Array]:
            if not _is_regularized(path):
                return jnp.zeros(0), v
            w, u = _as_matrices(w), jnp.zeros(())
            for _ in range(iterations):
                u = _unit(jnp.einsum("...io,...o->...i", w, v), 0.0)
                v = _unit(jnp.einsum("...io,...i->...o", w, u), v)
            return u, v

        def add(path: KeyPath, update: Array, u: Array, v: Array) -> Array:
            if not _is_regularized(path):
                return update
            return update + factor * (u[..., :, None] * v[..., None, :]).reshape(update.shape)

        assert params is not None
        both = jax.tree_util.tree_map_with_path(vectors, params, state.right)
        left, right = jax.tree.transpose(
            jax.tree.structure(params), jax.tree.structure((0, 0)), both
        )
        moved = jax.tree_util.tree_map_with_path(add, updates, left, right)
        return moved, SpectralState(state.updates + 1, right)

    return optax.GradientTransformation(init, update)


def _is_regularized(path: KeyPath) -> bool:
    """Whether the parameter at `path` is a kernel of a network, with axes of known meaning."""
    networks = ("encoder", "decoder", "conditional", "critic")
    last = keystr(path[-1:], simple=True)
    return group_at(path) in networks and last == "kernel"


def _as_matrices(kernel: Array) -> Array:
    """A kernel as a matrix `[inputs, outputs]`, or several with a leading axis."""
    leading = kernel.shape[: kernel.ndim % 2]
    return kernel.reshape(*leading, -1, kernel.shape[-1])


def _unit(vector: Array, otherwise: ArrayLike) -> Array:
    """The vectors along the last axis scaled to length one; `otherwise` for zero vectors."""
    length = jnp.linalg.norm(vector, axis=-1, keepdims=True)
    return jnp.where(length > 0, vector / jnp.where(length > 0, length, 1.0), otherwise)
