"""Every architecture as encoder with every one as decoder, 32x32 colours, z of each shape."""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import pytest
from running import on_devices

from vae_jax import (
    ELBO,
    MLP,
    VAE,
    AxialConvolution,
    AxialDecoder,
    AxialEncoder,
    ConvDecoder,
    ConvEncoder,
    Data,
    DiagonalGaussian,
    DiscretizedLogistic,
    Experiment,
    GPTDecoder,
    GPTEncoder,
    HorizontalDecoder,
    HorizontalEncoder,
    ResNetDecoder,
    ResNetEncoder,
    StandardNormal,
    VaeJaxError,
    VerticalDecoder,
    VerticalEncoder,
    VGGDecoder,
    VGGEncoder,
    ViTDecoder,
    ViTEncoder,
    VQGANDecoder,
    VQGANEncoder,
    XceptionDecoder,
    XceptionEncoder,
    parallel,
)
from vae_jax.compatibility import check_shapes
from vae_jax.step import init_state, make_train_chunk
from vae_jax.train import chunks_of_batches

IMAGE_SHAPE = (32, 32, 3)
BATCH, STEPS = 8, 4
LATENTS = {"vector": 6, "matrix": (4, 2), "tensor": (4, 4, 2)}
STAGES = ((8,), (8,), (16,), (16,))
XCEPTION: Any = ((8, 8), (8,), 1, (16, 16, 16))
SMALL: Any = {"patch_size": 8, "width": 16, "num_layers": 1, "num_heads": 2}


def across() -> AxialConvolution:
    """What the axial networks mix rows and columns with."""
    return AxialConvolution(num_layers=1)


# Each with the latents of a kind that fit its features.
ENCODERS: dict[str, dict[str, tuple[Any, Any]]] = {
    "mlp": {"vector": (MLP((16,)), 6)},
    "conv": {
        "vector": (ConvEncoder((8, 8), dense=16), 6),
        "tensor": (ConvEncoder((8, 8, 8), dense=None), (4, 4, 2)),
    },
    "resnet": {
        "vector": (ResNetEncoder((1, 1, 1, 1), width=8, output="vector"), 6),
        "matrix": (ResNetEncoder((1, 1, 1, 1), width=8, output="tokens"), (16, 2)),
        "tensor": (ResNetEncoder((1, 1, 1, 1), width=8), (4, 4, 2)),
    },
    "vqgan": {
        "vector": (VQGANEncoder((8, 8, 8, 16), blocks=1), 6),
        "tensor": (VQGANEncoder((8, 8, 8, 16), blocks=1), (4, 4, 2)),
    },
    "vgg": {
        "vector": (VGGEncoder(STAGES, output="vector", dense=(16,)), 6),
        "matrix": (VGGEncoder(STAGES, output="tokens"), (4, 2)),
        "tensor": (VGGEncoder(STAGES), (2, 2, 2)),
    },
    "xception": {
        "vector": (XceptionEncoder(*XCEPTION, output="vector"), 6),
        "matrix": (XceptionEncoder(*XCEPTION, output="tokens"), (16, 2)),
        "tensor": (XceptionEncoder(*XCEPTION), (4, 4, 2)),
    },
    "gpt": {
        "vector": (GPTEncoder(**SMALL), 6),
        "matrix": (GPTEncoder(**SMALL, output="tokens"), (16, 2)),
        "tensor": (GPTEncoder(**SMALL, output="map"), (4, 4, 2)),
    },
    "vit": {
        "vector": (ViTEncoder(**SMALL), 6),
        "matrix": (ViTEncoder(**SMALL, output="tokens"), (16, 2)),
        "tensor": (ViTEncoder(**SMALL, output="map"), (4, 4, 2)),
    },
    "axial": {
        "matrix": (
            AxialEncoder(
                HorizontalEncoder(across(), 8, patch_size=8),
                VerticalEncoder(across(), 8, patch_size=1),
            ),
            (4, 2),
        ),
        "vector": (VerticalEncoder(across(), 8, patch_size=8), 6),
        "tensor": (HorizontalEncoder(across(), 8, patch_size=8), (4, 4, 2)),
    },
}
DECODERS: dict[str, Any] = {
    "mlp": MLP((16,)),
    "conv": ConvDecoder((8, 8, 8), dense=16),
    "resnet": ResNetDecoder((1, 1, 1, 1), width=8),
    "vqgan": VQGANDecoder((8, 8, 8, 16), blocks=1),
    "vgg": VGGDecoder(STAGES),
    "xception": XceptionDecoder(*XCEPTION),
    "gpt": GPTDecoder(8, **SMALL),
    "vit": ViTDecoder(8, **SMALL),
    "axial": AxialDecoder(
        VerticalDecoder(across(), features=8, width=8, patch_size=1),
        HorizontalDecoder(across(), features=8, width=8, patch_size=8),
    ),
}
# The axial decoder above has a grid of 4x4 patches: it lays out one vector, a vector for each of
# its columns, and a map of its size.
FIT_AXIAL = (6, (4, 2), (4, 4, 2))

TRIPLES = [
    (encoder, decoder, kind) for encoder in ENCODERS for decoder in DECODERS for kind in LATENTS
]
# By default these, with each kind of latents; all of them in the slow suite.
IN_DEFAULT = ("vit", "axial", "tensor")


def experiment(encoder: str, decoder: str, kind: str) -> Experiment:
    network, shape = ENCODERS[encoder][kind]
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *IMAGE_SHAPE), np.uint8)
    return Experiment(
        data=Data.from_arrays("noise", images, protocol="grey"),
        model=VAE(
            encoder=network,
            posterior=DiagonalGaussian(shape),
            prior=StandardNormal(shape),
            decoder=DECODERS[decoder],
            likelihood=DiscretizedLogistic(),
            image_shape=IMAGE_SHAPE,
        ),
        objective=ELBO(),
        optimizer=optax.adam(1e-3),
        num_steps=STEPS,
        batch_size=BATCH,
        log_every=STEPS,
        checkpoint_every=STEPS,
    )


@pytest.mark.others_slow
@pytest.mark.parametrize(
    ("encoder", "decoder", "kind"),
    [
        pytest.param(
            *triple, marks=() if triple == IN_DEFAULT else pytest.mark.slow, id="-".join(triple)
        )
        for triple in TRIPLES
    ],
)
def test_every_pair_trains(encoder, decoder, kind):
    """A few steps on eight images make the loss smaller and move every parameter, or a refusal."""
    if kind not in ENCODERS[encoder]:
        # Of features that are one vector there is no set and no map; of a map there is no set.
        with pytest.raises(VaeJaxError, match=r"Latents of shape .* take .*one number"):
            refused(ENCODERS[encoder]["vector"][0], LATENTS[kind], DECODERS[decoder])
        return
    if decoder == "axial" and ENCODERS[encoder][kind][1] not in FIT_AXIAL:
        with pytest.raises(VaeJaxError, match=r"The parts of the model do not fit together: .*4"):
            experiment(encoder, decoder, kind)
        return
    if (encoder, decoder, kind) != IN_DEFAULT:
        jax.clear_caches()  # compiled programs take memory maps, of which a process has not many
    to_train, seeds = experiment(encoder, decoder, kind), np.zeros(1, np.uint32)
    before = jax.tree.map(np.asarray, jax.jit(jax.vmap(partial(init_state, to_train)))(seeds))
    with on_devices(1):
        layout = parallel.Layout.of(1, BATCH)
        state, metrics = make_train_chunk(to_train, layout)(
            layout.place(before),
            parallel.replicate(to_train.data.train.images),
            next(chunks_of_batches(to_train, layout, seeds, 0, streamed=False)),
            layout.place(seeds),
        )
        loss, after = layout.collect((metrics["loss"], state.params))
    assert np.isfinite(loss).all()
    assert loss[0, -1] < loss[0, 0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after)
    assert all(jax.tree.leaves(moved)), moved


def refused(encoder: Any, shape: Any, decoder: Any) -> None:
    """Made into a model, and its shapes checked."""
    check_shapes(
        VAE(
            encoder=encoder,
            posterior=DiagonalGaussian(shape),
            prior=StandardNormal(shape),
            decoder=decoder,
            likelihood=DiscretizedLogistic(),
            image_shape=IMAGE_SHAPE,
        )
    )
