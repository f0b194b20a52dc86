"""Chunks of training steps lowered for accelerators, without one."""

import dataclasses
import re
from functools import partial
from typing import Literal

import jax
import numpy as np
import pytest
import tiny

import vae_jax as vj
from vae_jax import parallel
from vae_jax.interfaces import Model
from vae_jax.step import init_state, make_train_chunk
from vae_jax.train import chunks_of_batches

FAMILIES: dict[str, Model] = {
    "MLP": tiny.model(),
    "convolutions": tiny.model().clone(
        encoder=vj.ConvEncoder((3, 4), 5), decoder=vj.ConvDecoder((4, 3), 5)
    ),
    "deep hierarchy": vj.DeepVAE(
        encoder=vj.BottomUp((1, 1), 8),
        decoder=vj.TopDown((2, 1), 8, 2),
        likelihood=vj.Bernoulli(),
        image_shape=tiny.IMAGE_SHAPE,
    ),
}


def lowered(this: vj.Experiment, platform: str) -> str:
    """The program of a chunk of training steps for a platform, as text."""
    seeds = np.zeros(1, np.uint32)
    layout = parallel.Layout.of(len(seeds), this.batch_size)
    state = layout.shapes(jax.eval_shape(jax.vmap(partial(init_state, this)), seeds))
    images = layout.shapes(this.data.train.images, everywhere=True)
    batches = next(chunks_of_batches(this, layout, seeds, 0, streamed=False))
    chunk = jax.jit(make_train_chunk(this, layout).mapped)
    traced = chunk.trace(state, images, batches, layout.place(seeds))
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    "family", ["MLP", "convolutions", pytest.param("deep hierarchy", marks=pytest.mark.slow)]
)
def test_training_is_lowered_for_accelerators(
    family: str, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No float64, nothing that XLA does not compile, such as a callback, and real convolutions.

    A kernel takes three in a step, for its output, its gradient and that of its input, which for
    images is not needed.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: platform.replace("cuda", "gpu"))
    this = dataclasses.replace(tiny.experiment(), model=FAMILIES[family])
    params = jax.tree.leaves(jax.eval_shape(partial(init_state, this), 0).params)
    kernels = sum(leaf.ndim >= 4 for leaf in params)  # scanned blocks have an axis more
    assert (kernels == 0) == (family == "MLP")
    dtypes: dict[Literal["float32", "bfloat16"], str] = {"float32": "xf32>", "bfloat16": "xbf16>"}
    for dtype, written in dtypes.items():
        text = lowered(dataclasses.replace(this, compute_dtype=dtype), platform)
        assert "custom_call" not in text
        assert not re.search(r"[x<]f64>", text)
        convolutions = re.findall(r"stablehlo\.convolution\(.*: \((.*), (.*)\) ->", text)
        assert len(convolutions) == max(0, 3 * kernels - 1)
        assert all(written in each for pair in convolutions for each in pair)
