"""Densities as pytrees.

A distribution is a frozen dataclass of arrays registered with JAX, so that
`jax.tree.map(stop_gradient, q)`, `jax.vmap` and `jax.jit` see through it. Its parameters have shape
`[*batch, *event]`; densities are in nats and summed over the event, so that `log_prob` of
`[K, *batch, *event]` is `[K, *batch]`.

A density that only one likelihood uses stands in that likelihood's file.
"""

from vae_jax.distributions.base import (
    Distribution,
    Elementwise,
    Shape,
    draw,
    exact_kl,
    register_kl,
    split_key,
    sum_event,
)
from vae_jax.distributions.mixture import Mixture
from vae_jax.distributions.normal import Normal

__all__ = [
    "Distribution",
    "Elementwise",
    "Mixture",
    "Normal",
    "Shape",
    "draw",
    "exact_kl",
    "register_kl",
    "split_key",
    "sum_event",
]
