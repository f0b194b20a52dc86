"""`vae-jax train` without one of the tricks in `vae_jax/cpu`, to measure the trick's gain.

    python scripts/contenders/without.py softplus train scripts/contenders/ours.py --work iwae

The first argument is a key of `TRICKS`, the others are those of `vae-jax`.
"""

import sys
from typing import Any

import jax
from jax import Array, lax

from vae_jax import parallel
from vae_jax.cli import main
from vae_jax.cpu import compiler, convolution, cores, platform, threefry
from vae_jax.likelihoods import bernoulli


def platform_dependent(*operands: Array, cpu: object, default: Any) -> Any:
    """The accelerators' path, on the CPU."""
    return default(*operands)


# The module, its attribute, and what replaces it.
TRICKS: dict[str, tuple[Any, str, Any]] = {
    "threefry": (threefry, "key", jax.random.key),
    "softplus": (bernoulli, "softplus", jax.nn.softplus),
    "barriers": (compiler, "KEEP_BARRIERS", {}),
    "ynnpack": (compiler, "RIGHT", {compiler.YNNPACK: ""}),
    "sums": (platform, "adds_one_by_one", lambda: False),
    "branches": (platform, "branches_in_place", lambda: False),
    "convolution": (lax, "platform_dependent", platform_dependent),
    "winograd": (convolution, "MANY", float("inf")),
    "patches": (convolution, "FEW", 0),
    "cores": (cores, "give_replicas_cores", lambda num_replicas: None),
    "turns": (parallel, "over_replicas", jax.vmap),
}

if __name__ == "__main__":
    trick = sys.argv.pop(1)
    setattr(*TRICKS[trick])
    main()
