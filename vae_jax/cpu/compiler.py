"""XLA's CPU compiler: its options, and the memory that it leaves behind.

With barriers training is 1.13 times as fast with IWAE at k = 50, but 0.96 times with the MLP at
batch 20. With YNNPACK's single products it is 1.08 times as fast with a convolutional VAE on grey
images, and 1.06 times with an MLP on 64x64 colours; YNNPACK's sums and fusions are wrong.
"""

import contextlib
import ctypes
import os
import re
import sys
import warnings
from importlib.metadata import version

Options = dict[str, str | bool]

# Keeps optimization barriers, which the CPU backend otherwise removes before it fuses operations
# and merges equal ones: results before a barrier are computed once, and rematerialized ones are
# computed again.
KEEP_BARRIERS: Options = {"xla_disable_hlo_passes": "cse_barrier_expander"}

# The kinds of operations that XLA gives to YNNPACK. jaxlib 0.10.2 computes some sums and fused
# products of 32,768 and more elements wrongly (jax-ml/jax issue 39103); up to 0.11 some crash
# (39257), and up to 0.12, the last that was tried, a dilated window loses its holes (openxla/xla
# issue 48714). Single products are right in 0.10. In 0.12 products in bfloat16 lose digits once
# YNNPACK may have them, even those that it then does not compute; 0.11 is treated alike, untried.
YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
PRODUCTS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
WRONG_SINCE, IMPRECISE_SINCE, RIGHT_SINCE = (0, 10, 2), (0, 11), (0, 13)

RIGHT: Options = {}
"""Options that make this package's programs right if JAX computed before the flag was set."""


def restrict_ynnpack() -> None:
    """Compile every program of this process without the fusions that are compiled wrongly.

    Call it before JAX begins to compute, which is when XLA reads its flags. A flag that the user
    has set stays as it is.
    """
    jaxlib = tuple(int(number) for number in re.findall(r"\d+", version("jaxlib")))
    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib < WRONG_SINCE or jaxlib >= RIGHT_SINCE or YNNPACK in flags:
        return
    kinds = PRODUCTS if jaxlib < IMPRECISE_SINCE else ""
    os.environ["XLA_FLAGS"] = f"{flags} --{YNNPACK}={kinds}".strip()
    if _began():
        RIGHT[YNNPACK] = kinds
        warnings.warn(
            f"JAX computed before vae_jax was imported, and on CPUs jaxlib {version('jaxlib')} "
            "compiles some sums wrongly unless XLA is told otherwise before that: programs that "
            "you compile yourself can be wrong. Import vae_jax first, or set "
            f"XLA_FLAGS=--{YNNPACK}={kinds}",
            stacklevel=3,
        )


def _began() -> bool:
    """Whether JAX already computes on the CPU."""
    if "jax" not in sys.modules:
        return False
    import jax
    from jax._src.xla_bridge import backends_are_initialized  # JAX has no public name for it

    return backends_are_initialized() and jax.default_backend() == "cpu"


def give_back_memory() -> None:
    """Return memory that the compiler has freed to the system, if the C library can.

    Otherwise the memory of a program, which is taken in large pieces, would add to it.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
