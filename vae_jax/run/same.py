"""When two runs are one: what their records have in common, and what their steps compute."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vae_jax.experiment import INCIDENTAL, Experiment
from vae_jax.identity import Json
from vae_jax.identity.programs import programs
from vae_jax.step import empty_batch, init_state, train_step

Record = dict[str, Any]
"""The object in a JSON file."""
LENGTH = ("num_steps", "patience")
"""What says when training ends, and nothing else."""


def compared(content: Record, until: int | None) -> dict[str, Json]:
    """What in an experiment.json two runs that are the same have in common.

    Args:
        content: the record.
        until: the patience of training, with which validations too change the result.
    """
    fields = {field.name for field in dataclasses.fields(Experiment)} - {*INCIDENTAL, "data"}
    names = [name for name in content if name in {*fields, "seed", "num_seeds", "flags"}]
    names.sort(key=lambda name: isinstance(content[name], dict | list))  # to name numbers first
    data = {name: content["data"].get(name) for name in ("description", "fingerprint", "protocol")}
    found = {name: content[name] for name in names} | {"data": data}
    found.setdefault("patience", None)  # which runs did not have once
    if until is not None:
        every = content.get("validate_every") or content.get("checkpoint_every")
        found |= {"validate_every": every, "validate_images": content.get("validate_images")}
    return found


def is_longer(there: Record, here: Record) -> bool:
    """Whether one run is another with more steps or more patience, as far as these are concerned.

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
    """Whether experiments begin with the same state and take the same steps, as JAX traces them.

    A schedule that is made from the number of steps is no difference where its values are none.
    """
    experiments = one, other
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    states = [jax.eval_shape(partial(init_state, each), seed) for each in experiments]
    if jax.tree.structure(states[0]) != jax.tree.structure(states[1]):
        return False
    begin = programs([partial(init_state, each) for each in experiments], seed)
    batch = empty_batch(one, one.batch_size)
    steps = [partial(train_step, each, axis=None) for each in experiments]
    go_on = programs(steps, states[0], *batch, seed)
    return all(len(found) == 1 and not found[0].numbers for found in (begin, go_on))
