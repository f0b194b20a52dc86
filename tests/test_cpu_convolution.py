"""Convolutions on the CPU against XLA's own, and in the one order that its library takes."""

import re
from functools import partial
from itertools import product
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from vae_jax.cpu.compiler import KEEP_BARRIERS
from vae_jax.cpu.convolution import conv
from vae_jax.networks.layers import Conv, GroupNorm, conv_upsampled, upsample

WINDOWS = [(1, 1), (2, 3), (4, 2), (3, 3), (5, 5), (7, 6)]
SIZES = [(7, 8), (1, 2), (9, 5)]
FEATURES = [(1, 4), (3, 1), (1, 1), (16, 512), (130, 2), (96, 97)]
# (size, window, stride, inputs, outputs): pixels, strides from 1 to 4, and features from 1 to 512.
CASES = [
    *(
        (size, window, stride, 3, 5)
        for size, window, stride in product(SIZES, WINDOWS, range(1, 5))
    ),
    *(((6, 5), (3, 3), stride, *features) for stride, features in product((1, 2), FEATURES)),
]


def librarys(x: Any, kernel: Any, stride: int) -> Any:
    """XLA's own convolution with its own "SAME"."""
    groups = x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def normal(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Standard normal numbers of each shape."""
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


def operands(size: Any, window: Any, stride: int, inputs: int, outputs: int) -> list[np.ndarray]:
    """Images, a kernel, and a cotangent."""
    small = [-(-n // stride) for n in size]
    return normal((2, *size, inputs), (*window, inputs, outputs), (2, *small, outputs))


def test_values_and_gradients_are_the_librarys() -> None:
    """In float32, at every size, window, stride and number of features, in one program."""

    @jax.jit
    def both(every: Any) -> Any:
        found = []
        for (_, _, stride, *_), (x, kernel, y) in zip(CASES, every, strict=True):
            for function in (conv, librarys):
                value, pullback = jax.vjp(partial(function, stride=stride), x, kernel)
                found.append((value, *pullback(y)))
        return found

    found = both([operands(*case) for case in CASES])
    for case, ours, theirs in zip(CASES, found[::2], found[1::2], strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            largest = float(np.abs(other).max())
            np.testing.assert_allclose(
                mine, other, rtol=1e-5, atol=2e-5 * largest, err_msg=str(case)
            )


def test_depthwise_is_the_librarys() -> None:
    """Value and both gradients, at odd sizes and strides and at a size of training, compiled."""
    cases = [
        *(((2, 7, 8, 4), window, stride) for window in WINDOWS[1:] for stride in (1, 2, 3)),
        *(((2, *size, 4), (3, 3), 2) for size in SIZES[1:]),
        ((32, 16, 16, 128), (3, 3), 1),
    ]

    @jax.jit
    def both(every: Any) -> Any:
        found = []
        for (*_, stride), (x, kernel, y) in zip(cases, every, strict=True):
            for function in (conv, librarys):
                value, pullback = jax.vjp(partial(function, stride=stride), x, kernel)
                found.append((value, *pullback(y)))
        return found

    every = []
    for shape, window, stride in cases:
        small = [-(-n // stride) for n in shape[1:3]]
        every.append(normal(shape, (*window, 1, shape[3]), (shape[0], *small, shape[3])))
    found = both(every)
    for case, ours, theirs in zip(cases, found[::2], found[1::2], strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            largest = float(np.abs(other).max())
            np.testing.assert_allclose(mine, other, atol=2e-5 * largest, err_msg=str(case))


def test_a_depthwise_kernels_gradient_in_bfloat16_is_added_in_float32() -> None:
    x, kernel, y = (
        jnp.asarray(a, jnp.bfloat16) for a in normal((64, 16, 16, 8), (3, 3, 1, 8), (64, 16, 16, 8))
    )
    gradients = []
    for dtype in (jnp.bfloat16, jnp.float32):
        images, given, ct = (a.astype(dtype) for a in (x, kernel, y))
        gradients.append(jax.vjp(lambda k, images=images: conv(images, k, 1), given)[1](ct)[0])
    assert gradients[0].dtype == jnp.bfloat16
    largest = float(jnp.abs(gradients[1]).max())
    np.testing.assert_allclose(np.float32(gradients[0]), gradients[1], atol=2**-8 * largest)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_derivative(stride: int) -> None:
    """Both modes, twice, of all three functions, against finite differences in float64."""
    with jax.enable_x64(True):
        x, kernel, _ = (a.astype(float) for a in operands((3, 4), (3, 2), stride, 2, 2))
        function = jax.jit(partial(conv, stride=stride))
        check_grads(function, (x, kernel), order=2, rtol=1e-6)
        check_grads(function, (x, kernel[:, :, :1]), order=2, rtol=1e-6)  # depthwise


@pytest.mark.parametrize("axes", [(1, None), (None, 1), (1, 1)])
def test_mapped_over_images_or_kernels_or_both(axes: tuple[int | None, int | None]) -> None:
    """And both gradients, against one after the other."""
    x, kernel = normal((2, 3, 5, 6, 4), (3, 3, 3, 4, 2))
    x, kernel = (a if axis else a[:, 0] for a, axis in zip((x, kernel), axes, strict=True))

    def value_and_gradients(x: Any, kernel: Any) -> Any:
        def loss(x: Any, kernel: Any) -> Any:
            return (conv(x, kernel, 2) ** 2).sum()

        return conv(x, kernel, 2), jax.grad(loss, (0, 1))(x, kernel)

    found = jax.jit(jax.vmap(value_and_gradients, axes))(x, kernel)
    for number in range(3):
        own = (a[:, number] if axis else a for a, axis in zip((x, kernel), axes, strict=True))
        alone = value_and_gradients(*map(jnp.asarray, own))
        for mapped, one in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(mapped[number], one, rtol=1e-4, atol=1e-4)


def test_within_a_loop_every_convolution_has_the_librarys_order() -> None:
    """Forward and both gradients; XLA itself brings them into it outside of loops alone."""
    x, kernel = normal((2, 6, 6, 8), (3, 3, 8, 8))

    def loss(kernel: Any, x: Any) -> Any:
        return (conv(jnp.tanh(conv(x, kernel, 1)), kernel, 2) ** 2).sum()

    def steps(kernel: Any, x: Any) -> Any:
        def step(kernel: Any, _: None) -> tuple[Any, None]:
            return kernel - 1e-3 * jax.grad(loss)(kernel, x), None

        return lax.scan(step, kernel, length=3)[0]

    text = jax.jit(steps).lower(kernel, x).compile().as_text() or ""
    orders = re.findall(r" convolution\(.*dim_labels=(\S+?),", text)
    assert len(orders) == 5
    assert set(orders) == {"b01f_01io->b01f"}


@pytest.mark.parametrize(("size", "width"), [((2, 2), 3), ((4, 2), 5)])
def test_images_smaller_than_a_kernel_have_their_edges_before(
    size: tuple[int, int], width: int
) -> None:
    """XLA's library takes no other; XLA's loops are many times slower (`time_operations.py`)."""
    x, kernel, y = normal((3, *size, 8), (width, width, 8, 8), (3, *size, 8))
    functions = (
        lambda x, kernel, y: conv(x, kernel, 1),
        lambda x, kernel, y: jax.vjp(lambda x: conv(x, kernel, 1), x)[1](y)[0],
    )
    for function in functions:
        compiled = jax.jit(function).lower(x, kernel, y).compile(dict(KEEP_BARRIERS))
        text = compiled.as_text() or ""
        (window,) = re.findall(r" convolution\(.*window={(.*?)}", text)
        assert window == f"size={width}x{width}"


@pytest.mark.parametrize("size", [(8, 6), (2, 2), (7, 6), (5, 1)])
def test_conv_upsampled_is_that_of_the_upsampled_map(size: tuple[int, int]) -> None:
    """Values and gradients in float64, for odd and even windows; odd sizes are cut."""
    half = [-(-n // 2) for n in size]

    def expected(x: Any, kernel: Any) -> Any:
        return librarys(upsample(x, size), kernel, 1)

    @jax.jit
    def with_gradients(x: Any, kernel: Any, y: Any) -> Any:
        pulled = [jax.vjp(f, x, kernel) for f in (partial(conv_upsampled, size=size), expected)]
        return [(value, *pullback(y)) for value, pullback in pulled]

    with jax.enable_x64(True):
        for window in [(1, 1), (3, 3), (5, 3), (7, 7), (2, 3)]:
            operands = normal((2, *half, 3), (*window, 3, 4), (2, *size, 4))
            found = with_gradients(*(a.astype(float) for a in operands))
            for mine, other in zip(*found, strict=True):
                np.testing.assert_allclose(mine, other, atol=1e-10)


def test_conv_takes_the_size_of_the_upsampled_map() -> None:
    """The layer has the same parameters either way."""
    (x,) = normal((1, 3, 4, 2))
    layer = Conv(5, use_bias=True)
    value, variables = layer.init_with_output(jax.random.key(0), x, (6, 8))
    expected: Any = layer.apply(variables, upsample(jnp.asarray(x), (6, 8)))
    np.testing.assert_allclose(np.asarray(value), expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "group"), [((3, 4, 5, 32), 16), ((2, 6, 8), 4), ((2, 8), 8)])
def test_group_norm_is_flaxs(shape: tuple[int, ...], group: int) -> None:
    """Values, and gradients in x and in the parameters, which have the same names."""
    x, y, scale, bias = normal(shape, shape, shape[-1:], shape[-1:])
    params = {"params": {"scale": scale, "bias": bias}}

    @jax.jit
    def with_gradients(params: Any, x: Any, y: Any) -> Any:
        modules = GroupNorm(group), nn.GroupNorm(num_groups=None, group_size=group)
        pulled = [jax.vjp(module.apply, params, x) for module in modules]
        return [jax.tree.leaves((value, pullback(y))) for value, pullback in pulled]

    for mine, flaxs in zip(*with_gradients(params, 0.5 + 2 * x, y), strict=True):
        np.testing.assert_allclose(mine, flaxs, rtol=1e-4, atol=1e-4)


def test_group_norm_of_bfloat16_has_moments_in_float32() -> None:
    (x,) = normal((2, 64, 64, 16))
    coarse = jnp.asarray(3 + x, jnp.bfloat16)
    norm = GroupNorm(16)
    variables = norm.init(jax.random.key(0), x)
    found: Any = norm.apply(variables, coarse)
    assert found.dtype == jnp.bfloat16
    exact = np.asarray(coarse, float)
    axes = (1, 2, 3)
    exact = (exact - exact.mean(axes, keepdims=True)) / exact.std(axes, keepdims=True)
    np.testing.assert_allclose(np.asarray(found, float), exact, atol=0.02)


def test_group_norm_of_a_constant_is_its_bias() -> None:
    """No variance is negative, however the moments round."""
    norm = GroupNorm(4)
    x = jnp.full((1, 5, 7, 4), 123.456)
    found: Any = norm.apply(norm.init(jax.random.key(0), x), x)
    assert np.isfinite(found).all()
