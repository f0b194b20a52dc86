"""Missing pixels given the seen: the linear-Gaussian closed form, models of every kind, masks."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from running import on_devices

import vae_jax as vj
from vae_jax import VaeJaxError
from vae_jax.run import inpainting
from vae_jax.run.inpainting import inpainted
from vae_jax.step import init_state

SHAPE, D = (2, 4, 1), 2
MISSING = np.array([[True, False, False, True], [False, True, False, False]])


@pytest.fixture(scope="module")
def ppca(fit_linear_gaussian: Any) -> Any:
    """The best linear-Gaussian model of correlated images, with the exact posterior."""
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    noise = np.sqrt([4.0, 2.0, 0.35, 0.3, 0.3, 0.3, 0.3, 0.25])
    x = (generator.normal(size=(100, 8)) * noise) @ basis.T + 0.5
    return fit_linear_gaussian(x.reshape(-1, *SHAPE), D)


def divergence(drawn: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """KL(N(m', S') || N(m, S)) in nats, m' and S' of draws `[n, d]`."""
    own, shift = np.cov(drawn.T), drawn.mean(0) - mean
    inverse = np.linalg.inv(covariance)
    _, log_ratio = np.linalg.slogdet(inverse @ own)
    return 0.5 * (np.trace(inverse @ own) + shift @ inverse @ shift - len(mean) - log_ratio)


def off(ppca: Any) -> Any:
    """The model with a posterior of another mean and width than the exact one."""
    params = jax.tree.map(np.float32, ppca.variables["params"])
    params["posterior"]["loc"]["bias"] += 0.3
    params["posterior"]["log_scale"]["bias"] += 0.3
    return {"params": params}


@pytest.mark.parametrize(
    ("posterior", "chain"), [("exact", "Metropolis"), ("off", "Metropolis"), ("off", "always")]
)
def test_draws_have_the_conditional_distribution(
    ppca: Any, posterior: str, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p(x_missing | x_seen) of a normal, by NumPy, within 0.01 nats; 8,000 chains of 80 steps.

    Also with a q(z|x) that is off, unless its proposals are always taken.
    """
    count, hidden = 8000, MISSING.ravel()
    if chain == "always":
        monkeypatch.setattr(inpainting, "has_exact_chain", lambda model: False)
    variables = off(ppca) if posterior == "off" else jax.tree.map(np.float32, ppca.variables)
    image = np.random.default_rng(1).multivariate_normal(ppca.mean, ppca.covariance)
    x = np.where(hidden, np.nan, image).astype(np.float32).reshape(SHAPE)
    keys = jax.random.split(jax.random.key(2), count)
    draw = jax.jit(partial(inpainted, ppca.model), static_argnums=4)
    of_all = np.broadcast_to(x, (count, *SHAPE)), np.broadcast_to(MISSING, (count, 2, 4))
    zs, found = draw(variables, *of_all, keys, 80)
    assert zs[0].shape == (count, D)
    flat = np.float64(found).reshape(count, 8)
    np.testing.assert_array_equal(flat[:, ~hidden], np.tile(x.ravel()[~hidden], (count, 1)))
    s = ppca.covariance
    gain = s[np.ix_(hidden, ~hidden)] @ np.linalg.inv(s[np.ix_(~hidden, ~hidden)])
    mean = ppca.mean[hidden] + gain @ (image[~hidden] - ppca.mean[~hidden])
    covariance = s[np.ix_(hidden, hidden)] - gain @ s[np.ix_(~hidden, hidden)]
    apart = divergence(flat[:, hidden], mean, covariance)
    assert apart < 0.01 if chain == "Metropolis" else apart > 0.02
    if posterior == "exact":
        assert divergence(flat[:, hidden], ppca.mean[hidden], s[np.ix_(hidden, hidden)]) > 0.05


def hierarchy() -> vj.HierarchicalVAE:
    return vj.HierarchicalVAE(
        encoders=(vj.MLP((6,)), vj.MLP((6,))),
        posteriors=(vj.DiagonalGaussian(3), vj.DiagonalGaussian(2)),
        decoders=(vj.MLP((6,)), vj.MLP((6,))),
        conditionals=(vj.DiagonalGaussian(3),),
        prior=vj.StandardNormal(2),
        likelihood=vj.Bernoulli(),
        image_shape=tiny.IMAGE_SHAPE,
    )


MODELS: dict[str, Any] = {
    "hierarchy": hierarchy,
    "codes": lambda: tiny.model().clone(
        posterior=vj.VectorQuantized(3, 2), prior=vj.UniformCodes((1, 1))
    ),
    "labels": lambda: tiny.model().clone(labels=vj.LabelEmbedding(8, 2)),
    "one-hot": lambda: tiny.model().clone(
        posterior=vj.Categorical(2, 3, 0.7), prior=vj.UniformCategorical(2, 3)
    ),
}


@pytest.mark.others_slow
@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind_keep_the_seen_pixels(name: str) -> None:
    """Several layers, codes, classes: seen pixels stay, missing ones are pixels and differ."""
    model = MODELS[name]()
    x = jnp.asarray(np.random.default_rng(0).integers(2, size=(30, *tiny.IMAGE_SHAPE)), jnp.float32)
    missing = jnp.zeros((30, 4, 4), bool).at[:, :2].set(True)
    keys, y = jax.random.split(jax.random.key(0), 30), None
    if name == "labels":
        y = jnp.arange(30) % 8

    @jax.jit
    def run() -> Any:
        variables = model.init(keys[0], x, keys, 1, y)
        return inpainted(model, variables, x, missing, keys, 5, y)[1]

    found = np.asarray(run())
    np.testing.assert_array_equal(found[:, 2:], x[:, 2:])
    assert set(np.unique(found)) == {0.0, 1.0}
    assert found[:, :2].std() > 0.1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    experiment = dataclasses.replace(
        tiny.experiment(num_steps=10), data=tiny.data("grey"), model=grey_model()
    )
    with on_devices(1):
        yield vj.train(experiment, tmp_path_factory.mktemp("inpainting") / "run")


def grey_model() -> vj.VAE:
    return tiny.model().clone(likelihood=vj.Gaussian(0.2))


HALF = np.arange(4)[:, None] < np.array([[2] * 4])


@pytest.mark.slow
def test_a_run_fills_in_what_is_missing(run: Any) -> None:
    """Whatever stood there; the same draws of an image beside others and with more draws."""
    images = tiny.images(3, 7)
    hidden = images.copy()
    hidden[:, :2] = 255
    found = run.inpaint(hidden, HALF, num=2, num_steps=4)
    assert found.shape == (3, 2, 4, 4, 1)
    seen = np.broadcast_to(images[:, None, 2:] / np.float32(255), found[:, :, 2:].shape)
    np.testing.assert_allclose(found[:, :, 2:], seen, atol=1e-6)
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.abs(found[:, 0, :2] - found[:, 1, :2]).max() > 1e-3
    floats = np.where(HALF[..., None], np.nan, images / np.float32(255))
    alone = run.inpaint(floats[:1], np.broadcast_to(HALF, (1, 4, 4)), num_steps=4)
    np.testing.assert_allclose(alone, found[:1, :1], atol=1e-5)
    other = run.inpaint(hidden, HALF, num_steps=4, seed=1)
    assert np.abs(other[:, 0] - found[:, 0]).max() > 1e-3
    nothing = run.inpaint(images, np.zeros((4, 4), bool), num_steps=1)
    np.testing.assert_allclose(nothing[:, 0], images / np.float32(255), atol=1e-6)


BAD_MASKS = {
    "no array": ([[True]], r"mask is \(\(True,\),\): give booleans \[4, 4\], one for all images"),
    "bytes": (np.zeros((4, 4), np.uint8), r"mask is uint8: give booleans .*, such as mask > 0\."),
    "floats": (np.zeros((3, 4, 4)), r"mask is float64: give booleans"),
    "channels": (np.zeros((3, 4, 4, 1), bool), r"all their channels: give .* mask\.any\(-1\)"),
    "of one image": (np.zeros((4, 4, 1), bool), r"all their channels"),
    "another size": (np.zeros((5, 4), bool), r"shape \(5, 4\): give \[4, 4\], one for all images"),
    "another number": (np.zeros((2, 4, 4), bool), r"shape \(2, 4, 4\): .* or \[3, 4, 4\]\."),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks_are_refused(run: Any, name: str) -> None:
    mask, sentence = BAD_MASKS[name]
    with pytest.raises(VaeJaxError, match=sentence):
        run.inpaint(tiny.images(3, 7), mask)


def test_pixels_that_depend_on_each_other_are_refused(run: Any) -> None:
    likelihood = vj.AutoregressivePixels(
        vj.DiscretizedLogistic(), width=4, num_layers=1, num_heads=1
    )
    model = tiny.model().clone(likelihood=likelihood)
    experiment = dataclasses.replace(run.experiment, model=model)
    state = jax.jit(jax.vmap(partial(init_state, experiment)))(np.zeros(1, np.uint32))
    other = dataclasses.replace(run, experiment=experiment, state=state)
    with pytest.raises(VaeJaxError, match=r"depend on each other given z, .* independent pixels"):
        other.inpaint(tiny.images(3, 7), HALF)
