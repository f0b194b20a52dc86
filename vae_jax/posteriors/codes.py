"""The common base of quantized posteriors.

Features `[N, h, w, F]` give a code vector at each position; vectors `[N, F]` count as maps with a
single position.
"""

from jax import Array
from jaxtyping import Float


def as_map(features: Float[Array, "N ..."]) -> Float[Array, "N h w F"]:
    """The features as a map."""
    return features.reshape(len(features), *(features.shape[1:-1] or (1, 1)), -1)
