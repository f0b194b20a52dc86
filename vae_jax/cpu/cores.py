"""Cores, each busy with one replica: replicas on separate devices, or one after the other.

Then a product is not split over cores, and replicas do not become one batch of small products. Two
seeds of the MLP at batch 128 train 1.24 times as fast on separate devices, and five 1.20 times as
fast one after the other within a step as by `jax.vmap`.
"""

import math
import os
from collections.abc import Callable
from typing import TypeVar

import jax
from jax import lax

Result = TypeVar("Result")


def give_replicas_cores(num_replicas: int) -> None:
    """Split the CPU into the largest number of devices that divides its cores and the replicas.

    Call it before JAX starts. It has no effect if there are accelerators, or if XLA_FLAGS sets the
    number of CPU devices.
    """
    cores = os.cpu_count() or 1
    devices, flags = math.gcd(num_replicas, cores), os.environ.get("XLA_FLAGS", "")
    if devices > 1 and "xla_force_host_platform_device_count" not in flags:
        jax.config.update("jax_num_cpu_devices", devices)


def over_replicas(function: Callable[..., Result]) -> Callable[..., Result]:
    """`jax.vmap` of a function of one replica; on a CPU one replica after the other."""
    if jax.default_backend() != "cpu":
        return jax.vmap(function)
    return lambda *each: lax.map(lambda one: function(*one), each)
