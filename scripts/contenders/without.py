"""`vae-jax train` without one of the tricks in `vae_jax/cpu`, to measure the trick's gain.

    python scripts/contenders/without.py softplus train scripts/contenders/ours.py --work iwae

The first argument is a key of `TRICKS`, the others are those of `vae-jax`.
"""

import sys
from functools import partial
from typing import Any

import jax
from jax import Array, lax

from vae_jax import parallel
from vae_jax.cli import main
from vae_jax.cpu import choices, compiler, convolution, cores, threefry
from vae_jax.likelihoods import bernoulli


def platform_dependent(*operands: Array, cpu: object, default: Any) -> Any:
    """The accelerators' path, on the CPU."""
    return default(*operands)


def depthwise(a: Array, b: Array, geometry: convolution.Geometry, of: convolution.Of) -> Array:
    """XLA's convolution of each feature by itself, or one of its gradients."""

    def conv(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (geometry.stride, geometry.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )

    sought = jax.ShapeDtypeStruct(geometry.shape(of, a.shape, b.shape), a.dtype)
    match of:
        case "output":
            return conv(a, b)
        case "image":
            return jax.linear_transpose(lambda x: conv(x, b), sought)(a)[0]
        case "kernel":
            return jax.linear_transpose(lambda kernel: conv(a, kernel), sought)(b)[0]


# The module, its attribute, and what replaces it.
TRICKS: dict[str, tuple[Any, str, Any]] = {
    "threefry": (threefry, "key", jax.random.key),
    "softplus": (bernoulli, "softplus", jax.nn.softplus),
    "barriers": (compiler, "KEEP_BARRIERS", {}),
    "sums": (choices, "adds_one_by_one", lambda: False),
    "branches": (choices, "branches_in_place", lambda: False),
    "convolution": (lax, "platform_dependent", platform_dependent),
    "winograd": (convolution, "MANY", float("inf")),
    "patches": (convolution, "FEW", 0),
    "shifts": (
        convolution,
        "DEPTHWISE",
        {of: partial(depthwise, of=of) for of in convolution.OPERANDS},
    ),
    "cores": (cores, "give_replicas_cores", lambda num_replicas: None),
    "turns": (parallel, "over_replicas", jax.vmap),
}

if __name__ == "__main__":
    trick = sys.argv.pop(1)
    setattr(*TRICKS[trick])
    main()
