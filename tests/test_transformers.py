"""Patches, vision transformers and GPTs: inverses, papers' sizes, and which position sees which."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perturbation import drawn, influence

from vae_jax import GPTDecoder, GPTEncoder, VaeJaxError, ViTDecoder, ViTEncoder
from vae_jax.networks.patches import from_patches, grid_of, to_patches, to_tokens
from vae_jax.networks.transformer import Transformer

ENCODERS = [GPTEncoder, ViTEncoder]
DECODERS = [GPTDecoder, ViTDecoder]
SMALL: Any = {"width": 8, "num_layers": 2, "num_heads": 2}


# --- Patches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "p"), [((8, 12), 4), ((7, 10), 3), ((5, 5), 8), ((3, 4), 1)])
def test_patches_are_slices_and_come_back(size, p):
    """Against NumPy's slices of the image, filled up with zeros."""
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    h, w = grid_of(size, p)
    filled = np.zeros((2, h * p, w * p, 3), np.float32)
    filled[:, : size[0], : size[1]] = x
    patches = to_patches(jnp.asarray(x), p)
    for i in range(h):
        for j in range(w):
            slice_ = filled[:, i * p : (i + 1) * p, j * p : (j + 1) * p]
            np.testing.assert_array_equal(patches[:, i, j], slice_.reshape(2, -1))
    np.testing.assert_array_equal(from_patches(patches, size, p), x)
    np.testing.assert_array_equal(from_patches(to_tokens(patches), size, p), x)


# --- Sizes --------------------------------------------------------------------------------------


def num_parameters(network: Any, shape: tuple[int, ...]) -> int:
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def test_vit_base_has_the_papers_parameters():
    """86M of table 1, 86,567,656 to the unit for ViT-B/16 at 224 with its head for 1,000 classes.

    The class token is a parameter of its own there, here its position.
    """
    token, head = 768, 768 * 1000 + 1000
    assert num_parameters(ViTEncoder.base(), (224, 224, 3)) + token + head == 86_567_656


@pytest.mark.slow
def test_larger_vits_have_the_papers_parameters():
    """307M and 632M, table 1, whose numbers count about a million for the head."""
    for network, millions in ((ViTEncoder.large(), 307), (ViTEncoder.huge(), 632)):
        count = num_parameters(network, (224, 224, 3)) + network.width * 1001 + 1000
        assert count == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize(
    ("network", "gpt2s"),
    [
        (GPTEncoder.small(1), 124_439_808),
        pytest.param(GPTEncoder.medium(1), 354_823_168, marks=pytest.mark.slow),
    ],
)
def test_gpt_has_gpt2s_parameters(network, gpt2s):
    """At 1,024 positions, with its vocabulary for the affine map of a grey pixel."""
    vocabulary = 50257 * network.width
    affine = network.width + network.width
    assert num_parameters(network, (32, 32, 1)) - affine + vocabulary == gpt2s


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (256, 255)])
@pytest.mark.parametrize("channels", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_every_image_size_and_shape_of_latents(size, channels):
    """Shapes alone, traced and not run."""
    shape, p = (*size, channels), 4 if max(size) < 64 else 32
    h, w = grid_of(shape, p)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    outputs = {"vector": (8,), "tokens": (h * w, 8), "map": (h, w, 8)}
    for encoder in ENCODERS:
        for output, expected in outputs.items():
            network = encoder(p, **SMALL, output=output)
            made = jax.eval_shape(network.init_with_output, jax.random.key(0), x)[0]
            assert made.shape == (2, *expected)
    for decoder in DECODERS:
        network = partial(decoder(5, p, **SMALL).init_with_output, image_shape=shape)
        for event in ((6,), (3, 6), (2, 3, 6)):
            z = jax.ShapeDtypeStruct((2, *event), jnp.float32)
            made = jax.eval_shape(network, jax.random.key(0), z)[0]
            assert made.shape == (2, *size, 5)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(VaeJaxError, match="3 heads of ViTEncoder do not divide its width of 8"):
        ViTEncoder(width=8, num_heads=3)


# --- Who sees whom ------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_patch_knows_those_before_it_in_a_gpt_and_all_in_a_vit(encoder):
    """Four patches of 2x2; the last position of a GPT and a ViT's class token know everything."""
    x = np.random.default_rng(1).normal(size=(4, 4, 2)).astype(np.float32)
    tokens, pooled = (encoder(2, **SMALL, output=output) for output in ("tokens", "vector"))
    variables = drawn(tokens, x[None])
    patch_of = np.arange(4).reshape(2, 2, 1).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    expected = np.tri(4) if encoder is GPTEncoder else np.ones((4, 4))
    seen = influence(partial(tokens.apply, variables), x).any(-1)  # [H, W, C, positions]
    np.testing.assert_array_equal(seen, expected.T[patch_of])
    assert influence(partial(pooled.apply, variables), x).any(-1).all()


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_pixel_knows_every_latent_and_its_position(decoder):
    """A map of latents, by perturbation; pixels of different patches are not alike."""
    network, shape = decoder(3, 2, **SMALL), (4, 5, 1)
    z = np.random.default_rng(2).normal(size=(2, 2, 4)).astype(np.float32)
    variables = drawn(network, z[None], image_shape=shape)
    decode: Any = partial(network.apply, variables, image_shape=shape)
    assert influence(decode, z).any(-1).all()
    assert (np.std(decode(z[None])[0, :, ::2], (0, 1)) > 1e-3).all()


def test_position_by_position_with_a_cache_is_all_at_once():
    """Six positions in two steps of three."""
    network = Transformer(length=6, features=None, **SMALL)
    x = np.random.default_rng(3).normal(size=(2, 6, 3)).astype(np.float32)
    variables = drawn(network, x)
    apply: Any = jax.jit(network.apply)
    whole, seen = apply(variables, x)
    first, cache = apply(variables, x[:, :3], network.empty_cache(2), 0)
    last, cache = apply(variables, x[:, 3:], cache, 3)
    np.testing.assert_allclose(np.concatenate([first, last], 1), whole, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(cache), jax.tree.leaves(seen), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
