"""Equality of two runs: by their records, and by the computations of their steps."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from vae_jax import parallel
from vae_jax.experiment import INCIDENTAL, Experiment
from vae_jax.identity import Json
from vae_jax.identity.programs import programs
from vae_jax.interfaces import Variables
from vae_jax.step import empty_batch, init_state, loss_and_gradients

Record = dict[str, Any]
"""The object in a JSON file."""
STEPS_AT_ONCE = 2**16
LENGTH = ("num_steps", "patience")
"""The fields that only set when training ends."""


def identifying(content: Record, until: int | None) -> dict[str, Json]:
    """The part of an experiment.json that two runs have in common if they are the same.

    Args:
        content: the record.
        until: the patience of training, with which validations also change the result.
    """
    fields = {field.name for field in dataclasses.fields(Experiment)} - {*INCIDENTAL, "data"}
    names = [name for name in content if name in {*fields, "seed", "num_seeds", "flags"}]
    names.sort(key=lambda name: isinstance(content[name], dict | list))  # to name numbers first
    data = {name: content["data"].get(name) for name in ("description", "fingerprint", "protocol")}
    found = {name: content[name] for name in names} | {"data": data}
    found = {"patience": None, "start": None} | found  # which older records lack
    if until is not None:
        every = content.get("validate_every") or content.get("checkpoint_every")
        found |= {"validate_every": every, "validate_images": content.get("validate_images")}
    return found


def is_longer(there: Record, here: Record) -> bool:
    """Whether one run has at least the steps and the patience of another, and exceeds it in one.

    Args:
        there: the record of the shorter one.
        here: the record of the longer one.
    """

    def numbers(name: str) -> tuple[float, float]:
        one, other = there.get(name), here.get(name)
        return (
            one if isinstance(one, int) else float("inf"),
            other if isinstance(other, int) else float("inf"),
        )

    pairs = [numbers(name) for name in LENGTH]
    return all(one <= other for one, other in pairs) and any(one < other for one, other in pairs)


def compute_the_same(one: Experiment, other: Experiment) -> bool:
    """Whether experiments begin with the same state and compute the same in the steps of the first.

    Schedules that are made from different numbers of steps are the same if their values are.

    Args:
        one: an experiment.
        other: one that differs at most in its objective, its optimizer and its length.
    """
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    state = jax.eval_shape(partial(init_state, one), seed)
    if jax.tree.structure(state) != jax.tree.structure(
        jax.eval_shape(partial(init_state, other), seed)
    ):
        return False
    batch = empty_batch(one, one.batch_size)
    both = one, other
    return (
        _are_traced_alike([partial(init_state, each) for each in both], seed)
        and _are_traced_alike(
            [partial(loss_and_gradients, each, axis=None) for each in both], state, *batch, seed
        )
        and _update_alike([each.optimizer for each in both], state.params, one.num_steps)
    )


def _are_traced_alike(functions: Sequence[Callable[..., object]], *arguments: object) -> bool:
    """Whether functions are one program with the same numbers."""
    found = programs(functions, *arguments)
    return len(found) == 1 and not found[0].numbers


def _update_alike(
    optimizers: Sequence[optax.GradientTransformation], params: Variables, num_steps: int
) -> bool:
    """Whether optimizers make the same updates of the same numbers in all of these steps.

    One number of each array stands for all, and the step for whatever an optimizer counts.
    """
    generator = np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return generator.normal(size=(1,) * leaf.ndim).astype(leaf.dtype)

    def begun(leaf: Array) -> Array:
        return leaf if counts(leaf) else jnp.abs(jnp.asarray(generator.normal(), leaf.dtype)) + leaf

    def counts(leaf: Array) -> bool:
        return leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)

    small, gradients = (jax.tree.map(drawn, params) for _ in range(2))
    state = jax.tree.map(begun, optimizers[0].init(small))

    def after(optimizer: optax.GradientTransformation, step: Array) -> object:
        own = jax.tree.map(lambda x: step.astype(x.dtype) if counts(x) else x, state)
        return optimizer.update(gradients, own, small)

    compiled = [parallel.jit(jax.vmap(partial(after, each))) for each in optimizers]
    for start in range(0, num_steps, STEPS_AT_ONCE):
        steps = np.arange(start, min(start + STEPS_AT_ONCE, num_steps), dtype=np.int32)
        one, other = (jax.tree.leaves(function(steps)) for function in compiled)
        if any(not np.array_equal(*pair, equal_nan=True) for pair in zip(one, other, strict=True)):
            return False
    return True
