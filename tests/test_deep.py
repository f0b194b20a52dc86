"""The deep hierarchy against NumPy in float64, block by block; its scans, priors and layers."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from noise import assert_standard_normal
from perturbation import normals
from running import ROOT
from scipy import special, stats
from test_hierarchical import dense, keys
from test_ladder import kl_normal

from vae_jax import Bernoulli, Data, DeepVAE, VaeJaxError
from vae_jax.experiment import read_module
from vae_jax.networks import layers
from vae_jax.networks.residual import Bottleneck, Gated
from vae_jax.networks.top_down import BottomUp, TopDown, TopDownBlock, scale_of

B, K, DRAWS = 2, 400, 400
CHOICES: dict[str, dict[str, Any]] = {
    "vdvae": {},
    "nvae": {"relative": True, "net": partial(Bottleneck, excite=True)},
    "efficient": {"smooth": True, "net": partial(Bottleneck, ratio=1.0, activation=jax.nn.silu)},
    "lvae": {"prior_features": False, "net": Gated, "residuals": 2},
}
# Layers, choices, image shape, blocks on the way up and down at each level, the image's first.
CASES: dict[str, tuple[str, tuple[int, int, int], tuple[int, ...], tuple[int, ...]]] = {
    "3 layers": ("vdvae", (4, 4, 1), (1, 1, 1), (1, 1, 1)),
    "5 layers, odd, a level passed over": ("vdvae", (9, 5, 1), (1, 2, 0, 1), (2, 2, 0, 1)),
    "3 layers, none at the image's level": ("vdvae", (5, 4, 1), (0, 1, 1), (0, 2, 1)),
    "3 layers of the NVAE": ("nvae", (3, 5, 1), (2, 0), (2, 1)),
    "3 layers of the Efficient-VDVAE": ("efficient", (3, 5, 1), (2, 1), (1, 2)),
    "5 layers of the LVAE": ("lvae", (6, 6, 1), (1, 1), (2, 3)),
}
WIDTH = (6, 4, 4, 8)


def make(case: str) -> DeepVAE:
    choices, shape, up, down = CASES[case]
    own = CHOICES[choices]
    net = own.get("net", Bottleneck)
    return DeepVAE(
        encoder=BottomUp(up, WIDTH[: len(up)], net),
        decoder=TopDown(down, WIDTH[: len(up)], 2, partial(TopDownBlock, **own)),
        likelihood=Bernoulli(),
        image_shape=shape,
    )


def images(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (B, *shape)).astype(np.float32)


# The model in NumPy


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def silu(x):
    return x * special.expit(x)


def conv(parameters, x):
    """A 3x3 convolution as a loop over pixels, or a 1x1 one, whichever the kernel is."""
    kernel = parameters["kernel"]
    if kernel.ndim == 2:
        return dense(parameters, x)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    y = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            patch = padded[:, i : i + 3, j : j + 3]
            y[:, i, j] = np.einsum("nhwi,hwio->no", patch, kernel)
    return y + parameters["bias"]


def residual(parameters, x, choices):
    if choices == "lvae":
        r = conv(parameters["second"], elu(conv(parameters["first"], elu(x))))
        return elu(dense(parameters["content"], r)) * special.expit(dense(parameters["gate"], r))
    act = silu if choices == "efficient" else gelu
    r = dense(parameters["in"], act(x))
    r = conv(parameters["second"], act(conv(parameters["first"], act(r))))
    r = dense(parameters["out"], act(r))
    if choices == "nvae":
        hidden = np.maximum(dense(parameters["excite"]["squeeze"], r.mean((1, 2))), 0)
        r = r * special.expit(dense(parameters["excite"]["excite"], hidden))[:, None, None]
    return r


def pooled(x):
    """Means over squares, of the pixels that there are."""
    rows, columns = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    cells = [
        [x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for j in range(columns)]
        for i in range(rows)
    ]
    return np.stack([np.stack(row, 1) for row in cells], 1)


def way_up(params, x, choices, up):
    h, found = (conv(params["in"], x) if up[0] else x), []
    for level, count in enumerate(up):
        if f"halve_{level}" in params:
            found.append(h)
            own = params[f"halve_{level}"]
            h = layers.conv(jnp.float32(h), jnp.float32(own["kernel"]), 2)
            h = np.asarray(h, np.float64) + own["bias"]
            continue
        if f"width_{level}" in params:
            h = dense(params[f"width_{level}"], h)
        for i in range(count):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], params[f"blocks_{level}"])
            h = h + residual(own, h, choices)
        found.append(h)
        if level + 1 < len(up):
            if count:
                h = h + residual(params[f"end_{level}"], h, choices)
            h = pooled(h)
    return found


def way_down(params, activations, choices, down, number, z_of):
    """(loc, scale) of p and q of each layer, z_L first, their z, and the last state.

    `z_of` is a function of a layer's number from above, of p and of q.
    """
    h, found, zs, above = None, [], [], 0
    for level in reversed(range(len(down))):
        if not down[level]:
            continue
        start = params[f"start_{level}"]
        if h is not None:
            rows, columns = (np.arange(n) >> (above - level) for n in start.shape[:2])
            h = h[:, rows][:, :, columns]
            if f"width_{level}" in params:
                h = dense(params[f"width_{level}"], h)
        h, above = start if h is None else h + start, level
        h = np.broadcast_to(h, (number, *h.shape[-3:]))
        for i in range(down[level]):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], params[f"blocks_{level}"])
            scale = np.exp if choices != "efficient" else lambda s: np.log1p(2**s) / np.log(2)
            of_p, q = residual(own["prior"], h, choices), None
            p = of_p[..., :2], scale(of_p[..., 2:4])
            if activations is not None:
                both = np.concatenate([h, activations[level]], -1)
                of_q = residual(own["posterior"], both, choices)
                q = of_q[..., :2], scale(of_q[..., 2:])
                if choices == "nvae":
                    q = p[0] + q[0], p[1] * q[1]
            z = z_of(len(zs), p, q)
            found.append((p, q))
            zs.append(z)
            h = h + of_p[..., 4:] if choices != "lvae" else h
            h = h + dense(own["project"], z)
            for one in range(2 if choices == "lvae" else 1):
                h = h + residual(own[f"residual_{one}"], h, choices)
    if not down[0]:  # the package's transposed convolution, itself tested elsewhere
        assert activations is not None
        own, size = params["double_0"], activations[0].shape[1:3]
        doubled = layers.conv_transpose(jnp.float32(gelu(h)), jnp.float32(own["kernel"]), 2, size)
        h = np.asarray(doubled, np.float64) + own["bias"]
    return found, zs, h * params["gain"] + params["bias"]


@pytest.mark.others_slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * (CASES[case][0] in ("efficient", "lvae")))
        for case in CASES
    ],
)
def test_every_density_kl_and_sample_in_numpy(case: str) -> None:
    """Up, down, and all densities written out.

    With them z is mean plus scale times noise: a normal for each sample, example and component.
    """
    choices, shape, up, down = CASES[case]
    model, x = make(case), images(shape)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, keys(0, B))["params"]
    params = jax.tree.map(lambda leaf: leaf / 2, normals(shapes))
    apply = jax.jit(partial(model.apply, {"params": params}), static_argnums=2)
    terms: Any = apply(x, keys(1, B), K)
    assert len(terms.z) == len(model.posteriors) == sum(down)
    assert [z.shape[2:] for z in terms.z] == [q.shape for q in model.posteriors]

    params = jax.tree.map(np.float64, params)
    zs = [np.asarray(z, np.float64).reshape(K * B, *z.shape[2:]) for z in terms.z[::-1]]
    activations = [np.tile(a, (K, 1, 1, 1)) for a in way_up(params["encoder"], x, choices, up)]
    decoder = params["decoder"]
    found, _, h = way_down(decoder, activations, choices, down, K * B, lambda i, p, q: zs[i])
    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    noise = [(z - q[0]) / q[1] for (_, q), z in zip(found, zs, strict=True)]
    assert_standard_normal(np.concatenate([each.reshape(K, -1) for each in noise], 1))
    for layer, ((p, q), z) in enumerate(zip(found[::-1], zs[::-1], strict=True)):
        log_p, log_q = (stats.norm.logpdf(z, *each).sum((1, 2, 3)) for each in (p, q))
        close(terms.log_pz[layer].reshape(-1), log_p)
        close(terms.log_qz[layer].reshape(-1), log_q)
        kl = kl_normal(*([a.reshape(K * B, -1) for a in each] for each in (q, p)))
        close(terms.kl[layer], kl.reshape(K, B).mean(0))
    logits = dense(params["likelihood"]["logits"], h)
    log_px = np.tile(x, (K, 1, 1, 1)) * logits - np.logaddexp(0, logits)
    close(terms.log_px.reshape(-1), log_px.sum((1, 2, 3)))


@pytest.fixture(scope="module")
def five() -> tuple[DeepVAE, Any, Any]:
    """The model of five layers, its parameters, and these in float64."""
    model = make("5 layers, odd, a level passed over")
    x = images(model.image_shape)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, keys(0, B))["params"]
    params = jax.tree.map(lambda leaf: leaf / 2, normals(shapes))
    return model, params, jax.tree.map(np.float64, params)


@pytest.mark.slow
def test_draws_from_the_prior_at_any_temperature_and_decoding(five: Any) -> None:
    """Against NumPy: z of each layer is its mean plus noise, of the scale that is asked for.

    It is decoded with all layers.
    """
    model, params, exact = five
    _, _, _, down = CASES["5 layers, odd, a level passed over"]
    temperatures = np.array([0.3, 0.0, 1.0, 2.0, 0.7])

    @jax.jit
    def drawn_by_model(keys, temperatures):
        zs, px = model.apply({"params": params}, keys, None, temperatures, method="sample")
        x = jnp.ones((DRAWS, *model.image_shape))
        doubled = jax.tree.map(lambda z: jnp.stack([z, z]), zs)
        return zs, px, model.apply({"params": params}, x, doubled, method="log_densities")

    zs, px, (log_px, log_pz) = drawn_by_model(keys(3, DRAWS), temperatures)
    given = [np.asarray(z, np.float64) for z in zs[::-1]]
    found, _, h = way_down(
        exact["decoder"], None, "vdvae", down, DRAWS, lambda number, p, q: given[number]
    )
    noise = []
    for temperature, ((loc, scale), _), z in zip(temperatures[::-1], found, given, strict=True):
        if temperature:
            noise.append((z - loc) / (temperature * scale))
        else:
            np.testing.assert_allclose(z, loc, rtol=1e-4, atol=1e-4)
    assert_standard_normal(np.concatenate([each.reshape(DRAWS, -1) for each in noise], 1))
    logits = dense(exact["likelihood"]["logits"], h)
    np.testing.assert_allclose(px.mean, special.expit(logits), rtol=1e-3, atol=1e-5)
    pairs = zip(found, given, strict=True)
    by_hand = sum(stats.norm.logpdf(z, *p).sum((1, 2, 3)) for (p, _), z in pairs)
    np.testing.assert_allclose(log_pz, np.stack([by_hand, by_hand]), rtol=1e-4)
    ones = -np.logaddexp(0, -logits).sum((1, 2, 3))
    np.testing.assert_allclose(log_px, np.stack([ones, ones]), rtol=1e-4)


@pytest.mark.slow
def test_posterior_means_and_what_the_top_layers_say(five: Any) -> None:
    """Against NumPy: `infer`, `encode`, `decode_top` of two layers, `top`."""
    model, params, exact = five
    _, _, up, down = CASES["5 layers, odd, a level passed over"]
    x = images(model.image_shape)
    bound = model.bind({"params": params})

    @jax.jit
    def means(x):
        zs = tuple(q.mean for q in bound.infer(x))
        return zs, bound.encode(x), bound.decode_top(zs[-2:]), bound.top(), bound.decode_top(zs)

    zs, q, px, top, whole = means(x)
    activations = way_up(exact["encoder"], x, "vdvae", up)
    found, expected, _ = way_down(
        exact["decoder"], activations, "vdvae", down, B, lambda _, p, q: q[0]
    )
    for z, by_hand in zip(zs[::-1], expected, strict=True):
        np.testing.assert_allclose(z, by_hand, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(q.scale, found[-1][1][1], rtol=1e-4)
    np.testing.assert_allclose(top.loc, found[0][0][0][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(top.scale, found[0][0][1][0], rtol=1e-4)
    _, _, h = way_down(
        exact["decoder"], None, "vdvae", down, B, lambda i, p, q: expected[i] if i < 2 else p[0]
    )
    probabilities = special.expit(dense(exact["likelihood"]["logits"], h))
    np.testing.assert_allclose(px.mean, probabilities, rtol=1e-3, atol=1e-5)
    assert np.abs(whole.mean - px.mean).max() > 0.001


def test_the_smoothed_scale() -> None:
    """softplus(beta s) / beta with beta = ln 2: one at 0, a gradient of at most one."""
    s = np.linspace(-40, 40, 2001)
    smoothed = jax.vmap(jax.value_and_grad(partial(scale_of, smooth=True)))(jnp.float32(s))
    np.testing.assert_allclose(smoothed[0], np.logaddexp2(0, s), rtol=1e-5)
    np.testing.assert_allclose(smoothed[1], special.expit(np.log(2) * s), rtol=1e-4)
    assert scale_of(jnp.zeros(()), True) == scale_of(jnp.zeros(()), False) == 1
    for smooth in (False, True):
        scale, slope = jax.vmap(jax.value_and_grad(partial(scale_of, smooth=smooth)))(
            jnp.array([-1e5, -1e3, -1e2, 1e2, 1e3, 1e5])
        )
        assert np.isfinite([scale, slope]).all()
        assert (scale > 0).all()
        assert (slope >= 0).all()


@pytest.mark.parametrize(
    ("name", "published", "exact", "layers"),
    [
        ("vdvae_cifar10", 39e6, 39_145_700, 43),
        pytest.param("vdvae_imagenet32", 119e6, 119_280_868, 78, marks=pytest.mark.slow),
        pytest.param("vdvae_imagenet64", 125e6, 125_005_860, 75, marks=pytest.mark.slow),
    ],
)
def test_papers_sizes(name: str, published: float, exact: int, layers: int) -> None:
    """github.com/openai/vdvae, README.md, in millions; exactly, the sum over its convolutions."""
    side = 64 if name.endswith("64") else 32
    model = getattr(DeepVAE, name)().clone(image_shape=(side, side, 3))
    x = jnp.zeros((1, side, side, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, keys(0, 1))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count, -6) == published
    assert count == exact
    assert len(model.posteriors) == layers


@pytest.mark.others_slow
@pytest.mark.parametrize(
    ("data", "side", "layers", "batch", "published"),
    [
        ("cifar10", 32, 43, 32, "2.87 bits/dim"),
        ("imagenet32", 32, 78, 256, "3.80 bits/dim"),
        ("imagenet64", 64, 75, 128, "3.52 bits/dim"),
        ("cifar10_jpeg", 32, 43, 32, None),
        ("emoji_styles", 64, 75, 128, None),  # as ImageNet's of this size
    ],
)
def test_papers_sizes_for_each_data_set(
    data: str, side: int, layers: int, batch: int, published: str | None, monkeypatch: Any
) -> None:
    """`vae-jax train experiments/vdvae.py --size paper --data ...`, without the data."""
    module: Any = read_module(ROOT / "experiments" / "vdvae.py")[1]
    names = list[str]()

    def empty(name: str) -> Data:
        names.append(name)
        pictures = np.zeros((2, side, side, 3), np.uint8)
        return Data.from_arrays(name, pictures, protocol="grey")

    monkeypatch.setattr(module, "load", empty)
    made = module.experiment(data=data, size="paper")
    assert len(made.model.posteriors) == layers
    assert made.batch_size == batch
    assert names == [f"tfds:downsampled_imagenet/{side}x{side}" if "imagenet" in data else data]
    assert module.published(recipe="vdvae", layers=0, data=data, size="paper") == published
    assert module.published(recipe="vdvae", layers=0, data=data, size="tiny") is None
    wider = module.experiment(data=data, size="paper", width=32).model
    assert {wider.encoder.width, wider.decoder.width} == {32}
    with pytest.raises(VaeJaxError, match="--width is for --recipe vdvae"):
        module.experiment(data=data, width=32)


def program_of(layers: int) -> Any:
    """The gradient of the bound with a third of the layers at each of three resolutions, lowered.

    Its text is what the compiler has to read.
    """
    model = make("3 layers").clone(decoder=TopDown([layers // 3] * 3, WIDTH[:3], 2))
    x = images(model.image_shape)

    def bound(variables: Any) -> Any:
        terms: Any = model.apply(variables, x, keys(0, B))
        return (terms.log_px + (terms.log_pz - terms.log_qz).sum(0)).mean()

    shapes = jax.eval_shape(model.init, jax.random.key(0), x, keys(0, B))
    return jax.jit(jax.grad(bound)).lower(shapes)


@pytest.mark.slow
def test_programs_grow_with_resolutions_and_not_with_layers() -> None:
    few, many = (len(program_of(number).as_text().splitlines()) for number in (15, 45))
    assert many < 1.2 * few


@pytest.mark.slow
def test_compile_time_grows_with_resolutions_and_not_with_layers() -> None:
    """Seconds of all cores, which other processes change less than those of the clock."""
    program_of(3).compile()
    seconds = []
    for number in (15, 45):
        program = program_of(number)
        start = time.process_time()
        program.compile()
        seconds.append(time.process_time() - start)
    assert seconds[1] < 3 * seconds[0]


def test_ways_that_do_not_meet_are_refused() -> None:
    model = make("3 layers")
    for decoder, match in (
        (TopDown((1, 1), 4, 2), "3 levels and the decoder 2"),
        (TopDown((0, 0, 0), 4, 2), "no block"),
    ):
        x = images(model.image_shape)
        with pytest.raises(VaeJaxError, match=match):
            jax.eval_shape(model.clone(decoder=decoder).init, jax.random.key(0), x, keys(0, B))
