"""Priors fitted after training: against the maximum-likelihood fit in closed form, and moments."""

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from running import TINY, on_devices
from scipy import stats

from vae_jax import (
    Deterministic,
    GaussianMixture,
    RealNVP,
    VaeJaxError,
    evaluate,
    fitted_priors,
    train,
    train_file,
)
from vae_jax.cli import main
from vae_jax.run import Run


@pytest.fixture(scope="module", autouse=True)
def fewer_latents():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitted_priors, "LATENTS", 2000)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    with on_devices(1):
        experiment = dataclasses.replace(tiny.experiment(), data=tiny.data("threshold"))
        return train(experiment, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def latents(run) -> np.ndarray:
    return fitted_priors.latents_of(run)


def run_model(run, method: str, argument) -> Any:
    """A method of the first seed's model."""
    model = run.experiment.model
    return jax.jit(partial(model.apply, method=method))(run.seed_variables, argument)


@pytest.mark.slow
def test_latents_are_draws_of_every_images_posterior(run, latents):
    """23 draws of each of 90 images, their mean and variance those of the mixture of posteriors.

    Within 4 standard errors of the mean, and 8 percent for the variance, which is one of 4 standard
    errors too; new noise at each draw.
    """
    assert latents.shape == (23 * 90, 2)
    assert len(np.unique(latents)) > 0.99 * latents.size
    rows = np.arange(90)
    q: Any = run_model(run, "encode", run.images("train", rows))
    loc, variance = np.asarray(q.loc), np.asarray(q.scale) ** 2
    error = latents.std(0) / np.sqrt(len(latents))
    assert np.all(np.abs(latents.mean(0) - loc.mean(0)) < 4 * error)
    np.testing.assert_allclose(latents.var(0), loc.var(0) + variance.mean(0), rtol=0.08)


@pytest.mark.slow
def test_one_component_is_the_normal_of_maximum_likelihood(run, latents):
    """Its mean and standard deviation are those of the latents."""
    fitted = fitted_priors.fit(run, GaussianMixture(1, 2))
    params = fitted.seed_variables["params"]["prior"]
    np.testing.assert_allclose(params["loc"][0], latents.mean(0), atol=0.03)
    np.testing.assert_allclose(np.exp(params["log_scale"][0]), latents.std(0), rtol=0.03)
    for name in ("encoder", "posterior", "decoder", "likelihood"):
        np.testing.assert_equal(fitted.variables["params"][name], run.variables["params"][name])
    with on_devices(1):
        before, after = (
            evaluate(each, num_samples=20).mean["kl_sampled"] for each in (run, fitted)
        )
    assert after < before  # E KL(q(z|x) || p(z)) falls by KL(q(z) || p(z)) for the best p


def moved(run: Run, loc: float, scale: float) -> Run:
    """The run with latents loc + scale z in place of z."""
    params = jax.tree.map(np.copy, run.variables["params"])
    q = params["posterior"]
    q["loc"]["kernel"] *= scale
    q["loc"]["bias"] = loc + scale * q["loc"]["bias"]
    q["log_scale"]["bias"] += np.float32(np.log(scale))
    state: Any = run.state
    return dataclasses.replace(run, state=state.replace(params=params, ema_params=None))


PRIORS = {
    "mixture": GaussianMixture(5, 2),
    "flow": RealNVP(2, 2, (16,)),
    "vae": fitted_priors.SecondStageVAE(2, (16,)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["mixture", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flow", "vae"))]
)
@pytest.mark.usefixtures("latents")
def test_the_scale_of_the_latents_makes_no_difference(family, run, capsys):
    """Latents at 20 and 25 times as wide: the density changes by ln 25 for each, draws with it.

    What is said of the fit is SciPy's density of the Gaussian with the moments of the latents.
    """
    said, draws = [], []
    for one in (run, moved(run, 20.0, 25.0)):
        fitted = fitted_priors.fit(one, PRIORS[family], num_steps=300)
        said.append([float(n) for n in re.findall(r"(-?\d+\.\d+)", capsys.readouterr().err)])
        (z,), _ = run_model(fitted, "sample", jax.random.split(jax.random.key(1), 500))
        draws.append(np.asarray(z))
        z = fitted_priors.latents_of(one)
        normal: Any = stats.multivariate_normal
        expected = normal.logpdf(z, z.mean(0), np.cov(z.T)).mean()
        assert said[-1][1] == pytest.approx(expected, abs=0.02)
    np.testing.assert_allclose(said[0], np.array(said[1]) + 2 * np.log(25), atol=0.02)
    np.testing.assert_allclose(draws[1], 20 + 25 * draws[0], rtol=1e-2, atol=0.3)


@pytest.mark.slow
def test_a_fit_that_is_worse_than_a_gaussian_says_so(run, capsys):
    fitted_priors.fit(run, GaussianMixture(5, 2), num_steps=1)
    assert "take more steps" in capsys.readouterr().err
    fitted_priors.fit(run, GaussianMixture(1, 2))
    assert "take more steps" not in capsys.readouterr().err


def test_pixels_fixed_by_the_protocol_are_not_drawn_again(run, monkeypatch):
    """With a posterior without noise all draws of an image are equal, and those of training."""
    experiment = dataclasses.replace(run.experiment, data=tiny.data("fixed"))
    experiment = experiment.with_model(experiment.model.clone(posterior=Deterministic(2)))
    params = {**run.variables["params"]}
    params["posterior"] = {"loc": params["posterior"]["loc"]}
    state: Any = run.state
    fixed = dataclasses.replace(
        run, experiment=experiment, state=state.replace(params=params, ema_params=None)
    )
    z = fitted_priors.latents_of(fixed).reshape(-1, 90, 2)
    assert len(z) > 1
    np.testing.assert_array_equal(z, np.broadcast_to(z[0], z.shape))
    x = fixed.images("train", np.arange(90))
    (means,) = fixed.posterior_means(x)
    np.testing.assert_allclose(z[0], means, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_second_vae_has_the_moments_of_the_latents(run, latents):
    """4,000 draws, mean and covariance within 0.15 of the latents' spread; no density."""
    fitted = fitted_priors.fit(run, fitted_priors.SecondStageVAE(2, hidden=(32,)), num_steps=1500)
    (z,), _ = run_model(fitted, "sample", jax.random.split(jax.random.key(1), 4000))
    spread = latents.std(0)
    np.testing.assert_allclose(z.mean(0) / spread, latents.mean(0) / spread, atol=0.15)
    scaled = np.cov(np.asarray(z).T) / np.outer(spread, spread)
    np.testing.assert_allclose(scaled, np.corrcoef(latents.T), atol=0.15)
    with on_devices(1), pytest.raises(VaeJaxError, match="no density of z"):
        evaluate(fitted, num_samples=2)


def test_what_does_not_fit_is_refused(run):
    with pytest.raises(VaeJaxError, match="'autoregressive' fits latents of the shape \\(2,\\)"):
        fitted_priors.prior_for(run, "autoregressive")


@pytest.mark.slow
def test_the_command_fits_once(tmp_path: Path, monkeypatch, capsys):
    """The second call reads what the first one kept, and draws the same picture.

    A third one, that finds it damaged, fits it again.
    """
    monkeypatch.setattr(fitted_priors, "NUM_STEPS", 20)
    folder, pictures = tmp_path / "run", [tmp_path / f"{name}.png" for name in "abc"]
    with on_devices(1):
        train_file(TINY, folder, {"num_steps": 10})
        sample = ["sample", str(folder), "--prior", "mixture", "--num", "4", "--out"]
        main([*sample, str(pictures[0])])
        assert [path.name for path in (folder / "priors").iterdir()] == ["mixture-latest"]
        with monkeypatch.context() as patch:
            patch.setattr(fitted_priors, "fit", None)
            main([*sample, str(pictures[1])])
        assert pictures[0].read_bytes() == pictures[1].read_bytes()
        kept = folder / "priors" / "mixture-latest" / "10"
        next(kept.rglob("*/d/*")).write_bytes(b"damaged")
        main([*sample, str(pictures[2])])  # fits it again
    assert pictures[0].read_bytes() == pictures[2].read_bytes()
    assert (folder / "priors" / "damaged_mixture-latest" / "10").is_dir()
