"""Horizontal and vertical networks: what they see, what they cannot see, and every image size."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perturbation import drawn, influence

from vae_jax import (
    VAE,
    AxialAttention,
    AxialConvolution,
    AxialDecoder,
    AxialEncoder,
    DiagonalGaussian,
    DiscretizedLogistic,
    GPTDecoder,
    GPTEncoder,
    HorizontalDecoder,
    HorizontalEncoder,
    StandardNormal,
    VaeJaxError,
    VerticalDecoder,
    VerticalEncoder,
    ViTDecoder,
    ViTEncoder,
)
from vae_jax.compatibility import check_shapes

GRID = (3, 4)
WIDTH = 8
LAYERS = {
    "attention": partial(AxialAttention, num_layers=1, num_heads=2),
    "convolution": partial(AxialConvolution, num_layers=1, kernel_size=3),
}
every_kind = pytest.mark.parametrize("kind", LAYERS)
NEAR = np.abs(np.subtract.outer(range(4), range(4))) <= 1


def horizontal_encoder(kind: str, patch_size: int = 1) -> HorizontalEncoder:
    return HorizontalEncoder(LAYERS[kind](), WIDTH, patch_size)


def vertical_encoder(kind: str, patch_size: int = 1) -> VerticalEncoder:
    return VerticalEncoder(LAYERS[kind](), WIDTH, patch_size)


def horizontal_decoder(kind: str, patch_size: int = 1) -> HorizontalDecoder:
    return HorizontalDecoder(LAYERS[kind](), 5, WIDTH, patch_size)


def vertical_decoder(kind: str, patch_size: int = 1) -> VerticalDecoder:
    return VerticalDecoder(LAYERS[kind](), 5, WIDTH, patch_size)


def seen_by(network: Any, x: np.ndarray, **settings: Any) -> np.ndarray:
    """Whether a change of each number of x reaches each position of the output."""
    apply = partial(network.apply, drawn(network, x[None], **settings), **settings)
    return np.any(influence(apply, x), -1)


def normals(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# --- What they see ------------------------------------------------------------------------------


@every_kind
def test_a_horizontal_encoder_sees_along_its_row_alone(kind):
    """By attention all of it, by one convolution of length three the neighbours."""
    seen = seen_by(horizontal_encoder(kind), normals(*GRID, 2))  # [H, W, C, h, w]
    reach = np.ones((4, 4), bool) if kind == "attention" else NEAR
    expected = np.einsum("ij,uv->iujv", np.eye(3, dtype=bool), reach)
    np.testing.assert_array_equal(seen, expected[:, :, None].repeat(2, 2))


@every_kind
def test_a_vertical_encoder_makes_one_vector_of_each_column(kind):
    """Which knows that column, all of it, and no other."""
    seen = seen_by(vertical_encoder(kind), normals(*GRID, 2))  # [H, W, C, w]
    expected = np.eye(4, dtype=bool)[None, :, None]
    np.testing.assert_array_equal(seen, np.broadcast_to(expected, (3, 4, 2, 4)))


@every_kind
def test_both_together_see_everything(kind):
    """Along the row and then the column; with convolutions what two neighbours away is, not."""
    network = AxialEncoder(horizontal_encoder(kind), vertical_encoder(kind))
    seen = seen_by(network, normals(*GRID, 2))
    expected = np.ones((4, 4), bool) if kind == "attention" else NEAR
    np.testing.assert_array_equal(seen, np.broadcast_to(expected[None, :, None], (3, 4, 2, 4)))


def test_a_row_of_patches_is_several_rows_of_pixels():
    """With patches of 2x2 pixels, two rows of pixels are one row."""
    seen = seen_by(horizontal_encoder("attention", 2), normals(4, 6, 1))  # [H, W, C, h, w]
    expected = (np.arange(4) // 2)[:, None] == np.arange(2)
    np.testing.assert_array_equal(
        seen, np.broadcast_to(expected[:, None, None, :, None], (4, 6, 1, 2, 3))
    )


@every_kind
def test_decoders_are_mirror_images(kind):
    """A row of the image from the latents of its row; a column from the vector of its column."""
    shape = (*GRID, 1)
    reach = np.ones((4, 4), bool) if kind == "attention" else NEAR
    horizontal = seen_by(horizontal_decoder(kind), normals(*GRID, 2), image_shape=shape)
    expected = np.einsum("ij,uv->iujv", np.eye(3, dtype=bool), reach)  # [h, w, H, W]
    np.testing.assert_array_equal(horizontal, expected[:, :, None].repeat(2, 2))
    vertical = seen_by(vertical_decoder(kind), normals(4, 2), image_shape=shape)
    expected = np.eye(4, dtype=bool)[:, None, None]  # [w, d, H, W]
    np.testing.assert_array_equal(vertical, np.broadcast_to(expected, (4, 2, 3, 4)))
    both = AxialDecoder(vertical_decoder(kind), horizontal_decoder(kind))
    seen = seen_by(both, normals(4, 2), image_shape=shape)
    np.testing.assert_array_equal(seen, np.broadcast_to(reach[:, None, None], (4, 2, 3, 4)))


@every_kind
def test_rows_and_columns_differ_where_one_vector_makes_all(kind):
    """By their positions: no two pixels are alike."""
    for decoder in (horizontal_decoder(kind), vertical_decoder(kind)):
        z, shape = normals(1, 2), (*GRID, 1)
        apply = jax.jit(partial(decoder.apply, image_shape=shape))
        features = apply(drawn(decoder, z, image_shape=shape), z)
        pixels = np.asarray(features).reshape(12, 5)
        distances = np.abs(pixels[:, None] - pixels).sum(-1) + np.eye(12)
        assert distances.min() > 1e-3


# --- Sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (256, 255)])
@pytest.mark.parametrize("channels", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_every_image_size_and_shape_of_latents(size, channels):
    """Shapes alone, traced and not run."""
    shape, p = (*size, channels), 4
    h, w = (-(-n // p) for n in size)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    for kind in LAYERS:
        horizontal, vertical = horizontal_encoder(kind, p), vertical_encoder(kind, p)
        both = AxialEncoder(horizontal, vertical_encoder(kind))
        for encoder, event in ((horizontal, (h, w)), (vertical, (w,)), (both, (w,))):
            made = jax.eval_shape(encoder.init_with_output, jax.random.key(0), x)[0]
            assert made.shape == (2, *event, WIDTH)
        mirrored = horizontal_decoder(kind, p), vertical_decoder(kind, p)
        mirrored += (AxialDecoder(vertical_decoder(kind), horizontal_decoder(kind, p)),)
        for decoder, number in zip(mirrored, (h, w, w), strict=True):
            for latents in ((6,), (number, 6), (h, w, 6)):
                z = jax.ShapeDtypeStruct((2, *latents), jnp.float32)
                init = partial(decoder.init_with_output, image_shape=shape)
                made = jax.eval_shape(init, jax.random.key(0), z)[0]
                assert made.shape == (2, *size, 5)


@pytest.mark.parametrize(("decoder", "number"), [(horizontal_decoder, 2), (vertical_decoder, 3)])
def test_latents_of_another_size_are_refused(decoder, number):
    """With the sizes that would fit 8x12 pixels in patches of 4."""
    sentence = rf"grid of 2x3 patches: .* \({number}, d\) or a map \(2, 3, d\)"
    for event in ((5, 6), (3, 2, 6)):
        with pytest.raises(VaeJaxError, match=sentence):
            decoder("attention", 4).init(jax.random.key(0), jnp.zeros((1, *event)), (8, 12, 1))


# --- In a model ---------------------------------------------------------------------------------

SMALL: Any = {"width": 8, "num_layers": 1, "num_heads": 2}
# Encoder and decoder, in patches of 8, and the shapes of latents that they take.
PAIRS = {
    "horizontal": (
        horizontal_encoder("attention", 8),
        horizontal_decoder("attention", 8),
        [2, (4, 4, 2)],
    ),
    "vertical": (vertical_encoder("attention", 8), vertical_decoder("attention", 8), [2, (4, 2)]),
    "axial to vit": (
        AxialEncoder(horizontal_encoder("convolution", 8), vertical_encoder("convolution")),
        ViTDecoder(3, 8, **SMALL),
        [2, (4, 2)],
    ),
    "gpt to axial": (
        GPTEncoder(8, **SMALL, output="map"),
        AxialDecoder(vertical_decoder("attention"), horizontal_decoder("attention", 8)),
        [2, (4, 4, 2)],
    ),
    "vit to gpt": (
        ViTEncoder(8, **SMALL, output="tokens"),
        GPTDecoder(3, 8, **SMALL),
        [2, (16, 2)],
    ),
}


@pytest.mark.parametrize(
    ("pair", "latents"),
    [(pair, latents) for pair, (*_, all_latents) in PAIRS.items() for latents in all_latents],
)
def test_models_of_colour_images_with_latents_of_each_shape(pair, latents):
    """They fit together at 32x32, and give pixels features of their own; traced, not run."""
    encoder, decoder, _ = PAIRS[pair]
    model = VAE(
        encoder=encoder,
        posterior=DiagonalGaussian(latents),
        prior=StandardNormal(latents),
        decoder=decoder,
        likelihood=DiscretizedLogistic(),
        image_shape=(32, 32, 3),
    )
    check_shapes(model)


def test_a_set_of_another_size_than_the_columns_is_refused_with_the_sizes_that_fit():
    encoder, decoder, _ = PAIRS["vertical"]
    model = VAE(
        encoder=encoder,
        posterior=DiagonalGaussian((5, 2)),
        prior=StandardNormal((5, 2)),
        decoder=decoder,
        likelihood=DiscretizedLogistic(),
        image_shape=(32, 32, 3),
    )
    with pytest.raises(VaeJaxError, match=r"shape=\(4, 2\)"):
        check_shapes(model)
