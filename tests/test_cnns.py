"""VGG, ResNet, Xception, VQGAN: the papers' sizes, every image size, models that start and train.

Sizes and counts are of abstract values: nothing of 256x256 pixels is computed here.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import lax
from scipy import ndimage, signal

import vae_jax as vj
from vae_jax.cpu import threefry
from vae_jax.networks.layers import (
    SelfAttention,
    conv,
    group_norm,
    halvings,
    max_pool,
    upsample,
)

STAGES = ((8, 8), (8, 16), (16,))
XCEPTION = {"stem": (4, 8), "entry": (8, 16), "middle": 1, "exit": (16, 24, 32)}
ENCODERS: dict[str, Any] = {
    "vgg": partial(vj.VGGEncoder, STAGES),
    "resnet": partial(vj.ResNetEncoder, (1, 2, 1), width=8),
    "bottlenecks": partial(vj.ResNetEncoder, (1, 2), width=8, bottleneck=True, large_stem=True),
    "xception": partial(vj.XceptionEncoder, **XCEPTION),
    "vqgan": partial(vj.VQGANEncoder, (8, 16, 32), blocks=1),
}
DECODERS: dict[str, Any] = {
    "vgg": vj.VGGDecoder(STAGES),
    "resnet": vj.ResNetDecoder((1, 2, 1), width=8),
    "bottlenecks": vj.ResNetDecoder((1, 2), width=8, bottleneck=True, large_stem=True),
    "xception": vj.XceptionDecoder(**XCEPTION),
    "vqgan": vj.VQGANDecoder((8, 16, 32), blocks=1),
}
HALVINGS = {"vgg": 3, "resnet": 2, "bottlenecks": 3, "xception": 4, "vqgan": 2}
FEATURES = {"vgg": 16, "resnet": 32, "bottlenecks": 64, "xception": 32, "vqgan": 32}
networks = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "xception")) for n in ENCODERS]
)


def shapes_of(module: nn.Module, *inputs: Any) -> tuple[Any, Any]:
    """Of the output and of the parameters, by path."""
    static = [each for each in inputs if isinstance(each, tuple)]
    arrays = [jax.ShapeDtypeStruct(each, jnp.float32) for each in static[:1]]
    key = jax.eval_shape(lambda: jax.random.key(0))
    output, variables = jax.eval_shape(
        lambda key, x: module.init_with_output(key, x, *static[1:]), key, *arrays
    )
    return output.shape, variables["params"]


def count(params: Any, axes: tuple[int, ...] = (1, 2, 3, 4)) -> int:
    """The parameters in arrays of these numbers of axes; kernels of convolutions have 4."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params) if leaf.ndim in axes)


# --- The papers' sizes ----------------------------------------------------------------------------


def test_vgg16_has_the_papers_parameters():
    """138,357,544 with the classifier's last layer, of them 14,714,688 in convolutions."""
    encoder = vj.VGGEncoder.vgg16("vector", normalize=False)
    shape, params = shapes_of(encoder, (1, 224, 224, 3))
    assert shape == (1, 4096)
    assert count(params) + 4096 * 1000 + 1000 == 138_357_544
    shape, params = shapes_of(vj.VGGEncoder.vgg16(normalize=False), (1, 224, 224, 3))
    assert shape == (1, 7, 7, 512)
    assert count(params) == 14_714_688


def test_vgg16_decoder_has_the_encoders_convolutions():
    """Kernels of the same sizes but for the last, of 64 features to 64 instead of 3 channels."""
    decoder = vj.VGGDecoder.vgg16(normalize=False)
    shape, params = shapes_of(decoder, (1, 7, 7, 512), (224, 224, 3))
    assert shape == (1, 224, 224, 64)
    biases = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512
    assert count(params, (4,)) == 14_714_688 - biases + 9 * 64 * (64 - 3)
    with_dense = vj.VGGDecoder.vgg16(dense=(4096, 4096), normalize=False)
    _, params = shapes_of(with_dense, (1, 1000), (224, 224, 3))
    dense = 1000 * 4096 + 4096 * 4096 + 4096 * 25088
    assert count(params, (2,)) == dense


def test_xception_has_the_papers_parameters():
    """22,910,480 with the classifier and the two running statistics of batch normalization."""
    shape, params = shapes_of(vj.XceptionEncoder.xception("vector"), (1, 299, 299, 3))
    assert shape == (1, 2048)
    entry, middle = 32 + 64 + 3 * (128 + 256 + 728), 8 * 3 * 728
    normalized = entry + middle + (1024 + 728 + 1024) + 1536 + 2048
    classifier = 2048 * 1000 + 1000
    assert count(params) + classifier + 2 * normalized == 22_910_480


@pytest.mark.parametrize(
    ("encoder", "published", "normalized"),
    [
        (vj.ResNetEncoder.resnet18, 11_689_512 - 512 * 1000 - 1000, 4800),
        (vj.ResNetEncoder.resnet50, 25_557_032 - 2048 * 1000 - 1000, 26_560),
    ],
)
def test_resnets_have_the_papers_convolutions(encoder, published, normalized):
    """The residual networks' counts, less scale and shift of their normalizations, as computed.

    Pre-activation moves normalizations, not convolutions.
    """
    shape, params = shapes_of(encoder("vector"), (1, 224, 224, 3))
    assert shape == (1, 512 if normalized == 4800 else 2048)
    assert count(params, (4,)) == published - 2 * normalized


def test_vqgan_has_the_parameters_of_latent_diffusions_autoencoder():
    """34,163,592 and 49,490,179 in Stable Diffusion's AutoencoderKL (f = 8, four channels).

    Less the biases of its blocks' convolutions and its last convolutions, the affine maps of the
    posterior and of the likelihood here; its decoder's first is a 3x3 convolution.
    """
    widths = (128, 256, 512, 512)
    shape, params = shapes_of(vj.VQGANEncoder(widths), (1, 64, 64, 3))
    assert shape == (1, 8, 8, 512)
    blocks = 2 * 2 * (128 + 256 + 512 + 512) + 2 * 2 * 512  # two convolutions of each have biases,
    shortcuts = 256 + 512
    assert count(params) + blocks + shortcuts + 9 * 512 * 8 + 8 == 34_163_592
    shape, params = shapes_of(vj.VQGANDecoder(widths), (1, 8, 8, 4), (64, 64, 3))
    assert shape == (1, 64, 64, 128)
    blocks = 2 * 3 * (128 + 256 + 512 + 512) + 2 * 2 * 512
    shortcuts = 128 + 256
    first, last = 8 * 4 * 512, 9 * 128 * 3 + 3
    assert count(params) + blocks + shortcuts + first + last == 49_490_179


# --- Shapes ---------------------------------------------------------------------------------------


def check_inverted(name: str, heights: Any) -> None:
    """Images of these heights, widths of 264 less that, grey and colour in turn."""
    encoder, decoder = ENCODERS[name](), DECODERS[name]
    coarsest = halvings((8, 8), HALVINGS[name])[0]
    _, decoders = shapes_of(decoder, (1, *coarsest, FEATURES[name]), (8, 8, 1))
    params = {colours: (shapes_of(encoder, (1, 8, 8, colours))[1], decoders) for colours in (1, 3)}

    def both(params, x, image):
        features: Any = encoder.apply({"params": params[0]}, x)
        return features, decoder.apply({"params": params[1]}, features, image)

    for height in heights:
        image = (height, 264 - height, 1 + 2 * (height % 2))
        x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
        features, decoded = jax.eval_shape(partial(both, image=image), params[image[2]], x)
        sizes = image[:2]
        for _ in range(HALVINGS[name]):
            sizes = [-(-size // 2) for size in sizes]
        assert features.shape == (1, *sizes, FEATURES[name])
        assert decoded.shape[:3] == (1, *image[:2])


@pytest.mark.others_slow
@networks
def test_decoders_invert_the_encoders_shapes(name):
    """Heights and widths that are odd, even, and of remainders at each of the halvings."""
    check_inverted(name, (*range(8, 14), 79, 96))


@pytest.mark.slow
@networks
def test_decoders_invert_the_encoders_shapes_at_every_size(name):
    """From 8 to 256 pixels, each as height or as width."""
    check_inverted(name, range(8, 133))


@networks
def test_outputs_and_latents_of_every_form(name):
    """A map, its positions as a set, a vector; the decoder takes each, by position if it can."""
    image = (12, 9, 3)
    map_shape, _ = shapes_of(ENCODERS[name](), (2, *image))
    _, height, width, features = map_shape
    positions = height * width
    if name != "vqgan":  # which makes maps alone
        tokens, _ = shapes_of(ENCODERS[name](output="tokens"), (2, *image))
        assert tokens == (2, positions, features)
        vector, _ = shapes_of(ENCODERS[name](output="vector"), (2, *image))
        assert vector == (2, positions * features if name == "vgg" else features)
    outputs = DECODERS[name]
    for event in [(5,), (3, 2), (positions, 2), (height, width, 2), (1, 1, 4)]:
        shape, params = shapes_of(outputs, (2, *event), image)
        assert shape[:3] == (2, *image[:2])
        local = event[:-1] in ((positions,), (height, width))
        assert ("pointwise" in params) == local
        assert ("dense" in params) != local


def test_halvings_end_at_one_pixel():
    assert halvings((8, 5, 3), 5) == [(1, 1), (1, 1), (1, 1), (2, 2), (4, 3), (8, 5)]


# --- Layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel_size", "stride"), [((3, 3), 1), ((1, 5), 1), ((2, 4), 2)])
@pytest.mark.parametrize("branch", ["cpu", "default"])
def test_depthwise_conv_is_the_librarys_and_scipys(branch, kernel_size, stride, monkeypatch):
    """Value and gradients against XLA's grouped convolution, feature by feature against SciPy."""
    if branch == "default":
        take = lambda *operands, cpu, default: default(*operands)  # noqa: E731
        monkeypatch.setattr(lax, "platform_dependent", take)
    generator = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = generator.normal(size=(2, 5, 6, 3))
        kernel = generator.normal(size=(*kernel_size, 1, 3))
        y = generator.normal(size=(2, -(-5 // stride), 6 // stride, 3))

        def library(x, kernel):
            return lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=3,
            )

        @jax.jit
        def both(x, kernel, y):
            results = []
            for function in (partial(conv, stride=stride), library):
                value, pull_back = jax.vjp(function, x, kernel)
                results.append((value, *pull_back(y)))
            return results

        ours, librarys = both(x, kernel, y)
        for mine, theirs in zip(ours, librarys, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)
        for feature in range(3 if stride == 1 else 0):
            expected = signal.correlate2d(x[0, :, :, feature], kernel[:, :, 0, feature], "same")
            np.testing.assert_allclose(ours[0][0, :, :, feature], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (5, 6), (8, 7)])
@pytest.mark.parametrize("window", [2, 3])
def test_max_pool_is_the_librarys(size, window):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32) - 5
    expected = lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, 2, 2, 1), "SAME")
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), window), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (5, 6), (8, 7)])
def test_upsample_is_scipys_nearest_neighbour(size):
    half = [-(-n // 2) for n in size]
    x = np.random.default_rng(0).normal(size=(2, *half, 3)).astype(np.float32)
    expected = ndimage.zoom(x, (1, 2, 2, 1), order=0, grid_mode=True, mode="grid-constant")
    np.testing.assert_array_equal(upsample(jnp.asarray(x), size), expected[:, : size[0], : size[1]])


@pytest.mark.parametrize(("features", "group"), [(32, 16), (24, 24), (8, 8)])
def test_group_norm_is_of_one_example_and_its_groups(features, group):
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return group_norm(x)

    x = np.random.default_rng(0).normal(3, 2, size=(3, 2, 2, features)).astype(np.float32)
    normalized, _ = Norm().init_with_output(jax.random.key(0), x)
    grouped = x.reshape(3, 4, -1, group)
    mean, std = grouped.mean((1, 3), keepdims=True), grouped.std((1, 3), keepdims=True)
    expected = ((grouped - mean) / std).reshape(x.shape)
    np.testing.assert_allclose(normalized, expected, rtol=1e-3, atol=1e-4)


def test_self_attention_is_numpys():
    """x + W softmax(q k' / sqrt d) v over all positions, of the normalized x; in float64."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 2, 3, 4))
    with jax.enable_x64(True):
        module = SelfAttention(num_heads=2)
        made: Any = module.init(jax.random.key(0), x)
        variables = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), made)
        found = np.asarray(module.apply(variables, x))
    params = variables["params"]
    norm = params["GroupNorm_0"]
    flat = x.reshape(2, 6, 4)
    mean, variance = flat.mean((1, 2), keepdims=True), flat.var((1, 2), keepdims=True)
    h = (flat - mean) / np.sqrt(variance + 1e-6) * norm["scale"] + norm["bias"]
    q, k, v = np.split(h @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, -1)
    attended = np.zeros_like(flat)
    for head in (slice(2), slice(2, 4)):
        scores = q[..., head] @ k[..., head].swapaxes(1, 2) / np.sqrt(2)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        attended[..., head] = weights @ v[..., head]
    expected = flat + attended @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(found, expected.reshape(x.shape), rtol=1e-6)


# --- Models ---------------------------------------------------------------------------------------

IMAGE = (10, 9, 3)


def pictures(count: int) -> jax.Array:
    """Smooth coloured pictures with values in [0, 1]."""
    noise = np.random.default_rng(0).normal(size=(count, *IMAGE))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    return jnp.asarray(0.5 + 0.2 * smooth / smooth.std(), jnp.float32).clip(0, 1)


def model_of(encoder: str, decoder: str, form: str) -> vj.VAE:
    made = ENCODERS[encoder](output={"vector": "map"}.get(form, form))
    features, _ = shapes_of(made, (1, *IMAGE))
    shape = 5 if form == "vector" else (*features[1:-1], 2)
    return vj.VAE(
        encoder=made,
        posterior=vj.DiagonalGaussian(shape),
        prior=vj.StandardNormal(shape),
        decoder=DECODERS[decoder],
        likelihood=vj.Bernoulli(),
        image_shape=IMAGE,
    )


@pytest.mark.parametrize(
    ("encoder", "decoder", "form"),
    [
        ("vgg", "vgg", "map"),
        pytest.param("resnet", "bottlenecks", "vector", marks=pytest.mark.slow),
        pytest.param("bottlenecks", "resnet", "tokens", marks=pytest.mark.slow),
        pytest.param("xception", "xception", "tokens", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_model_starts_near_chance_and_learns(encoder, decoder, form):
    """At the start each pixel costs about ln 2; some steps of gradient descent lower the loss."""
    model, x = model_of(encoder, decoder, form), pictures(8)
    keys = jax.random.split(threefry.key(1), len(x))
    objective = vj.ELBO()

    def loss(params):
        terms: Any = model.apply({"params": params}, x, keys)
        value, metrics = objective(terms, jnp.asarray(0), tiny.model())
        return value, metrics

    @jax.jit
    def train(key):
        params: Any = model.init(key, x, keys)["params"]

        def step(params, _):
            (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))
            moved = jax.tree.map(lambda p, g: p - 0.1 * g / norm, params, gradients)
            still = jax.tree.map(lambda g: (g == 0).all(), gradients)
            return moved, (metrics, still)

        return lax.scan(step, params, None, length=8)[1]

    metrics, still = train(threefry.key(0))
    chance = math.prod(IMAGE) * math.log(2)
    assert 0.7 * chance < metrics["distortion"][0] < 2 * chance
    assert metrics["kl"][0] < chance
    assert metrics["neg_elbo"][-1] < metrics["neg_elbo"][0]
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(still)[0]
        if leaf.all()
    ]
    assert not dead


@pytest.mark.others_slow
@networks
def test_an_image_has_no_neighbours(name):
    """Features of an image alone and beside others are the same: no statistics over the batch."""
    encoder, x = ENCODERS[name](), pictures(3)
    features, variables = jax.jit(encoder.init_with_output)(threefry.key(0), x)
    alone = jax.jit(encoder.apply)(variables, x[1:2])
    np.testing.assert_allclose(alone[0], features[1], rtol=1e-4, atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 0.01
