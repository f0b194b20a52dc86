"""Training with missing pixels: the marginal of the seen ones, and nothing of the others."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from running import on_devices
from scipy import stats

import vae_jax as vj
from vae_jax import VaeJaxError
from vae_jax.bounds import per_image
from vae_jax.compatibility import check_pictures
from vae_jax.plots import pictures
from vae_jax.standard_figures import plot_standard_figures

SHAPE, D = (2, 4, 1), 2


def masks(count: int, seed: int = 0, share: float = 0.4) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 4, 4)) < share


def test_the_density_is_that_of_the_seen_pixels() -> None:
    """By SciPy, with two channels; the same whatever the missing ones hold; no gradient there."""
    generator = np.random.default_rng(0)
    likelihood = vj.SeenPixels(vj.Gaussian(0.3))
    features = jnp.asarray(generator.normal(size=(5, 3)), jnp.float32)
    variables: Any = jax.jit(likelihood.init, static_argnums=2)(
        jax.random.key(0), features, (2, 2, 3)
    )
    p: Any = jax.jit(likelihood.apply, static_argnums=2)(variables, features, (2, 2, 3))
    assert (p.batch_shape, p.event_shape) == ((5,), (2, 2, 3))
    seen = generator.random((5, 2, 2)) < 0.6
    x = np.float32(generator.uniform(size=(5, 2, 2, 2)))
    normal: Any = stats.norm(np.asarray(p.base.loc), 0.3)
    of_pixels = normal.logpdf(x)
    expected = (of_pixels * seen[..., None]).sum((1, 2, 3))

    def log_prob(loc: Any, x: Any) -> Any:
        whole = jnp.concatenate([x, seen[..., None].astype(np.float32)], -1)
        return p.replace(base=p.base.replace(loc=loc)).log_prob(whole)

    np.testing.assert_allclose(log_prob(p.base.loc, x), expected, rtol=1e-5)
    for value in (np.nan, -7.0):
        other = np.where(seen[..., None], x, np.float32(value))
        np.testing.assert_allclose(log_prob(p.base.loc, other), expected, rtol=1e-5)
        gradient = np.asarray(jax.grad(lambda loc, x=other: log_prob(loc, x).sum())(p.base.loc))
        assert (gradient[~seen] == 0).all()
        assert (np.abs(gradient[seen]) > 0).all()
    np.testing.assert_array_equal(p.mean[..., :-1], p.base.mean)
    drawn = np.asarray(p.sample(jax.random.key(1), (3,)))
    assert drawn.shape == (3, 5, 2, 2, 3)
    assert (drawn[..., -1] == 1).all()


def test_the_bound_is_the_marginal_likelihood_of_the_seen_pixels(fit_linear_gaussian: Any) -> None:
    """L_2000 of a linear-Gaussian model against the normal ln p(x_s), within 0.01 nats."""
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    scales = np.sqrt([4.0, 2.0, 0.35, 0.3, 0.3, 0.3, 0.3, 0.25])
    x = (generator.normal(size=(60, 8)) * scales) @ basis.T + 0.5
    ppca = fit_linear_gaussian(x.reshape(-1, *SHAPE), D)
    params = ppca.variables["params"]
    w, noise = params["likelihood"]["loc"]["kernel"], np.exp(2 * params["likelihood"]["log_scale"])
    seen = np.array([1, 0, 1, 1, 0, 1, 1, 1], bool)
    # q(z|x_s) of the exact mean, as wide as its exact variances, which are correlated.
    precision = (w[:, seen] @ w[:, seen].T) / noise + np.eye(D)
    gain = np.zeros((16, D))
    gain[::2][seen] = (np.linalg.inv(precision) @ w[:, seen] / noise).T
    deviations = np.sqrt(np.diag(np.linalg.inv(precision)))
    posterior = {
        "loc": {"kernel": gain, "bias": -np.repeat(ppca.mean, 2) @ gain},
        "log_scale": {"kernel": np.zeros((16, D)), "bias": np.log(1.2 * deviations)},
    }
    likelihood = {"likelihood": params["likelihood"]}
    variables = {"params": {"posterior": posterior, "likelihood": likelihood}}
    model = ppca.model.clone(likelihood=vj.SeenPixels(ppca.model.likelihood), image_shape=(2, 4, 2))
    flat = np.stack([np.where(seen, x, 0), np.broadcast_to(seen, x.shape)], -1)
    images = jnp.asarray(flat.reshape(-1, 2, 4, 2), jnp.float32)
    keys = jax.random.split(jax.random.key(0), len(images))
    evaluated = jax.jit(partial(per_image, model, num_samples=2000))
    found = evaluated(jax.tree.map(np.float32, variables), images, keys)
    normal: Any = stats.multivariate_normal
    exact = normal.logpdf(x[:, seen], ppca.mean[seen], ppca.covariance[np.ix_(seen, seen)])
    assert np.abs(np.mean(-np.float64(found["nll"]) - exact)) < 0.01
    np.testing.assert_allclose(-np.float64(found["nll"]), exact, atol=0.1)


def test_nothing_of_missing_pixels_is_in_the_data() -> None:
    """Two data sets that differ in them alone are one; what is left out is complete."""
    data, hidden = tiny.data("grey"), masks(90)
    images = np.where(hidden[..., None], np.uint8(9), data.train.images)
    other = dataclasses.replace(data, train=vj.Split(images, data.train.labels))
    made, same = (each.with_missing({"train": hidden}) for each in (data, other))
    assert made.fingerprint == same.fingerprint
    assert made.image_shape == (4, 4, 2)
    np.testing.assert_array_equal(made.train.images[..., 1], np.where(hidden, 0, 255))
    seen = made.train.images[..., 0][~hidden]
    np.testing.assert_array_equal(seen, data.train.images[..., 0][~hidden])
    assert (made.train.images[hidden] == 0).all()
    np.testing.assert_array_equal(made.test.images[..., :1], data.test.images)
    assert (made.test.images[..., 1] == 255).all()
    assert made.train.labels is data.train.labels
    assert made.split_rule.endswith(f"; pixels missing: {hidden.mean():.0%} of train")


def model(likelihood: Any = None) -> vj.VAE:
    inner = vj.Laplace(0.1) if likelihood is None else likelihood
    return tiny.model().clone(likelihood=vj.SeenPixels(inner), image_shape=(4, 4, 2))


@pytest.mark.slow
def test_training_with_missing_pixels(tmp_path: Path) -> None:
    """MIWAE end to end: the bound falls, figures are drawn, there are no bits, images complete."""
    data = tiny.data("grey").with_missing({"train": masks(90), "valid": masks(21), "test": HALF})
    experiment = dataclasses.replace(
        tiny.experiment(num_steps=60), data=data, model=model(), objective=vj.IWAE(5)
    )
    with on_devices(1):
        run = vj.train(experiment, tmp_path / "run")
        losses = run.metric("loss")[1][:, 0]
        assert losses[-1] < losses[0] - 1
        found = vj.evaluate(run, num_samples=4)
        assert found.bits_per_dim is None
        assert np.isfinite(found.mean["nll"]).all()
        assert plot_standard_figures(run)
        drawn = run.reconstruct(data.test.images[:3])
        filled = run.inpaint(data.test.images[:3], HALF, num_steps=3)
    assert (drawn[..., 1] == 1).all()
    np.testing.assert_allclose(
        filled[:, 0, 2:, :, 0], data.test.images[:3, 2:, :, 0] / 255, atol=1e-6
    )
    assert (filled[..., 1] == 1).all()


HALF = np.arange(4)[:, None] < np.array([[2] * 4])


def test_missing_pixels_are_shown_grey() -> None:
    x = np.zeros((1, 2, 2, 2), np.float32)
    x[0, 0, :, 1] = 1
    pixels = pictures._pixels(x, "[N,H,W,C]")
    np.testing.assert_array_equal(pixels[0, :, 0, 0], [0, 128])


REFUSED = {
    "a split of another name": ({"dev": HALF}, r"mask of bars for 'dev': give masks for train,"),
    "a mask of another size": ({"train": HALF[:3]}, r"mask has the shape \(3, 4\): give \[4, 4\]"),
    "a mask of numbers": ({"train": 1 * HALF}, r"mask is int64: give booleans"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_masks_that_do_not_fit_are_refused(name: str) -> None:
    missing, sentence = REFUSED[name]
    with pytest.raises(VaeJaxError, match=sentence):
        tiny.data("grey").with_missing(missing)


def test_models_that_do_not_fit_are_refused() -> None:
    complete = dataclasses.replace(tiny.experiment(), data=tiny.data("grey"), model=grey())
    with pytest.raises(VaeJaxError, match=r"last channel .* 4x4x1: make them by data.with_missing"):
        dataclasses.replace(complete, model=model().clone(image_shape=()))
    data = tiny.data("grey").with_missing({"train": masks(90)})
    for likelihood in (vj.MixtureOfLogistics(2), vj.CategoricalPixels()):
        with pytest.raises(VaeJaxError, match=r"no density for each component, .* Discretized"):
            dataclasses.replace(complete, data=data, model=model(likelihood))
    with pytest.raises(VaeJaxError, match=r"compares whole images, .*missing pixels: take an"):
        check_pictures(model(), vj.Perceptual(vj.ELBO()))


@pytest.mark.parametrize("name", ["RandomAffine", "BrightnessJitter", "ColourJitter", None])
def test_augmentations_that_mix_pixels_are_refused(name: str | None) -> None:
    data = tiny.data("grey").with_missing({"train": masks(90)})
    own: Any = {"data": data, "model": model()}
    if name is None:
        moving = (vj.HorizontalFlip(), vj.RandomShift(1))
        assert dataclasses.replace(tiny.experiment(), augment=moving, **own).augment == moving
        return
    augment: Any = getattr(vj, name)(*((5.0, 0.1, 1.0) if name == "RandomAffine" else (0.5,)))
    with pytest.raises(VaeJaxError, match=rf"{name} mixes or scales values, .* HorizontalFlip"):
        dataclasses.replace(tiny.experiment(), augment=(augment,), **own)


def grey() -> vj.VAE:
    return tiny.model().clone(likelihood=vj.Laplace(0.1))
