"""The convolution and its adjoint against the library's, and every image size met exactly."""

import itertools
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vae_jax import VaeJaxError
from vae_jax.cpu.convolution import MANY
from vae_jax.cpu.convolution_products import by_tiles, tile_size
from vae_jax.networks import MLP, ConvDecoder, ConvEncoder
from vae_jax.networks.conv import ResidualBlock
from vae_jax.networks.layers import Dense, conv, conv_transpose

# Every kernel width meets an odd height and an even width; (h, w) differ, so no axis is swapped.
SIZE = (7, 8)
KERNELS = [(1, 1), (2, 3), (3, 2), (4, 5), (5, 4)]
CASES = [
    *itertools.product(["cpu"], KERNELS, [1, 2, 3]),
    *itertools.product(["default"], [(3, 2), (4, 5)], [1, 2, 3]),
]
cases = pytest.mark.parametrize(("branch", "kernel", "stride"), CASES, indirect=["branch"])
# The tiles' side at sizes that it divides and does not.
TILED = [((7, 8), 4), ((2, 6), 2), ((12, 6), 6), ((14, 13), 4), ((1, 2), 2)]


@pytest.fixture
def branch(request, monkeypatch):
    """The CPU's matrix products, or the accelerators' branch run on the CPU instead."""
    if request.param == "default":

        def take_default(*operands, cpu, default):
            del cpu
            return default(*operands)

        monkeypatch.setattr(lax, "platform_dependent", take_default)


def apply(module: nn.Module, params, x) -> Any:
    return module.apply({"params": params}, x)


def library_conv(x, kernel, stride):
    """XLA's own convolution with its own "SAME"."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arrays(kernel, stride, size=SIZE, features=(2, 3)):
    """Standard normal x `[2, *size, I]`, kernel `[h, w, I, O]` and y, of the output's shape."""
    generator = np.random.default_rng(0)
    small = [-(-n // stride) for n in size]
    shapes = ((2, *size, features[0]), (*kernel, *features), (2, *small, features[1]))
    return [generator.normal(size=shape) for shape in shapes]


def library_transpose(y, kernel, stride, size):
    """The transpose of `library_conv` on images `[N, *size, I]`."""
    image = jax.ShapeDtypeStruct((len(y), *size, kernel.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: library_conv(x, kernel, stride), image)(y)[0]


@partial(jax.jit, static_argnums=0)
def values_and_gradients(functions, operands, cotangent):
    """For each function its value and its gradient in each operand."""
    results = []
    for function in functions:
        value, pullback = jax.vjp(function, *operands)
        results.append((value, *pullback(cotangent)))
    return results


def assert_same(functions, operands, cotangent, tolerance):
    """Two functions have the same values and gradients; returns the value."""
    ours, librarys = values_and_gradients(functions, operands, cotangent)
    for mine, theirs in zip(ours, librarys, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    return np.asarray(ours[0])


@cases
def test_conv_is_the_librarys(branch, kernel, stride):
    """Value and both gradients against XLA's "SAME" convolution, in float64."""
    with jax.enable_x64(True):
        x, kernel, y = arrays(kernel, stride)
        functions = (partial(conv, stride=stride), partial(library_conv, stride=stride))
        assert_same(functions, (x, kernel), y, 1e-12)


@cases
def test_conv_transpose_is_the_adjoint(branch, kernel, stride):
    """<conv(x), y> = <x, conv_transpose(y)>; value and gradients are the library's transpose's."""
    with jax.enable_x64(True):
        x, kernel, y = arrays(kernel, stride)
        given = {"stride": stride, "size": SIZE}
        functions = (partial(conv_transpose, **given), partial(library_transpose, **given))
        transposed = assert_same(functions, (y, kernel), x, 1e-12)
        convolved = jax.jit(library_conv, static_argnums=2)(x, kernel, stride)
        assert np.vdot(convolved, y) == pytest.approx(np.vdot(x, transposed), rel=1e-12)


@pytest.mark.others_slow
@pytest.mark.parametrize(("size", "tile"), TILED)
def test_tiles_are_the_librarys_convolution(size, tile):
    """Value and gradients of both directions in float64, and a value's error in float32."""
    features = (MANY, MANY + 4)
    with jax.enable_x64(True):
        x, kernel, y = arrays((3, 3), 1, size, features)
        assert tile_size(jnp.asarray(x), jnp.asarray(kernel)) == tile
        functions = (by_tiles, partial(library_conv, stride=1))
        exact = assert_same(functions, (x, kernel), y, 1e-9)
    single = jax.jit(partial(conv, stride=1))
    operands = np.float32(x), np.float32(kernel)
    assert np.sqrt(np.mean((np.asarray(single(*operands)) - exact) ** 2)) < 1e-5 * exact.std()
    with_tiles = single.lower(*operands).as_text()
    assert "stablehlo.convolution" not in with_tiles


def test_bfloat16_is_too_coarse_for_tiles():
    """The transforms would lose its eight bits, so that patches are used."""
    x, kernel, _ = (a.astype(jnp.bfloat16) for a in arrays((3, 3), 1, (8, 8), (MANY, MANY)))
    exact = library_conv(np.float32(x), np.float32(kernel), 1)
    error = np.abs(np.float32(jax.jit(partial(conv, stride=1))(x, kernel)) - exact)
    assert error.max() < 2**-7 * np.abs(exact).max()


def test_conv_encoder_is_flaxs():
    """The same parameters in Flax's nn.Conv with "SAME" padding."""
    encoder = ConvEncoder((3, 4), dense=5, kernel_size=3)
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 2))
    features, variables = jax.jit(encoder.init_with_output)(jax.random.key(1), x)
    params = variables["params"]
    h = x
    for layer, width in enumerate((3, 4)):
        flax = nn.Conv(width, (3, 3), strides=2, padding="SAME")
        h = jax.nn.relu(apply(flax, params[f"Conv_{layer}"], h))
    expected = jax.nn.relu(apply(nn.Dense(5), params["Dense_0"], h.reshape(2, -1)))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert np.any(features > 0)


def test_an_affine_last_layer_is_the_one_before_its_activation():
    decoder, z = ConvDecoder((3, 2), dense=5), jax.random.normal(jax.random.key(0), (4, 6))
    variables = decoder.init(jax.random.key(1), z, (6, 6, 1))
    affine: Any = decoder.clone(affine_last=True).apply(variables, z, (6, 6, 1))
    assert np.any(affine < 0)
    np.testing.assert_array_equal(decoder.apply(variables, z, (6, 6, 1)), jax.nn.relu(affine))


def test_conv_decoder_is_flaxs():
    """The same parameters in Flax's nn.ConvTranspose, whose sizes are always doubled."""
    decoder = ConvDecoder((3, 4, 2), dense=5)
    z = jax.random.normal(jax.random.key(0), (2, 6))
    features, variables = jax.jit(decoder.init_with_output, static_argnums=2)(
        jax.random.key(1), z, (8, 12, 1)
    )
    params = variables["params"]
    h = z
    for layer, width in enumerate((5, 2 * 3 * 3)):
        h = jax.nn.relu(apply(nn.Dense(width), params[f"Dense_{layer}"], h))
    h = h.reshape(2, 2, 3, 3)
    for layer, width in enumerate((4, 2)):
        flax = nn.ConvTranspose(width, (4, 4), strides=(2, 2), transpose_kernel=True)
        h = jax.nn.relu(apply(flax, params[f"ConvTranspose_{layer}"], h))
    assert features.shape == (2, 8, 12, 2)
    np.testing.assert_allclose(features, h, rtol=1e-4, atol=1e-5)
    assert np.any(features > 0)


@pytest.mark.parametrize("size", [*((n, n) for n in range(8, 34)), (28, 20)])
def test_conv_networks_meet_any_image_size(size):
    """Shapes alone, traced and not run; odd sizes halve to their ceiling and come back exactly."""
    shape = (*size, 3)

    def decode(key):
        decoder = ConvDecoder((4, 3, 2), dense=4)
        return decoder.init_with_output(key, jnp.zeros((2, 5)), shape)[0]

    def encode(key):
        return ConvEncoder((2, 3), dense=4).init_with_output(key, jnp.zeros((2, *shape)))[0]

    assert jax.eval_shape(decode, jax.random.key(0)).shape == (2, *size, 2)
    assert jax.eval_shape(encode, jax.random.key(0)).shape == (2, 4)


def test_residual_block_is_flaxs():
    """x + W relu(C relu(x)) with the same parameters in Flax's nn.Conv."""
    block = ResidualBlock(jax.nn.relu, nn.initializers.he_normal())
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    output, variables = jax.jit(block.init_with_output)(jax.random.key(1), x)
    params = variables["params"]
    h = apply(nn.Conv(3, (3, 3), padding="SAME"), params["Conv_0"], jax.nn.relu(x))
    expected = x + apply(nn.Conv(3, (1, 1)), one_by_one(params["Dense_0"]), jax.nn.relu(h))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def one_by_one(dense):
    return {**dense, "kernel": dense["kernel"][None, None]}


@pytest.mark.parametrize("size", [(28, 28), (7, 10), (9, 5)])
def test_conv_networks_between_images_and_maps(size):
    """Shapes alone: a decoder takes a map of the size that the encoder makes, and no other."""
    shape = (*size, 3)

    def both(key, x):
        encoder = ConvEncoder((2, 4), dense=None, residual_blocks=2)
        decoder = ConvDecoder((4, 3, 2), dense=None, residual_blocks=1)
        h = encoder.init_with_output(key, x)[0]
        return h, decoder.init_with_output(key, h, shape)[0]

    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    h, features = jax.eval_shape(both, jax.random.key(0), x)
    assert h.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 4)
    assert features.shape == (2, *size, 2)
    with pytest.raises(VaeJaxError, match="coarsest map of"):
        ConvDecoder((4, 3, 2), dense=None).init(jax.random.key(0), jnp.zeros((2, 4, 6, 4)), shape)


@pytest.mark.parametrize("shape", [(3, 5), (3, 7, 5), (3, 4, 6, 5)])
def test_dense_is_flaxs(shape: tuple[int, ...]):
    """Values, gradients and parameters."""
    x = jax.random.normal(jax.random.key(0), shape)
    ours, theirs = Dense(4), nn.Dense(4)
    variables = theirs.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x), variables)

    def loss(network, variables, x):
        return (jnp.sin(jax.vmap(partial(network.apply, variables))(x[None])) ** 2).sum()

    found, expected = (
        jax.jit(jax.value_and_grad(partial(loss, network), (0, 1)))(variables, x)
        for network in (ours, theirs)
    )
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, expected)


def test_mlp_is_a_chain_of_dense_layers():
    """In NumPy, from the parameters; the image is flattened, its shape ignored."""
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 1)).astype(np.float32)
    output, variables = MLP((5, 4)).init_with_output(jax.random.key(0), x, (3, 2, 1))
    h = x.reshape(2, -1)
    for layer in range(2):
        dense: Any = variables["params"][f"Dense_{layer}"]
        h = np.tanh(h @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(output, h, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(MLP(()).apply({}, x), x.reshape(2, -1))
