"""Arrays to figures: learning curves, image grids, latent spaces.

Functions take NumPy arrays; each figure has a separate Agg canvas, so that there is no global state
to close, and shows itself as the value of a notebook's cell. The lines, fonts and sizes of a
Matplotlib style sheet prevail: `with matplotlib.style.context("paper.mplstyle")`.

Images are floats in [0, 1], the channel last, C being 1 (grey) or 3 (RGB), or one more if the last
channel marks seen pixels; others raise a `VaeJaxError`: logits and bytes must never be shown as
pictures.
"""

from vae_jax.plots.curves import (
    SPLIT,
    Curves,
    curve_panels,
    latent_scatter,
    learning_curves,
    learning_panels,
    scaling,
)
from vae_jax.plots.figure import VECTOR, Figure, options_for, plain, png, save, use_style
from vae_jax.plots.pictures import (
    image_grid,
    interpolations,
    manifold,
    named_rows,
    reconstructions,
    restyled,
    sample_panels,
    save_each,
    save_images,
    traversals,
)

__all__ = [
    "SPLIT",
    "VECTOR",
    "Curves",
    "Figure",
    "curve_panels",
    "image_grid",
    "interpolations",
    "latent_scatter",
    "learning_curves",
    "learning_panels",
    "manifold",
    "named_rows",
    "options_for",
    "plain",
    "png",
    "reconstructions",
    "restyled",
    "sample_panels",
    "save",
    "save_each",
    "save_images",
    "scaling",
    "traversals",
    "use_style",
]
