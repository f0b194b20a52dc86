"""Pixels one after the other: masses by enumeration, all at once against place by place."""

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from gradients import one_batch
from perturbation import drawn
from running import on_devices
from scipy import stats

from vae_jax import (
    ELBO,
    MLP,
    AutoregressivePixels,
    Bernoulli,
    ConvDecoder,
    DiscretizedLogistic,
    Gaussian,
    GPTDecoder,
    MixtureOfLogistics,
    OptimalGaussian,
    VaeJaxError,
    evaluate,
    generate,
    train,
)

SMALL: Any = {"width": 8, "num_layers": 2, "num_heads": 2}
N, F = 3, 4
every_pixel = pytest.mark.parametrize(
    "pixel",
    [Bernoulli, pytest.param(MixtureOfLogistics, marks=pytest.mark.slow)],
    ids=lambda cls: cls.__name__,
)
sample = jax.jit(lambda p, key: p.sample(key))
log_prob = jax.jit(lambda p, x: p.log_prob(x))


def conditional(pixel: Any, image_shape: tuple[int, ...], spatial: bool = True) -> Any:
    """p(x|z) for N features that differ, by weights that all matter."""
    likelihood = AutoregressivePixels(pixel(), **SMALL)
    shape = (N, *image_shape[:2], F) if spatial else (N, F)
    features = jnp.asarray(3 * np.random.default_rng(0).normal(size=shape), jnp.float32)
    variables = drawn(likelihood, features, image_shape=image_shape)
    return likelihood.apply(variables, features, image_shape)


@jax.jit
def features_of_pixels(p: Any, x: jax.Array) -> Any:
    """Of the network in one pass, written out: `[N, T, width]` for images `[N, H, W, C]`."""
    flat = x.reshape(len(x), -1, x.shape[-1])
    before = jnp.concatenate([jnp.zeros_like(flat[:, :1]), flat[:, :-1]], 1)
    features = jnp.broadcast_to(p.features, (*flat.shape[:2], F))
    inputs = jnp.concatenate([before, features], -1)
    return p.network.apply(p.variables.value["network"], inputs)[0]


def one_pixel(p: Any, features: Any) -> Any:
    """The distribution of a pixel, `[N, 1, 1, C]`, given its features `[N, width]`."""
    shape = (1, 1, p.image_shape[-1])
    return p.pixel.apply(p.variables.value["pixel"], features[:, None, None], shape)


@jax.jit
def log_prob_of_pixel(p: Any, features: Any, pixel: Any) -> Any:
    return one_pixel(p, features).log_prob(pixel[:, None, None])


@jax.jit
def mean_of_pixel(p: Any, features: Any) -> Any:
    return one_pixel(p, features).mean[:, 0, 0]


# --- The density --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["map", "vector"])
def binary(request) -> Any:
    """p(x|z) of images of 2x3 binary pixels."""
    return conditional(Bernoulli, (2, 3, 1), request.param)


IMAGES = np.array(list(itertools.product((0, 1), repeat=6)), np.float32).reshape(-1, 1, 2, 3, 1)


def every_mass(p: Any) -> np.ndarray:
    """Of the 64 images, `[64, N]`."""
    return np.exp(np.asarray(log_prob(p, IMAGES), np.float64))


def test_masses_sum_to_one_and_pixels_depend_on_each_other(binary):
    """Over all images; and the joint is far from the product of its margins."""
    mass = every_mass(binary)
    np.testing.assert_allclose(mass.sum(0), 1, atol=1e-5)
    bits = IMAGES.reshape(64, 6, 1)
    margin = (mass[:, None] * bits).sum(0)
    product = np.where(bits == 1, margin, 1 - margin).prod(1)
    assert (np.abs(mass - product).sum(0) > 0.01).all()
    assert np.abs(mass[:, 0] - mass[:, 1]).sum() > 0.1, "z matters"


def test_samples_have_the_enumerated_frequencies(binary):
    """Chi-squared over the 64 images, at a significance of 1e-4 for each z."""
    x = np.asarray(jax.jit(lambda p, key: p.sample(key, (4000,)))(binary, jax.random.key(1)))
    assert x.shape == (4000, N, 2, 3, 1)
    places = (x.reshape(4000, N, 6) @ 2 ** np.arange(6)[::-1]).astype(int)
    for z, mass in enumerate(every_mass(binary).T):
        observed, expected = np.bincount(places[:, z], minlength=64), 4000 * mass / mass.sum()
        order = np.argsort(expected)
        groups = np.minimum(np.cumsum(expected[order]) // 20, 49).astype(int)
        f_obs, f_exp = (np.bincount(groups, n[order]) for n in (observed, expected))
        used = f_exp > 0
        assert stats.chisquare(f_obs[used], f_exp[used]).pvalue > 1e-4


@every_pixel
def test_one_pass_is_the_sum_of_the_conditionals_step_by_step(pixel):
    """The network is shown one pixel at a time; each pixel's ln p(x_t | x_<t, z) is added up."""
    shape = (2, 3, 1 if pixel is Bernoulli else 3)
    p = conditional(pixel, shape)
    x = np.asarray(sample(p, jax.random.key(2)))

    @jax.jit
    def step(before, features, cache, place):
        inputs = jnp.concatenate([before, features], -1)[:, None]
        hidden, cache = p.network.apply(p.variables.value["network"], inputs, cache, place)
        return hidden[:, 0], cache

    cache, before, total = p.network.empty_cache(N), np.zeros_like(x[:, 0, 0]), np.zeros(N)
    for place, (row, column) in enumerate(np.ndindex(2, 3)):
        hidden, cache = step(before, p.features[:, place], cache, place)
        before = x[:, row, column]
        total += log_prob_of_pixel(p, hidden, before)
    np.testing.assert_allclose(log_prob(p, x), total, rtol=1e-4, atol=1e-4)


@every_pixel
def test_pixels_in_turn_with_a_cache_are_those_without_one(pixel):
    """The whole network runs again for each pixel, which is its mean, so nothing is random."""
    shape = (2, 3, 1 if pixel is Bernoulli else 3)
    p = conditional(pixel, shape, spatial=False)
    x = np.zeros((N, *shape), np.float32)
    for place, (row, column) in enumerate(np.ndindex(2, 3)):
        x[:, row, column] = mean_of_pixel(p, features_of_pixels(p, x)[:, place])
    np.testing.assert_allclose(jax.jit(lambda p: p.mean)(p), x, atol=1e-5)
    assert np.ptp(x, 0).max() > 0.1


@every_pixel
def test_drawn_pixels_have_their_conditional_distribution(pixel):
    """The distribution of pixels redrawn given those before, by the network in one pass.

    Means of ln p(x_t | x_<t, z), of x_t and of x_t x_t-1, within 5 standard errors of 3000 images.
    """
    p = conditional(pixel, (2, 3, 1 if pixel is Bernoulli else 3), spatial=False)
    p = dataclasses.replace(p, features=jnp.tile(p.features, (1000, 1, 1)))
    x = np.asarray(sample(p, jax.random.split(jax.random.key(3), len(p.features))))
    hidden, pixels = features_of_pixels(p, x), x.reshape(len(x), 6, -1)
    for place in range(6):
        features, before = hidden[:, place], pixels[:, place - 1] if place else 0

        def statistics(pixel, features=features, before=before):
            log_p = log_prob_of_pixel(p, features, pixel)
            return np.column_stack([log_p, pixel, pixel * before]).astype(np.float64)

        redrawn = np.asarray(sample(one_pixel(p, features), jax.random.key(10 + place)))[:, 0, 0]
        difference = statistics(pixels[:, place]) - statistics(redrawn)
        error = difference.std(0) / np.sqrt(len(x))
        assert (np.abs(difference.mean(0)) <= 5 * error).all()


def test_a_pixel_depends_on_those_before_alone():
    """Perturbing pixel t leaves every ln p(x_s | ...) with s < t as it is, and moves the others."""
    p = conditional(partial(Gaussian, scale=1.0), (2, 3, 2))
    x = np.random.default_rng(4).normal(size=(N, 2, 3, 2)).astype(np.float32)

    def log_conditionals(x):
        hidden = features_of_pixels(p, x).reshape(N, 2, 3, -1)
        pixels: Any = p.pixel.apply(p.variables.value["pixel"], hidden, (2, 3, 2))
        return np.asarray(pixels.components.log_prob(x)).sum(-1).reshape(N, 6)

    before, total = log_conditionals(x), np.asarray(log_prob(p, x))
    np.testing.assert_allclose(before.sum(1), total, rtol=1e-5)
    for place in range(6):
        moved = x.copy().reshape(N, 6, 2)
        moved[:, place] += 1
        after = log_conditionals(moved.reshape(x.shape))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert (np.abs(after[:, place:] - before[:, place:]) > 1e-4).all()


def test_z_reaches_every_pixel_through_a_map_from_its_own_place_on():
    """A map's features at a place reach that pixel and later ones, as they enter the sequence."""
    p = conditional(partial(Gaussian, scale=1.0), (2, 3, 1))
    x = np.random.default_rng(7).normal(size=(N, 2, 3, 1)).astype(np.float32)

    def features_of_first_image(features):
        return features_of_pixels(dataclasses.replace(p, features=features), x)[0, :, 0]

    jacobian = np.abs(jax.jacobian(features_of_first_image)(p.features)[:, 0]).max(-1)
    np.testing.assert_array_equal(jacobian > 1e-6, np.tri(6) > 0)


def test_batches_broadcast_as_a_likelihoods_do():
    """Images `[B]` under p(x|z) of batch `[K, B]`, as a VAE asks, and draws with a key each."""
    p = conditional(DiscretizedLogistic, (2, 3, 3), spatial=False)
    x = np.random.default_rng(5).integers(256, size=(N, 2, 3, 3)).astype(np.float32) / 255
    stacked = dataclasses.replace(p, features=jnp.stack([p.features, p.features[::-1]]))
    log_p, alone = log_prob(stacked, x), log_prob(p, x)
    np.testing.assert_allclose(log_p[0], alone, rtol=1e-5)
    np.testing.assert_allclose(log_p[1, ::-1], log_prob(p, x[::-1]), rtol=1e-5)
    assert np.ptp(alone) > 1
    keys = jax.random.split(jax.random.key(6), N)
    swapped = dataclasses.replace(p, features=p.features[::-1])
    np.testing.assert_allclose(sample(p, keys)[::-1], sample(swapped, keys[::-1]), atol=1e-5)
    draws = jax.eval_shape(lambda p: p.sample(jnp.stack([keys, keys]), (4,)), stacked)
    assert draws.shape == (4, 2, N, 2, 3, 3)


# --- In a model ---------------------------------------------------------------------------------

LIKELIHOOD = AutoregressivePixels(Bernoulli(), width=8, num_layers=1, num_heads=2)
MODEL = tiny.model().clone(likelihood=LIKELIHOOD)


@pytest.mark.slow
def test_gradients_on_several_devices_and_in_bfloat16():
    """Two devices as one; bfloat16 within what 8 bits of mantissa leave, the network's too."""
    experiment = dataclasses.replace(tiny.experiment(), model=MODEL, objective=ELBO(2))
    plain, two = one_batch(experiment, 1, 2)
    (half,) = one_batch(dataclasses.replace(experiment, compute_dtype=jnp.bfloat16), 1)
    for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(plain), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b) + 1e-6
    for rounded, exact in zip(jax.tree.leaves(half), jax.tree.leaves(plain), strict=True):
        assert rounded.dtype == jnp.float32
        assert np.linalg.norm(rounded - exact) <= 0.1 * np.linalg.norm(exact) + 1e-4
    assert half[0] != plain[0]


X, KEYS = (tiny.images(3, 0) > 127).astype(np.float32), jax.random.split(jax.random.key(0), 3)


@pytest.mark.parametrize("decoder", [MLP((6,)), GPTDecoder(4, 2, **SMALL), ConvDecoder((4, 4), 8)])
def test_decoders_of_every_kind_condition_it(decoder):
    """Vector features and maps; traced, not run."""

    def shapes():
        terms, variables = MODEL.clone(decoder=decoder).init_with_output(KEYS[0], X, KEYS, 2)
        return terms.log_px, terms.reconstruction, variables["params"]["likelihood"]

    log_px, reconstruction, params = jax.eval_shape(shapes)
    assert (log_px.shape, reconstruction.shape) == ((2, 3), (2, *X.shape))
    assert params.keys() == {"network", "pixel"}


def test_a_batch_of_samples_is_decoded_as_each_of_them():
    """p(x|z) of `[K, B]` latents keeps one network for all."""

    @jax.jit
    def both():
        terms: Any
        terms, variables = MODEL.init_with_output(KEYS[0], X, KEYS, 2)
        flat: Any = MODEL.apply(variables, (terms.z[0].reshape(6, 2),), method="decode")
        return terms.log_px, flat.log_prob(X[[0, 1, 2, 0, 1, 2]])

    log_px, flat = both()
    np.testing.assert_allclose(log_px.ravel(), flat, rtol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Any:
    """Bars of 4x4, on two devices."""
    experiment = dataclasses.replace(
        tiny.experiment(num_steps=60, checkpoint_every=60),
        model=MODEL,
        optimizer=optax.adam(1e-2),
        data=tiny.data("threshold"),
    )
    with on_devices(2):
        return train(experiment, tmp_path_factory.mktemp("autoregressive") / "run")


@pytest.mark.slow
def test_it_trains_and_is_evaluated(run):
    """Below 0.95 bits a pixel, and better than at the start."""
    losses = [line["loss"] for line in run.folder.read_metrics() if "loss" in line]
    assert losses[-1] < losses[0] - 1
    result = evaluate(run, num_samples=4)
    assert result.bits_per_dim is not None
    assert 0 < result.bits_per_dim[0] < 0.95


@pytest.mark.slow
def test_pictures_are_draws(run):
    """Zeros and ones, of a seed's own; a mean would be between them."""
    first, again, other = (generate.sample(run, 8, seed) for seed in (0, 0, 1))
    assert set(np.unique(first)) == {0.0, 1.0}
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    x, reconstructions = generate.reconstruct(run, "test", 5)
    assert x.shape == reconstructions.shape
    assert set(np.unique(reconstructions)) == {0.0, 1.0}


def test_what_does_not_fit_is_refused():
    """With a sentence, before anything is compiled: a pixel's support is the wrapper's."""
    experiment = tiny.experiment()
    levels = MODEL.clone(likelihood=AutoregressivePixels(DiscretizedLogistic(), **SMALL))
    with pytest.raises(VaeJaxError, match="AutoregressivePixels gives no probability to binary"):
        dataclasses.replace(experiment, model=levels)
    with pytest.raises(VaeJaxError, match="OptimalGaussian looks at all pixels of a batch"):
        dataclasses.replace(
            experiment,
            data=tiny.data("grey"),
            model=MODEL.clone(likelihood=AutoregressivePixels(OptimalGaussian(), **SMALL)),
        )
    with pytest.raises(VaeJaxError, match="3 heads of AutoregressivePixels do not divide"):
        AutoregressivePixels(Bernoulli(), width=8, num_heads=3)
    with pytest.raises(VaeJaxError, match="2x2 pixels, the images 4x4"):
        LIKELIHOOD.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), (4, 4, 1))
