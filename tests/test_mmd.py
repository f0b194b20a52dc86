"""MMD against double loops over pairs, in expectation, and in the objectives that use it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gradients import gradients_of, norm, params_of

from vae_jax import (
    DIPVAE,
    ELBO,
    IMQ,
    RBF,
    WAE,
    BetaTC,
    Categorical,
    Deterministic,
    DiagonalGaussian,
    GaussianMixture,
    HypersphericalUniform,
    InfoVAE,
    StandardNormal,
    VaeJaxError,
    VonMisesFisher,
)
from vae_jax.compatibility import check_objective
from vae_jax.objectives.mmd import aggregated_mmd, mmd

STEP = jnp.int32(0)
B = 6
X = jnp.asarray(tiny.images(B, 0), jnp.float32) / 255
KEYS = jax.random.split(jax.random.key(1), B)


def imq(a: np.ndarray, b: np.ndarray, variance: float) -> float:
    """Tolstikhin et al. (2018), section 4, with C = 2 d sigma² times each of the code's scales."""
    total = 0.0
    for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        c = 2 * len(a) * variance * scale
        total += c / (c + float(np.linalg.norm(a - b)) ** 2)
    return total


def rbf(a: np.ndarray, b: np.ndarray, variance: float) -> float:
    return float(np.exp(-(np.linalg.norm(a - b) ** 2) / (2 * len(a) * variance)))


@pytest.mark.parametrize(("kernel", "by_hand"), [(IMQ, imq), (RBF, rbf)])
@pytest.mark.parametrize("variance", [1.0, 0.25])
def test_mmd_by_double_loops(kernel: Any, by_hand: Any, variance: float) -> None:
    """Algorithm 2 of Tolstikhin et al. (2018), in NumPy."""
    x, y = np.random.default_rng(0).normal(size=(2, 7, 3)) * [[[1.0]], [[1.5]]]
    n = len(x)
    expected = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                within = by_hand(x[i], x[j], variance) + by_hand(y[i], y[j], variance)
                expected += within / (n * (n - 1))
            expected -= 2 * by_hand(x[i], y[j], variance) / n**2
    actual = mmd(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), kernel(variance))
    assert actual == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kernel", [IMQ(), RBF()], ids=["imq", "rbf"])
def test_mmd_is_zero_in_expectation_for_equal_distributions(kernel: Any) -> None:
    """4000 sets of 5 draws: within 4 standard errors of 0, and far above for shifted ones.

    With the pairs of a draw with itself the mean would be about 0.4 times the kernel's range.
    """
    x, y = jax.random.normal(jax.random.key(0), (2, 4000, 5, 3))
    estimate = jax.jit(jax.vmap(lambda x, y: mmd(x, y, kernel)))
    same, shifted = np.asarray(estimate(x, y)), np.asarray(estimate(x, y + 1))
    error = same.std() / np.sqrt(len(same))
    assert abs(same.mean()) < 4 * error
    assert (same < 0).mean() > 0.3
    assert shifted.mean() > 40 * error


# In the objectives


@pytest.fixture(scope="module")
def terms() -> Any:
    """Of a model with K = 3, on the host; the keys stay keys."""
    model = tiny.model()
    return jax.jit(lambda: model.init_with_output(jax.random.key(0), X, KEYS, 3)[0])()


def rbf_with_the_prior(z: np.ndarray, s: float) -> tuple[np.ndarray, float]:
    """E k(z, p) for each z `[..., 3]` and E k(p, p') of p ~ N(0, I), k = exp(-|z - p|² / 2s)."""
    square = (z**2).sum(-1)
    return (s / (s + 1)) ** 1.5 * np.exp(-square / (2 * (s + 1))), (s / (s + 2)) ** 1.5


def rbf_with_the_sphere(z: np.ndarray, s: float) -> tuple[np.ndarray, float]:
    """The same for p uniform on the sphere, whose z'p is uniform on [-1, 1]."""
    mean = s / 2 * (1 - np.exp(-2 / s))
    return np.full(z.shape[:-1], mean), mean


SPACES: dict[str, tuple[Any, Any, Any, dict[str, float]]] = {
    "real": (DiagonalGaussian(3), StandardNormal(3), rbf_with_the_prior, {"log_scale": -1.0}),
    "sphere": (VonMisesFisher(3), HypersphericalUniform(3), rbf_with_the_sphere, {"kappa": 6.0}),
}


@pytest.mark.parametrize("space", SPACES)
def test_prior_draws_are_independent_and_samples_of_one_image_are_not_paired(space: str) -> None:
    """Given z `[K, B, d]` the estimate has an expectation in closed form: a mean over K.

    4000 sets of K = 2 samples for B = 4 images, within 4 standard errors. Draws of the prior with
    the noise of z, or pairs of two samples of one image, which lie close together, would show.
    """
    count, images, s = 4000, X[:4], 3.0
    posterior, prior, expectation, width = SPACES[space]
    model = tiny.model().clone(posterior=posterior, prior=prior)
    keys = jax.random.split(jax.random.key(2), (count, 4))
    params = params_of(model, InfoVAE(1.0, 1.0), images, keys[0])
    for name, bias in width.items():
        params["posterior"][name]["kernel"][:] = 0
        params["posterior"][name]["bias"][:] = bias

    @jax.jit
    def estimates() -> Any:
        def one(keys: Any) -> Any:
            terms: Any = model.apply({"params": params}, images, keys, 2)
            return aggregated_mmd(terms, RBF(), tiny.model()), terms.z[0]

        return jax.lax.map(one, keys, batch_size=500)

    found, z = (np.asarray(each, np.float64) for each in estimates())
    kernel = np.exp(-((z[:, :, :, None] - z[:, :, None]) ** 2).sum(-1) / (2 * s))
    within = (kernel.sum((2, 3)) - 4) / 12
    across, prior_alone = expectation(z, s)
    errors = found - (within + prior_alone - 2 * across.mean(2)).mean(1)
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(count)
    close, far = ((z[:, 0] - z[:, 1, of]) ** 2 for of in (slice(None), [1, 2, 3, 0]))
    assert close.mean() < 0.7 * far.mean()


def test_the_order_of_the_batch_is_nothing(terms: Any) -> None:
    order = jnp.array([3, 1, 5, 0, 2, 4])
    shuffled = terms.replace(z=(terms.z[0][:, order],), keys=terms.keys[order])
    distance = jax.jit(lambda terms: aggregated_mmd(terms, RBF(), tiny.model()))
    assert distance(shuffled) == pytest.approx(float(distance(terms)), rel=1e-4)


def test_info_vae_by_its_ends(terms: Any) -> None:
    """alpha = 0, lambda = 1 is the ELBO; alpha = 1 the WAE; between, Zhao et al.'s weights."""
    objectives = [ELBO(), InfoVAE(0.0, 1.0), InfoVAE(1.0, 7.0), InfoVAE(-1.0, 5.0, RBF()), WAE(7.0)]

    @jax.jit
    def everything(terms: Any) -> Any:
        results = [objective(terms, STEP, tiny.model()) for objective in objectives]
        return results, [aggregated_mmd(terms, kernel, tiny.model()) for kernel in (IMQ(), RBF())]

    results, (imq_distance, rbf_distance) = everything(terms)
    (elbo, metrics), (none, info), (one, _), (between, _), (wae, _) = results
    assert none == pytest.approx(float(elbo), rel=1e-6)
    assert info["mmd"] == pytest.approx(float(imq_distance), rel=1e-5)
    assert one == pytest.approx(float(wae), rel=1e-6)
    assert one == pytest.approx(float(metrics["distortion"] + 7 * imq_distance), rel=1e-6)
    expected = float(metrics["distortion"] + 2 * metrics["kl"] + 3 * rbf_distance)
    assert between == pytest.approx(expected, rel=1e-6)


def test_the_kernel_is_as_wide_as_the_prior_of_unit_vectors() -> None:
    """1/d by default, whatever the kernel; a width that is given stays."""
    posterior, prior, _, _ = SPACES["sphere"]
    model = tiny.model().clone(posterior=posterior, prior=prior)
    params = params_of(model, WAE(1.0), X, KEYS)
    kernels = [IMQ(), IMQ(1 / 3), IMQ(1.0), RBF(), RBF(1 / 3), RBF(1.0)]

    @jax.jit
    def distances() -> Any:
        def each(model: Any) -> Any:
            terms = model(X, KEYS, 2)
            objectives = [
                objective
                for kernel in kernels
                for objective in (WAE(1.0, kernel), InfoVAE(0.5, 2.0, kernel))
            ]
            return [objective(terms, STEP, model)[1]["mmd"] for objective in objectives]

        return nn.apply(each, model)({"params": params})

    found = np.reshape(distances(), (2, 3, 2))
    np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=1e-6)
    assert (np.abs(found[:, 0] - found[:, 2]) > 1e-3).all()


@pytest.mark.parametrize(
    ("objective", "least"),
    [(WAE(1.0), 2), (InfoVAE(0.5, 2.0), 2), (BetaTC(2.0, 90), 2), (DIPVAE(1.0, 1.0), 2)],
)
def test_a_batch_of_one_has_nothing_to_compare(objective: Any, least: int) -> None:
    experiment = dataclasses.replace(tiny.experiment(), objective=objective, batch_size=least)
    with pytest.raises(VaeJaxError, match=f"batch_size is {least - 1}: take at least {least}"):
        dataclasses.replace(experiment, batch_size=least - 1)


def test_wae_without_noise_or_density() -> None:
    """Where q has no density no bound is reported; the encoder is moved all the same."""
    model = tiny.model().clone(posterior=Deterministic(2))
    check_objective(WAE(10.0), model)
    check_objective(WAE(10.0), tiny.model())
    params = params_of(model, WAE(10.0), X, KEYS)
    gradient, metrics = gradients_of(params, model, WAE(10.0), X, KEYS)
    assert "neg_elbo" not in metrics
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))
    with pytest.raises(VaeJaxError, match="InfoVAE needs a density"):
        check_objective(InfoVAE(0.5, 3.0), model)
    with pytest.raises(VaeJaxError, match="WAE has no meaning for one-hot vectors"):
        check_objective(WAE(10.0), tiny.model().clone(posterior=Categorical(2, 3, 1.0)))


def test_the_priors_draws_are_constants() -> None:
    """A learned prior is not drawn to q(z) by MMD."""
    model = tiny.model().clone(prior=GaussianMixture(3, 2))
    params = params_of(model, WAE(10.0), X, KEYS)
    gradient, metrics = gradients_of(params, model, WAE(10.0), X, KEYS)
    assert norm(gradient["prior"]) == 0
    assert "neg_elbo" in metrics
